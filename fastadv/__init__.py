"""fastadv: pretrain image classifiers adversarially, fast, and measure how they transfer.

Names are loaded on first use, so that importing the package (and every command's
`--help`) stays quick.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# An install has the kernels inside this package, a bare checkout beside it; there, and
# first on sys.path, the checkout would otherwise hide an installed fastadv and break.
_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "kernels")):
    __path__.append(os.path.dirname(_here))

_EXPORTS = {
    "PGD": "fastadv.attacks",
    "AttackView": "fastadv.models.view",
    "NormalizedModel": "fastadv.models",
    "ThreatModel": "fastadv.threat",
    "create_model": "fastadv.models",
    "load_model": "fastadv.models",
    "open_dataset": "fastadv.data",
    "make_loader": "fastadv.data",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fastadv' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
