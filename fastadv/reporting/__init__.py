"""Figures, tables and one self-contained HTML report of training and transfer.

Names resolve on first use: a command that only prints a table loads no matplotlib, and
charts load no torch. Nothing here measures anything; numbers come from the callers.
"""

from fastadv.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
