"""Merged parts: no row is lost, doubled or overlooked, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from result_rows import evaluation_row, transfer_row
from small_runs import environment

from fastadv.errors import DataError, OutputError
from fastadv.results import parts
from fastadv.results.table import ResultsTable

TABLES = Path(__file__).parent / "tables"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "GRACE", 0.02)


def _files(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.glob("*.parquet"))


def _seeds(folder: Path) -> list[int]:
    return sorted(row.seed for row in ResultsTable(folder).rows())


def test_many_parts_become_few_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MANY", 8)
    table = ResultsTable(tmp_path)
    rows = [transfer_row(seed=0), evaluation_row(seed=1)]
    table.append(rows)
    for seed in range(2, 60):
        table.append([evaluation_row(seed=seed)])
    assert len(_files(tmp_path)) < 8 + 6  # those to come, and powers of two
    assert "merged" in _files(tmp_path)
    found = ResultsTable(tmp_path).rows()
    assert found[:2] == rows
    assert [row.seed for row in found] == list(range(60))  # still oldest first
    assert ResultsTable(tmp_path).compact() > 1
    assert _files(tmp_path) == ["merged"]
    assert ResultsTable(tmp_path).rows() == found
    assert ResultsTable(tmp_path).compact() == 0


def test_older_tables_are_merged_when_that_is_asked_for(tmp_path: Path) -> None:
    for file in (TABLES / "schema3").glob("*.parquet"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = ResultsTable(tmp_path)
    before = table.rows()
    assert parts.merge(tmp_path) == 0
    assert table.compact() == 2
    assert _files(tmp_path) == ["merged"]
    assert ResultsTable(tmp_path).rows() == before


def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ResultsTable(tmp_path)
    for seed in range(3):
        table.append([transfer_row(seed=seed)])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            table.append([transfer_row(seed=9)])
        with pytest.raises(OutputError, match="No space left"):
            table.compact()
    assert _seeds(tmp_path) == [0, 1, 2]
    assert list(tmp_path.glob(".*.tmp")) == []
    assert table.compact() == 3


def test_an_append_does_not_fail_for_a_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parts, "MANY", 2)
    real = parts.write_atomic

    def full(path: Path, data: bytes) -> None:
        if path.name.startswith("merged"):
            raise OutputError("could not write: No space left on device")
        real(path, data)

    monkeypatch.setattr(parts, "write_atomic", full)
    table = ResultsTable(tmp_path)
    for seed in range(3):
        table.append([transfer_row(seed=seed)])
    assert _seeds(tmp_path) == [0, 1, 2]
    assert "were not merged: could not write" in caplog.text


def test_an_append_does_not_fail_for_a_damaged_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parts, "MANY", 2)
    damaged = tmp_path / f"{parts.new_name('part')}.parquet"
    damaged.write_bytes(b"PAR1 cut short")
    table = ResultsTable(tmp_path)
    for seed in range(3):
        table.append([transfer_row(seed=seed)])
    assert "were not merged" in caplog.text
    damaged.unlink()
    assert _seeds(tmp_path) == [0, 1, 2]


def test_a_foreign_file_does_not_cost_a_row(tmp_path: Path) -> None:
    (tmp_path / "foreign.parquet").write_bytes(b"not parquet")
    table = ResultsTable(tmp_path, once=True)
    table.append([transfer_row(identity="a")])
    with pytest.raises(DataError, match=r"foreign\.parquet cannot be read"):
        table.compact()
    assert _files(tmp_path) == ["foreign.parquet", "once"]
    (tmp_path / "foreign.parquet").unlink()
    assert ResultsTable(tmp_path).identities() == {"a"}


# ---- every interleaving of appends, merges and deaths ----

# A step is an append, by a writer that looks what is there or did so before, or a merge:
# what happens after it read its input, after it wrote its output, and how many files it
# removes before it is killed (-1: it is killed before it writes).
_APPEND = st.tuples(st.sampled_from(["part", "once", "blind"]), st.integers(0, 3))
_STEPS = st.recursive(
    st.lists(_APPEND, max_size=4),
    lambda inner: st.lists(
        st.one_of(
            _APPEND,
            st.tuples(
                st.just("merge"),
                st.booleans(),
                inner,
                inner,
                st.sampled_from([-1, 0, 1, 99]),
            ),
        ),
        max_size=5,
    ),
    max_leaves=12,
)


class _KilledError(BaseException):
    """Stands for kill -9: nothing that handles errors handles it."""


class _World:
    """A folder, and what must be in it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = patch
        self.appended = 0
        self.once: set[str] = set()

    def run(self, steps: list[Any]) -> None:
        for step in steps:
            if step[0] == "merge":
                self.merge(*step[1:])
            else:
                self.append(*step)
            self.check()

    def append(self, how: str, name: int) -> None:
        if how == "part":
            ResultsTable(self.folder).append([transfer_row(seed=100 + self.appended)])
            self.appended += 1
            return
        identities = [f"{name}", f"{name + 1}"][: 1 + name % 2]
        table = ResultsTable(self.folder, once=True)
        with self.patch.context() as patch:
            if how == "blind":  # it looked before the others wrote
                patch.setattr(ResultsTable, "__contains__", lambda table, row: False)
            table.append([transfer_row(identity=i, seed=int(i)) for i in identities])
        self.once |= set(identities)

    def merge(
        self,
        everything: bool,
        after_reading: list[Any],
        after_writing: list[Any],
        kept: int,
    ) -> None:
        write, unlink = parts.write, Path.unlink
        removed = 0

        def writing(folder: Path, name: str, rows: Any) -> None:
            restored()
            self.run(after_reading)
            if kept < 0:
                raise _KilledError
            write(folder, name, rows)
            self.run(after_writing)
            patched()

        def unlinking(path: Path, missing_ok: bool = False) -> None:
            nonlocal removed
            if removed == kept and path.suffix == ".parquet":
                raise _KilledError
            removed += path.suffix == ".parquet"
            unlink(path, missing_ok)

        def patched() -> None:
            self.patch.setattr(Path, "unlink", unlinking)

        def restored() -> None:
            self.patch.setattr(parts, "write", write)
            self.patch.setattr(Path, "unlink", unlink)

        self.patch.setattr(parts, "write", writing)
        try:
            parts.merge(self.folder, everything=everything)
        except _KilledError:
            pass
        finally:
            restored()

    def check(self) -> None:
        rows = ResultsTable(self.folder).rows()
        seeds = sorted(row.seed for row in rows if row.identity is None)
        assert seeds == [100 + number for number in range(self.appended)]
        identities = sorted(row.identity for row in rows if row.identity is not None)
        assert identities == sorted(self.once)
        table = ResultsTable(self.folder, once=True)
        assert table.identities() == self.once
        assert all(identity in table for identity in self.once)


@settings(max_examples=60, deadline=None)
@given(steps=_STEPS)
def test_no_order_of_events_loses_or_doubles_a_row(
    steps: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "GRACE", 0.002)
        folder = tmp_path_factory.mktemp("table")
        world = _World(folder, patch)
        world.run([*steps, ("merge", True, [], [], 99)])
        assert len(list(folder.glob("*.parquet"))) <= 1


def test_threads_read_write_and_merge_at_once(tmp_path: Path) -> None:
    """Within a process, the lock excludes nobody: the merges really collide."""
    until = time.monotonic() + 3
    written: list[int] = []
    errors: list[BaseException] = []

    def repeat(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                while time.monotonic() < until and not errors:
                    work()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    numbers: Iterator[int] = iter(range(100_000))

    def write() -> None:
        number = next(numbers)
        ResultsTable(tmp_path).append([transfer_row(seed=number)])
        written.append(number)

    def look() -> None:
        before = set(written)
        found = [each["seed"] for each in ResultsTable(tmp_path).columns("seed")]
        assert len(found) == len(set(found))
        assert before <= set(found)

    def merge() -> None:
        parts.merge(tmp_path, everything=random.random() < 0.3)

    for thread in [repeat(work) for work in (write, write, look, merge, merge)]:
        thread.join()
    assert not errors, errors
    assert _seeds(tmp_path) == sorted(written)


_WRITER = """
import sys
from fastadv.results import parts
parts.GRACE, parts.MANY = 0.02, 4
sys.path.insert(0, sys.argv[3])
from fastadv.results.table import ResultsTable
from result_rows import transfer_row
first = int(sys.argv[2])
for seed in range(first, first + 10_000):
    once = seed % 2 == 0
    row = transfer_row(seed=seed, identity=str(seed))
    ResultsTable(sys.argv[1], once=once).append([row])
    print(seed, flush=True)
"""


def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    """Two writers that also merge; one is killed and started again all the time."""

    def start(first: int) -> subprocess.Popen[str]:
        helpers = str(Path(__file__).parents[1] / "helpers")
        words = [
            sys.executable,
            "-c",
            _WRITER,
            str(tmp_path / "t"),
            str(first),
            helpers,
        ]
        return subprocess.Popen(
            words, env=environment(), stdout=subprocess.PIPE, text=True
        )

    draw = random.Random(3)
    other = start(1_000_000)
    said: set[int] = set()
    for life in range(4):
        writer = start(10_000 * life)
        assert writer.stdout is not None
        said |= {int(writer.stdout.readline()) for _ in range(3)}
        time.sleep(draw.uniform(0, 0.3))
        writer.kill()
        said |= {int(line) for line in writer.stdout}
        writer.wait()
    other.kill()
    assert other.stdout is not None
    said |= {int(line) for line in other.stdout}
    other.wait()
    found = _seeds(tmp_path / "t")
    assert len(found) == len(set(found))
    # At most the row that each was about to tell of is more than what they told.
    assert said <= set(found)
    assert len(found) <= len(said) + 5
    assert ResultsTable(tmp_path / "t").compact() > 1
    assert _seeds(tmp_path / "t") == found
