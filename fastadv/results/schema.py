"""How rows are stored: the Arrow schema of the records, and the ways there and back."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, fields, is_dataclass
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
    """Return `X` of `tuple[X, ...]`; None for any other type."""
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


@functools.cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """Return what makes a value of a type from Arrow's plain one.

    Fields of a record that are missing or null get their defaults.
    """
    if (item := _item(hint)) is not None:
        read = _reader(item)
        return lambda values: tuple(read(value) for value in values)
    if not is_dataclass(hint):
        return lambda value: value
    record = typing.cast(type, hint)
    readers = [(name, _reader(inner)) for name, inner in _hints(record).items()]
    required = {
        field.name: None
        for field in fields(record)
        if field.default is MISSING and field.default_factory is MISSING
    }

    def build(values: dict[str, Any]) -> Any:
        found = {
            name: read(value)
            for name, read in readers
            if (value := values.get(name)) is not None
        }
        return record(**required | found)

    return build


def _make_schema() -> pa.schema:
    """Return the columns of `Row`, with one struct per kind in place of the setting."""
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


def to_arrow(rows: Iterable[Row], part: str, schema: pa.Schema = SCHEMA) -> pa.Table:
    """Return rows as a table of `schema`, which names columns of `SCHEMA`.

    Args:
        rows: The rows.
        part: Name of the part they are stored in, without its suffix.
        schema: Columns that are wanted.
    """
    found = []
    for row in rows:
        values = asdict(row)
        values[row.kind] = values.pop("setting")
        found.append(values | {"part": part, "kind": row.kind})
    try:
        return pa.Table.from_pylist(found, schema=schema)
    except UnicodeEncodeError:  # a name on disk need not be text
        return pa.Table.from_pylist(_as_text(found), schema=schema)


def _as_text(value: Any) -> Any:
    r"""Return plain values with bytes in names that are no UTF-8 written as `\xe9`."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode(
            "utf-8", "backslashreplace"
        )
    if isinstance(value, dict):
        return {key: _as_text(each) for key, each in value.items()}
    return (
        [_as_text(each) for each in value] if isinstance(value, list | tuple) else value
    )


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
        setting = _reader(typing.cast(type, KINDS[kind]))(values[kind])
        rows.append(_reader(Row)(values | {"setting": setting}))
    return rows


def is_known(stored: pa.Schema) -> bool:
    """Return whether a stored schema has no column or member that today's lacks."""
    both = pa.unify_schemas([SCHEMA, stored], promote_options="permissive")
    return bool(both.equals(SCHEMA))


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of `schema`; missing ones are null.

    Tables of one schema version may differ in the kinds and fields that were known when
    they were written. A cast fills the missing members of structs with null.
    """
    known = set(table.column_names)
    columns = [
        table[field.name].cast(field.type)
        if field.name in known
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
