"""Data sets that are handed in where one is named: they get a name here. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastadv.errors import DataError

SCHEME = "object:"

_handed_in: dict[str, Any] = {}


def is_dataset(thing: object) -> bool:
    """Return whether an object is a map-style data set: it has a length and items."""
    return hasattr(thing, "__getitem__") and hasattr(thing, "__len__")


def named_data(data: Any) -> str:
    """Return the name of a data set that may be an object; `open_dataset` opens it by that.

    Args:
        data: A name, a path, a map-style data set, or a dictionary of such by split.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    if not is_dataset(data) or isinstance(data, bytes) or not len(data):
        raise TypeError(
            f"data is the name of a data set, a path, or a map-style data set (__len__ and "
            f"__getitem__) with items, not a {type(data).__name__}"
        )
    first = next(iter(data.values())) if isinstance(data, Mapping) else data
    name = f"{SCHEME}{type(first).__name__}"
    number, tried = 1, name
    while _handed_in.get(tried, data) is not data:
        number += 1
        tried = f"{name}-{number}"
    _handed_in[tried] = data
    return tried


def handed_in(name: str) -> Any:
    """Return the data set that `named_data` gave a name.

    Raises:
        DataError: It was handed in to another process.
    """
    if name in _handed_in:
        return _handed_in[name]
    raise DataError(
        f"{name} is a data set that was handed in as an object, in another process of "
        "Python; hand it in again, in place of its name"
    )
