"""What is stored of a row: everything, whatever its values, and by versions to come."""

from __future__ import annotations

import types
import typing
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st
from result_rows import evaluation_row, transfer_row

from fastadv.errors import DataError
from fastadv.results import parts
from fastadv.results.row import Row
from fastadv.results.schema import SCHEMA, from_arrow, to_arrow
from fastadv.results.settings import KINDS
from fastadv.results.table import ResultsTable

_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(codec="utf-8"), max_size=5),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    datetime: st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1)),
    types.NoneType: st.none(),
}


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Anything of a type; what a row may lack is sometimes missing."""
    if isinstance(hint, types.UnionType):
        return st.one_of([_values(each) for each in hint.__args__])
    if typing.get_origin(hint) is tuple:
        return st.lists(_values(hint.__args__[0]), max_size=2).map(tuple)
    if not is_dataclass(hint):
        return _PLAIN[hint]
    hints = typing.get_type_hints(hint)
    members = {f.name: _values(hints[f.name]) for f in fields(hint)}
    return st.builds(typing.cast(type, hint), **members)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(_values(Row), max_size=3))
def test_every_row_comes_back(rows: list[Row]) -> None:
    buffer = pa.BufferReader(parts.encode(to_arrow(rows, "part")))
    assert from_arrow(pq.read_table(buffer).cast(SCHEMA)) == rows


def _store(table: pa.Table, path: Path) -> None:
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"fastadv_schema": "4"})


def _without(table: pa.Table, column: str, member: str) -> pa.Table:
    """A table as it was before a member of a struct, or of a list of structs, was added."""
    values = table[column].combine_chunks()
    number = table.column_names.index(column)
    if pa.types.is_list(values.type):
        struct = values.values
        kept = [f for f in struct.type if f.name != member]
        inner = pa.StructArray.from_arrays(
            [struct.field(f.name) for f in kept], fields=kept
        )
        return table.set_column(
            number, column, pa.ListArray.from_arrays(values.offsets, inner)
        )
    kept = [f for f in values.type if f.name != member]
    older = pa.StructArray.from_arrays(
        [values.field(f.name) for f in kept], fields=kept, mask=values.is_null()
    )
    return table.set_column(number, column, older)


def test_rows_of_before_a_field_was_added_get_its_default(tmp_path: Path) -> None:
    rows = [transfer_row(), evaluation_row(), transfer_row(seed=1)]
    table = to_arrow(rows, "part-00000000000000000001-00000000")
    table = _without(table, "transfer", "depends_on_seed")
    table = _without(table, "transfer", "schedule")
    table = _without(table, "stages", "high")
    table = table.drop_columns(["arrays", "checks"])
    _store(table, tmp_path / "part-00000000000000000001-00000000.parquet")
    results = ResultsTable(tmp_path)
    found = results.rows()
    assert found[::2] == rows[::2]
    assert found[1] == evaluation_row(checks=None)
    assert results.rows(schedule=None) == found
    results.append([evaluation_row(seed=7)])
    assert results.compact() == 2
    assert results.rows() == [*found, evaluation_row(seed=7)]


def test_a_kind_of_a_later_version_is_left_to_it(tmp_path: Path) -> None:
    later = to_arrow([transfer_row()], "part-1-0")
    number = later.column_names.index("kind")
    later = later.set_column(number, "kind", pa.array(["dreams"]))
    later = later.append_column("dreams", pa.array([{"rank": 3}]))
    _store(later, tmp_path / "part-00000000000000000001-00000000.parquet")
    table = ResultsTable(tmp_path)
    table.append([transfer_row(), evaluation_row()])
    assert table.rows(kind=list(KINDS)) == [transfer_row(), evaluation_row()]
    assert len(table.columns("value")) == 3
    with pytest.raises(DataError, match="rows of kind 'dreams', which this fastadv"):
        table.rows()
    # A merge does not drop what it does not know.
    assert table.compact() == 0
    table.append([transfer_row(seed=5)])
    assert table.compact() == 2
    stored = pq.read_table(tmp_path / "part-00000000000000000001-00000000.parquet")
    assert stored["dreams"].to_pylist() == [{"rank": 3}]
