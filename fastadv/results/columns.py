"""Columns of the results table by name, and which rows pass a filter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fastadv.errors import ConfigError, unknown_name
from fastadv.results.schema import SCHEMA
from fastadv.results.settings import KINDS

# Structs in which a column without a dot is searched, after the row itself.
_WITHIN = ("target", "attack", "source", *KINDS, "provenance")
_OTHER_NAMES = {"dataset": "target.name", "source": "source.name"}


def column_path(name: str) -> list[str]:
    """Return the path of a column: its name, then names of members of structs.

    Raises:
        ConfigError: There is no such column.
    """
    name = _OTHER_NAMES.get(name, name)
    for path in (name.split("."), *([within, name] for within in _WITHIN)):
        if _type_of(path) is not None:
            return path
    known = {f.name for column in _WITHIN for f in SCHEMA.field(column).type}
    raise ConfigError(unknown_name("column", name, known | {*SCHEMA.names, "dataset"}))


def _type_of(path: list[str]) -> pa.DataType | None:
    """Return the type of a column; None if there is none."""
    kind: pa.DataType = pa.struct(list(SCHEMA))
    for name in path:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column of a table, or the member of a struct, by name."""
    first, *members = column_path(name)
    return pc.struct_field(table[first], members) if members else table[first]


def _has_name(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("name") >= 0)


def passes(column: pa.ChunkedArray, value: Any) -> pa.ChunkedArray:
    """Return which elements are the value, or one of the values.

    A record with a name, such as an attack, is selected by that name.
    """
    if _has_name(column.type):
        column = pc.struct_field(column, "name")
    values = list(value) if isinstance(value, list | tuple | set) else [value]
    known = [each for each in values if each is not None]
    missing = pc.and_(column.is_null(), len(known) < len(values))
    if not known:
        return missing
    try:
        return pc.or_(missing, pc.is_in(column, pa.array(known, column.type)))
    except (pa.ArrowException, TypeError, ValueError) as error:
        what = f"{value!r} is no value of a column of {column.type}"
        raise ConfigError(what) from error


def parse_filters(texts: Sequence[str]) -> dict[str, Any]:
    """Return the filters that texts such as `eps=4/255,8/255` stand for.

    Args:
        texts: `NAME=VALUE` each, with several values between commas; `none` is a missing
            value, and a number may be a fraction such as `4/255`.

    Raises:
        ConfigError: A text is no filter, a column is unknown, or a value is not of its
            type.

    Example:
        >>> parse_filters(["kind=transfer", "eps=4/255,8/255", "seed=0"])["seed"]
        [0]
    """
    filters = {}
    for text in texts:
        name, given, values = text.partition("=")
        if not given:
            raise ConfigError(f"{text!r} is no filter; write NAME=VALUE")
        kind = _type_of(column_path(name))
        try:
            filters[name] = [_parse(value, kind) for value in values.split(",")]
        except (ValueError, KeyError, ZeroDivisionError):
            raise ConfigError(
                f"{text!r}: {values!r} is no value of type {kind}"
            ) from None
    return filters


def _parse(text: str, kind: pa.DataType) -> Any:
    if text.lower() in ("", "none"):
        return None
    if pa.types.is_string(kind) or _has_name(kind):
        return text
    if pa.types.is_boolean(kind):
        return {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
    if pa.types.is_timestamp(kind):
        return datetime.fromisoformat(text)
    if pa.types.is_integer(kind):
        return int(text)
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)
