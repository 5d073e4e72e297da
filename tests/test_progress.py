"""One kind of progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Iterator

import pytest

from fastadv.progress import Progress, track


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_fills_and_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((60, 24)))
    stream = _Terminal()
    progress = Progress(10, stream=stream)
    progress.every = 0
    for done in (1, 5, 10):
        progress.update(done, "x" * 100)
    lines = stream.getvalue().split("\r")[1:]
    assert [line.count("#") for line in lines] == [2, 10, 20]
    assert max(map(len, lines)) == 59
    assert "ETA" in lines[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Time in seconds, which passes only when a test says so."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    yield now
    monkeypatch.undo()


def test_lines_come_at_once_and_then_now_and_then(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = Progress(100, done=50, stream=stream, every=15)
    for done in range(51, 101):
        clock[0] += 1
        progress.update(done, "steps")
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["51/100 ETA 0:49 steps", "66/100 ETA 0:34 steps"]
    assert len(lines) == 4
    progress.note("done")
    assert stream.getvalue().endswith("done\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_only_slow_work_is_shown_and_on_terminals_only(
    terminal: bool, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in (0.1, 1.0):
        stream = _Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        done = []
        for item in track(range(10), 10, "checking files"):
            clock[0] += pause
            done.append(item)
        assert done == [*range(10)]
        shown = stream.getvalue()
        if not terminal or pause < 0.5:
            assert shown == ""
            continue
        assert shown.count("2/10 ETA") == 1
        assert shown.endswith("\r")  # the bar is gone
        assert "checking files" in shown


def test_one_process_of_a_run_shows_it_and_errors_pass(
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails() -> Iterator[int]:
        for number in itertools.count():
            clock[0] += 3
            if number == 2:
                raise OSError("gone")
            yield number

    for rank, shown in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        stream = _Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(OSError, match="gone"):
            list(track(fails(), 5, "reading"))
        assert ("1/5" in stream.getvalue()) == shown
