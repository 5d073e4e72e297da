"""Architectures, normalisation inside the model, and checkpoints in and out.

Names resolve on first use, so that listing architectures imports no torch. The view
of a model that attacks run on is `fastadv.models.view`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastadv.models.checkpoint import (
        load_model,
        read_metadata,
        save_model,
        state_hash,
    )
    from fastadv.models.create import create_model
    from fastadv.models.export import export_model, plain_module
    from fastadv.models.files import file_sha256
    from fastadv.models.names import (
        ARCHITECTURES,
        IMAGENET_MEAN,
        IMAGENET_STD,
        list_models,
    )
    from fastadv.models.normalized import NormalizedModel
    from fastadv.models.origins import Weights, find_weights, resolve_checkpoint
    from fastadv.models.registry import ArchSpec, get_spec

_HOME = {
    "ARCHITECTURES": "names",
    "IMAGENET_MEAN": "names",
    "IMAGENET_STD": "names",
    "ArchSpec": "registry",
    "NormalizedModel": "normalized",
    "Weights": "origins",
    "create_model": "create",
    "export_model": "export",
    "file_sha256": "files",
    "find_weights": "origins",
    "get_spec": "registry",
    "list_models": "names",
    "load_model": "checkpoint",
    "plain_module": "export",
    "read_metadata": "checkpoint",
    "resolve_checkpoint": "origins",
    "save_model": "checkpoint",
    "state_hash": "checkpoint",
}

__all__ = [
    "ARCHITECTURES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ArchSpec",
    "NormalizedModel",
    "Weights",
    "create_model",
    "export_model",
    "file_sha256",
    "find_weights",
    "get_spec",
    "list_models",
    "load_model",
    "plain_module",
    "read_metadata",
    "resolve_checkpoint",
    "save_model",
    "state_hash",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
