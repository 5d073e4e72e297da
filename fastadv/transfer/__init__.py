"""Transfer: what a pretrained model is worth on another data set. Names resolve on first
use, so that a command's `--help` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "ResultsTable": "table",
    "TransferConfig": "config",
    "transfer": "protocol",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastadv.transfer' has no attribute {name!r}")
    module = importlib.import_module(f"fastadv.transfer.{_HOME[name]}")
    return getattr(module, name)
