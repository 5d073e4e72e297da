"""Tasks of any kind on the executors: finished, retried, given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from file_tasks import FolderTable, task

from fastadv.machine import usable_cores
from fastadv.runs.executors import SerialExecutor, make_executor
from fastadv.runs.tasks import Ended, Place, Task, run_task, run_tasks


def test_tasks_of_any_kind_run_in_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table: Any = FolderTable(tmp_path)
    names = ("a", "wrong", "breaks", "idle", "b")
    tasks = [task(tmp_path, name) for name in names]
    failures = run_tasks(tasks, SerialExecutor(), table, done=3, retries=2)
    assert {failure.task.name: failure.error for failure in failures} == {
        "task wrong": "the same would happen again",
        "task breaks": "KeyError: 'unexpected'",
        "task idle": "it left no row under its identity",
    }
    tries = [len((tmp_path / f"tries-{name}").read_text()) for name in names]
    assert tries == [1, 1, 3, 1, 1]  # only what may work another time is tried again
    assert (tmp_path / "b").exists()
    assert "8 ETA" in capsys.readouterr().err  # five tasks and the three rows before


def test_tasks_of_any_kind_run_in_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table: Any = FolderTable(tmp_path)
    executor = make_executor("processes", tmp_path, workers=2)
    tasks = [task(tmp_path, name) for name in ("a", "dies", "b", "wrong")]
    [failure] = run_tasks(tasks, executor, table, retries=1)
    assert failure.task is tasks[3]
    share = max(1, usable_cores() // 2)
    assert [(tmp_path / name).read_text() for name in ("a", "dies", "b")] == [
        str(share)
    ] * 3
    assert "again, its process died (SIGKILL)" in capsys.readouterr().err


def test_a_results_folder_out_of_sight(tmp_path: Path) -> None:
    ended = run_task(task(tmp_path / "elsewhere", "a"), Place())
    assert "does not see the results folder" in str(ended.error)
    assert not ended.crashed


class _TwoSlots(SerialExecutor):
    slots = 2

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Task] = []
        self.pairs: list[str] = []

    def start(self, task: Task) -> None:
        self.begun.append(task)

    def wait(self) -> list[Ended]:
        self.pairs.append(" ".join(each.identities[0] for each in self.begun))
        return [run_task(self.begun.pop(0), Place())]


def test_tasks_that_would_wait_for_each_other_do_not_run_side_by_side(
    tmp_path: Path,
) -> None:
    table: Any = FolderTable(tmp_path)
    names = (("a1", "a"), ("a2", "a"), ("b1", "b"), ("c", None), ("d", None))
    executor = _TwoSlots()
    tasks = [task(tmp_path, name, resource) for name, resource in names]
    assert run_tasks(tasks, executor, table) == []
    assert executor.pairs == ["a1 b1", "b1 a2", "a2 c", "c d", "d"]


def test_what_is_left_of_a_task(tmp_path: Path) -> None:
    whole = Task(print, None, str(tmp_path), ("a", "b"), "two rows")
    assert whole.without({"a", "b", "c"}) is None
    assert whole.without({"a"}) is whole
