"""Files beside the table: their bound, a full disk, what is deleted and what stays."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from result_rows import transfer_row

from fastadv.errors import ConfigError, DataError
from fastadv.results.kept import KeptFiles
from fastadv.results.row import AttackRecord
from fastadv.results.table import ResultsTable
from fastadv.results.verdicts import Verdicts, check_paired, read_verdicts

NOISE = np.random.default_rng(0).random(25_000)  # 200 kB that compress little


@contextlib.contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse to write more to a file, as it does when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_the_files_and_not_the_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = ResultsTable(tmp_path)
    caplog.set_level(logging.WARNING)
    with _files_of_at_most(100_000):
        found = table.kept.keep("abc", {"x": NOISE}, b"weights" * 20_000, limit=1e9)
        table.append([replace(transfer_row(identity="abc"), **found)])
    [row] = table.rows()
    assert (row.arrays, row.weights) == (None, None)
    assert "arrays: could not write" in str(row.not_kept)
    assert "weights: could not write" in str(row.not_kept)
    assert "the row abc keeps no arrays" in caplog.text
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert [name for name in left if not name.endswith(".parquet")] == []


def test_files_stay_within_their_bound(tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path)
    first = kept.keep("a", {"x": NOISE}, b"w" * 1000, limit=250_000)
    assert first["not_kept"] is None
    assert 180_000 < kept.size() < 250_000
    second = kept.keep("b", {"x": NOISE}, b"v" * 1000, limit=250_000)
    assert second["arrays"] is None
    assert second["weights"] is not None  # there was room for this one
    assert "would exceed `keep_limit`" in second["not_kept"]
    assert kept.size() < 250_000


def test_equal_weights_are_one_file(tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path)
    names = {kept.keep(row, {}, b"same", limit=1e6)["weights"] for row in "abc"}
    assert len(names) == 1
    assert kept.keep("d", {}, b"other", limit=1e6)["weights"] not in names
    assert kept.size() == len(b"same") + len(b"other")


def _kept_rows(table: ResultsTable) -> None:
    """Append two rows that share weights, and one with its own."""
    for identity, seed, weights in (("aa1", 0, b"x"), ("aa2", 1, b"x"), ("b", 2, b"y")):
        found = table.kept.keep(identity, {"v": np.arange(3)}, weights, limit=1e6)
        table.append([replace(transfer_row(identity=identity, seed=seed), **found)])


def test_what_another_row_needs_is_not_deleted(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path)
    _kept_rows(table)
    files = {row.identity: row.weights for row in table.rows()}
    assert table.forget("weights", seed=0)[0] == 0
    assert table.forget("weights", seed=[0, 1]) == (1, 1)
    assert table.forget("weights", "arrays", seed=2)[0] == 2
    assert not (tmp_path / "_weights" / str(files["aa1"])).exists()
    assert len(list((tmp_path / "_arrays").iterdir())) == 2
    assert {row.identity: row.weights for row in table.rows()} == files
    assert table.kept.places({"weights": files["b"]})["weights"].endswith("(deleted)")


def test_compaction_removes_old_files_that_no_row_names(tmp_path: Path) -> None:
    """As a process leaves them that is killed before it appends its row."""
    table = ResultsTable(tmp_path)
    _kept_rows(table)
    lost = [table.kept.keep(name, {"v": NOISE}, limit=1e6)["arrays"] for name in "cd"]
    day_before = time.time() - 25 * 3600
    for path in [*(tmp_path / "_weights").iterdir(), tmp_path / "_arrays" / lost[0]]:
        os.utime(path, (day_before, day_before))
    table.compact()
    names = {path.name for path in (tmp_path / "_arrays").iterdir()}
    assert names == {"aa1.npz", "aa2.npz", "b.npz", lost[1]}
    assert len(list((tmp_path / "_weights").iterdir())) == 2


def test_rows_are_found_by_the_beginning_of_their_identity(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path)
    _kept_rows(table)
    assert [row.seed for row in table.find("b")] == [2]
    with pytest.raises(
        ConfigError, match=r"ambiguous: 2 rows .*\(aa1, aa2\); give more"
    ):
        table.find("aa")
    for begin in ("", "c"):
        with pytest.raises(ConfigError, match=r"no row of .* begins with"):
            table.find(begin)


def _verdicts(**changes: object) -> Verdicts:
    some = Verdicts(np.ones(3, bool), np.arange(3), np.arange(3), "digits")
    return replace(some, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_set": "pets"}, "different data sets"),
        ({"indices": np.arange(1, 4)}, "3 and 3 images, of which 2 are the same"),
        ({"labels": np.arange(3)[::-1]}, "disagree about the labels"),
    ],
)
def test_verdicts_on_other_images_are_no_pair(
    changes: dict[str, object], reason: str
) -> None:
    check_paired(_verdicts(), _verdicts(right=np.zeros(3, bool)))
    with pytest.raises(DataError, match=reason):
        check_paired(_verdicts(), _verdicts(**changes))


def test_verdicts_come_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path)
    arrays = {
        "labels": np.array([5, 6, 7], np.int32),
        "indices": np.array([2, 0, 1], np.int32),
        "fell_to": np.array([-1, 0, 2], np.int8),
        "image_set": np.array("digits"),
        "attacks": np.array(["apgd-ce", "square"]),
    }
    name = table.save_arrays("a", arrays)
    clean = read_verdicts(table.arrays, transfer_row(identity="a", arrays=name))
    assert clean.indices.tolist() == [0, 1, 2]
    assert clean.labels.tolist() == [6, 7, 5]
    assert clean.right.tolist() == [True, True, False]
    attack = AttackRecord(name="autoattack")
    robust = transfer_row(identity="a", arrays=name, attack=attack)
    assert read_verdicts(table.arrays, robust).right.tolist() == [False, True, False]


def test_verdicts_that_do_not_name_their_images_are_refused(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path)
    name = table.save_arrays("a", {"labels": np.arange(2), "fell_to": np.arange(2)})
    with pytest.raises(DataError, match="an older version wrote them"):
        read_verdicts(table.arrays, transfer_row(identity="a", arrays=name))
    with pytest.raises(DataError, match="has no verdicts on single images"):
        read_verdicts(table.arrays, transfer_row(identity="a"))
