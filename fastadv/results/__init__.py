"""One table for every experiment. Names resolve on first use, so that no command's
`--help` imports pyarrow.
"""

from fastadv.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
