"""Arrays beside the table: they come back, and nothing in them is executed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from result_rows import transfer_row

from fastadv.errors import DataError
from fastadv.results.table import ResultsTable


def test_arrays_come_back(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path)
    arrays = {
        "logits": np.arange(6, dtype=np.float32).reshape(2, 3),
        "right": np.array([True, False]),
        "names": np.array(["a", "b"]),
    }
    name = table.save_arrays("abc", arrays)
    table.append(
        [transfer_row(identity="abc", arrays=name), transfer_row(identity="d")]
    )
    first, second = table.rows()
    found = ResultsTable(tmp_path).arrays(first)
    assert sorted(found) == sorted(arrays)
    for key, values in arrays.items():
        assert found[key].dtype == values.dtype
        np.testing.assert_array_equal(found[key], values)
    assert table.arrays(second) == {}
    # Others still read the folder, and a merge leaves the arrays alone.
    assert len(pd.read_parquet(tmp_path)) == 2
    table.append([transfer_row()])
    table.compact()
    assert sorted(table.arrays(table.rows()[0])) == sorted(arrays)


def test_no_object_is_pickled_or_unpickled(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path)
    with pytest.raises(ValueError, match="not Python objects"):
        table.save_arrays("abc", {"x": np.array([{}, []], dtype=object)})
    assert not (tmp_path / "_arrays").exists()
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([{}], dtype=object))
    (tmp_path / "_arrays").mkdir()
    (tmp_path / "_arrays" / "abc.npz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"abc\.npz, cannot be read.*allow_pickle"):
        table.arrays(transfer_row(arrays="abc.npz"))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short", None])
def test_damaged_arrays_are_said_to_be(tmp_path: Path, damage: bytes | None) -> None:
    table = ResultsTable(tmp_path)
    name = table.save_arrays("abc", {"x": np.zeros(3)})
    file = tmp_path / "_arrays" / name
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(DataError, match="cannot be read"):
        table.arrays(transfer_row(arrays=name))


@pytest.mark.parametrize("name", ["../secret.npz", "/etc/passwd", "a/b.npz", ".."])
def test_a_row_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a file of arrays"):
        ResultsTable(tmp_path).arrays(transfer_row(arrays=name))
