"""How rows are stored: the Arrow schema of the records, and the ways there and back."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from fastadv.errors import DataError
from fastadv.results.row import Row
from fastadv.results.settings import KINDS

SCHEMA_VERSION = 4

_PLAIN = {
    str: pa.string(),
    float: pa.float64(),
    int: pa.int64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
}


def _inner(hint: Any) -> Any:
    """Return `X` of `X | None`, and any other type as it is."""
    members = getattr(hint, "__args__", ()) if isinstance(hint, types.UnionType) else ()
    found = [each for each in members if each is not types.NoneType]
    return found[0] if len(found) == 1 else hint


def _item(hint: Any) -> Any:
    """Return `X` of `tuple[X, ...]`; None for what is no tuple."""
    return hint.__args__[0] if typing.get_origin(hint) is tuple else None


@functools.cache
def _hints(record: type) -> dict[str, Any]:
    """Return the types of a record's fields, in their order."""
    hints = typing.get_type_hints(record)
    return {field.name: _inner(hints[field.name]) for field in fields(record)}


def _arrow_type(hint: Any) -> pa.DataType:
    if (item := _item(hint)) is not None:
        return pa.list_(_arrow_type(item))
    if is_dataclass(hint):
        found = _hints(typing.cast(type, hint)).items()
        return pa.struct([(name, _arrow_type(inner)) for name, inner in found])
    return _PLAIN[hint]


def _plain(value: Any) -> Any:
    """Return a value as Arrow takes it: records as dictionaries, tuples as lists."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value


@functools.cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """Return what makes a value of a type from Arrow's plain one."""
    if (item := _item(hint)) is not None:
        read = _reader(item)
        return lambda values: tuple(read(value) for value in values)
    if is_dataclass(hint):
        return functools.partial(_build, typing.cast(type, hint))
    return lambda value: value


@functools.cache
def _readers(record: type) -> tuple[tuple[str, Callable[[Any], Any], bool], ...]:
    """Return name, reader and whether there is a default, of every field."""
    with_default = {
        field.name
        for field in fields(record)
        if field.default is not MISSING or field.default_factory is not MISSING
    }
    hints = _hints(record).items()
    return tuple((name, _reader(hint), name in with_default) for name, hint in hints)


def _build(record: type, values: Mapping[str, Any]) -> Any:
    """Return a record; fields that are missing or null get their defaults."""
    found = {}
    for name, read, has_default in _readers(record):
        value = values.get(name)
        if value is not None:
            found[name] = read(value)
        elif not has_default:
            found[name] = None
    return record(**found)


def _make_schema() -> pa.schema:
    """Return the columns: those of `Row`, one struct per kind in place of the setting."""
    columns: list[tuple[str, pa.DataType]] = [
        ("part", pa.string()),
        ("kind", pa.string()),
    ]
    for name, hint in _hints(Row).items():
        if name == "setting":
            columns += [(kind, _arrow_type(KINDS[kind])) for kind in KINDS]
        else:
            columns.append((name, _arrow_type(hint)))
    return pa.schema(columns)


SCHEMA = _make_schema()


def to_arrow(rows: Iterable[Row], part: str) -> pa.Table:
    """Return rows as a table of `SCHEMA`.

    Args:
        rows: The rows.
        part: Name of the part they are stored in, without its suffix.
    """
    found = []
    for row in rows:
        values = {f.name: _plain(getattr(row, f.name)) for f in fields(row)}
        values[row.kind] = values.pop("setting")
        found.append(values | {"part": part, "kind": row.kind})
    return pa.Table.from_pylist(found, schema=SCHEMA)


def from_arrow(table: pa.Table) -> list[Row]:
    """Return the rows of a table of `SCHEMA`.

    Raises:
        DataError: A row is of a kind that this version does not know.
    """
    rows = []
    for values in table.to_pylist():
        kind = values["kind"]
        if kind not in KINDS:
            raise DataError(
                f"the results table has rows of kind {kind!r}, which this fastadv does "
                f"not know (it knows {', '.join(KINDS)}); update it, or select a kind"
            )
        setting = _build(KINDS[kind], values[kind])
        rows.append(_build(Row, values | {"setting": setting}))
    return rows


def is_known(stored: pa.DataType, known: pa.DataType) -> bool:
    """Return whether a stored type has no member that today's type lacks."""
    if pa.types.is_list(stored):
        return pa.types.is_list(known) and is_known(stored.value_type, known.value_type)
    if not pa.types.is_struct(stored):
        return True
    return pa.types.is_struct(known) and all(
        known.get_field_index(member.name) >= 0
        and is_known(member.type, known.field(member.name).type)
        for member in stored
    )


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of `schema`; what it lacks is null.

    Tables of one schema version may differ in the kinds and fields that were known when
    they were written.
    """
    if table.schema.equals(schema):
        return table
    columns = [
        _conform(table[field.name], field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _conform(values: Any, kind: pa.DataType) -> Any:
    """Return an array as another type: missing members of structs are null."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if values.type.equals(kind):
        return values
    if pa.types.is_struct(kind):
        known = {field.name for field in values.type}
        members = [
            _conform(values.field(field.name), field.type)
            if field.name in known
            else pa.nulls(len(values), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(
            members, fields=list(kind), mask=values.is_null()
        )
    if pa.types.is_list(kind) and values.offset == 0:
        inner = _conform(values.values, kind.value_type)
        return pa.ListArray.from_arrays(
            values.offsets, inner, type=kind, mask=values.is_null()
        )
    return values.cast(kind)
