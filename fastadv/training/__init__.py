"""Robust and standard pretraining: config, step, loop, run directory. Names resolve on
first use, so that a command's `--help` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "RunDirectory": "rundir",
    "TrainConfig": "config",
    "TrainSummary": "trainer",
    "Trainer": "trainer",
    "learning_rate": "config",
    "train": "trainer",
    "train_step": "step",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastadv.training' has no attribute {name!r}")
    module = importlib.import_module(f"fastadv.training.{_HOME[name]}")
    return getattr(module, name)
