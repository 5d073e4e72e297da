"""Selecting images of a batch in every tensor of an attack's state at once."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Samples = TypeVar("_Samples", bound="DataclassInstance")


def take(whole: _Samples, rows: Tensor) -> _Samples:
    """Select `rows` of a dataclass of tensors (or of such dataclasses, or None)."""
    parts: dict[str, Any] = {}
    for name in (field.name for field in fields(whole)):
        value = getattr(whole, name)
        if isinstance(value, Tensor):
            parts[name] = value[rows]
        elif value is not None:
            parts[name] = take(value, rows)
    return replace(whole, **parts)
