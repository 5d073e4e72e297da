"""Attacks: objectives, PGD, APGD, and AutoAttack on top of them.

Names are imported on first use, so that a command's `--help` imports no torch.
"""

from fastadv.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
