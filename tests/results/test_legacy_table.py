"""The results table: rows complete, in order, never lost, never misread."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import environment

from fastadv.errors import DataError, OutputError
from fastadv.results.legacy import SCHEMA, LegacyTable


def _row(**changes: Any) -> dict[str, Any]:
    values = {"time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "source": "a"}
    return values | {"seed": 0, "value": 12.5, "per_class_total": [3, 4]} | changes


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    table = LegacyTable(tmp_path / "results")
    assert table.rows() == []
    table.append([_row()])
    table.append([_row(seed=1), _row(seed=2, source="b, with \u00fcmlaut")])
    rows = LegacyTable(tmp_path / "results").rows()
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert rows[2]["source"] == "b, with \u00fcmlaut"
    assert list(rows[0]) == SCHEMA.names
    assert rows[0]["time"] == _row()["time"]
    assert rows[0]["per_class_total"] == [3, 4]
    assert rows[0]["bad_images"] is None


def test_columns_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    table = LegacyTable(tmp_path / "results")
    with pytest.raises(ValueError, match=r"no such columns .*\['acuracy'\]"):
        table.append([_row(), _row(acuracy=3)])
    assert table.rows() == []


def test_a_folder_name_is_no_column(tmp_path: Path) -> None:
    """Arrow can read `seed=7/` as a column seed of value 7."""
    for name in ("seed=7", "eps=3"):
        table = LegacyTable(tmp_path / name / "results")
        table.append([_row(seed=1)])
        [row] = table.rows()
        assert list(row) == SCHEMA.names
        assert row["seed"] == 1


_APPEND = """
import sys
from fastadv.results.legacy import LegacyTable
table = LegacyTable(sys.argv[1])
for i in range(40):
    table.append([{"source": sys.argv[2], "seed": i}])
"""


def test_processes_append_at_once(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _APPEND, str(tmp_path / "results")]
    running = [
        subprocess.Popen([*words, name], env=environment()) for name in ("a", "b", "c")
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    rows = LegacyTable(tmp_path / "results").rows()
    assert len(rows) == 120
    for name in ("a", "b", "c"):  # nothing lost, and each in its own order
        assert [r["seed"] for r in rows if r["source"] == name] == list(range(40))
    assert [
        p.name for p in (tmp_path / "results").iterdir() if p.suffix == ".tmp"
    ] == []


def test_other_versions_and_other_files_are_refused(tmp_path: Path) -> None:
    table = LegacyTable(tmp_path)
    table.append([_row()])
    foreign = tmp_path / "foreign.parquet"
    foreign.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"foreign\.parquet cannot be read .*move it"):
        table.rows()
    old = SCHEMA.with_metadata({"fastadv_schema": "0"})
    pq.write_table(pa.Table.from_pylist([_row()], schema=old), foreign)
    with pytest.raises(DataError, match="has schema version 0, this fastadv reads 1"):
        table.rows()
    pq.write_table(pa.table({"x": [1]}), foreign)
    with pytest.raises(DataError, match="has schema version none"):
        table.rows()
    foreign.rename(tmp_path / "foreign.txt")  # moved away: the rest can be read
    assert len(table.rows()) == 1


def test_a_file_is_no_table(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    file.write_text("mine")
    with pytest.raises(DataError, match="is a file; a results table is a directory"):
        LegacyTable(file)
    with pytest.raises(OutputError, match="could not write"):
        LegacyTable(file / "below").append([_row()])
    assert file.read_text() == "mine"


def test_a_row_is_added_once(tmp_path: Path) -> None:
    table = LegacyTable(tmp_path, once=True)
    table.append([_row(identity="a"), _row(identity="b", seed=1)])
    LegacyTable(tmp_path, once=True).append([_row(identity="a", value=99.0)])
    assert "a" in table
    assert "c" not in table
    rows = table.rows()
    assert [(row["identity"], row["value"]) for row in rows] == [
        ("a", 12.5),
        ("b", 12.5),
    ]
    LegacyTable(tmp_path).append(
        [_row(identity="c")]
    )  # by hand, under a name of its time
    assert table.identities() == {"a", "b", "c"}
    with pytest.raises(ValueError, match="without identity"):
        table.append([_row()])


@pytest.mark.parametrize(
    ("version", "first_new"), [("1", "identity"), ("2", "source_given")]
)
def test_rows_of_older_versions_are_migrated(
    version: str, first_new: str, tmp_path: Path
) -> None:
    old = pa.schema(list(SCHEMA)[: SCHEMA.get_field_index(first_new)])
    old = old.with_metadata({"fastadv_schema": version})
    file = tmp_path / "old.parquet"
    pq.write_table(pa.Table.from_pylist([_row()], schema=old), file)
    before = file.read_bytes()
    table = LegacyTable(tmp_path)
    table.prepare()
    table.append([_row(seed=1, identity="x")])
    rows = table.rows()
    assert [list(row) for row in rows] == [SCHEMA.names] * 2
    assert sorted((row["seed"], row["identity"]) for row in rows) == [
        (0, None),
        (1, "x"),
    ]
    assert table.identities() == {"x"}
    assert file.read_bytes() == before
