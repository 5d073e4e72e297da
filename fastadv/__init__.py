"""fastadv: pretrain image classifiers adversarially, fast, and measure how they transfer.

Names are loaded on first use, so that importing the package (and every command's
`--help`) stays quick.
"""

from __future__ import annotations

import os

from fastadv.lazy import attach

__version__ = "0.1.0"

# An install has the kernels inside this package, a bare checkout beside it; there, and
# first on sys.path, the checkout would otherwise hide an installed fastadv and break.
_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "kernels")):
    __path__.append(os.path.dirname(_here))

__getattr__, __dir__, __all__ = attach(__name__, __file__)
__all__ += ["__version__"]
