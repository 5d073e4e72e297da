"""Progress that a person can read: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, TextIO, TypeVar

Item = TypeVar("Item")

_BAR = 20  # characters


def clock(seconds: float) -> str:
    """Write a duration as minutes and seconds, or hours, minutes and seconds.

    Example:
        >>> clock(75), clock(4000)
        ('1:15', '1:06:40')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Progress:
    """One line that is rewritten on a terminal, or printed now and then elsewhere.

    Args:
        total: Number of steps in all.
        done: Steps that an earlier process did; they do not count for the ETA.
        stream: Where the line is written; None writes to stderr.
        every: Seconds between lines where the stream is no terminal.
        delay: Seconds before anything is shown, so that quick work stays silent.
    """

    # Commands set it to `errors.in_flags`: notes name arguments as messages of errors do.
    wording: ClassVar[Callable[[str], str]] = str

    def __init__(
        self,
        total: int,
        done: int = 0,
        stream: TextIO | None = None,
        every: float = 15.0,
        delay: float = 0.0,
    ) -> None:
        self.total, self.first = total, done
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every = 0.2 if self.live else every
        self.started = time.monotonic()
        self._due = self.started + delay
        self._width = 0

    def update(self, done: int, text: str) -> None:
        """Show `text` with the share done and the time left, if a line is due.

        Without a delay the first update is shown at once: no silent first minute.
        """
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self.every
        fresh, eta = done - self.first, "?"
        if fresh:
            eta = clock((now - self.started) / fresh * (self.total - done))
        line = f"{done}/{self.total} ETA {eta} {text}"
        if not self.live:
            print(line, file=self.stream, flush=True)
            return
        filled = round(_BAR * done / max(self.total, 1))
        line = f"[{'#' * filled}{'.' * (_BAR - filled)}] {line}"
        # A line that wraps could not be rewritten.
        line = line[: shutil.get_terminal_size().columns - 1]
        padding = " " * max(0, self._width - len(line))
        self._width = len(line)
        print(f"\r{line}{padding}", end="", file=self.stream, flush=True)

    def note(self, line: str) -> None:
        """Print a line that stays."""
        self.clear()
        print(Progress.wording(line), file=self.stream, flush=True)

    def clear(self) -> None:
        """Remove the bar from the terminal, where there is one."""
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=self.stream, flush=True)
            self._width = 0


def track(items: Iterable[Item], total: int, text: str) -> Iterator[Item]:
    """Yield `items`, with a bar on a terminal once that takes more than two seconds.

    Elsewhere nothing is written. Of the processes of one run on this machine, only the
    first shows the bar.

    Args:
        items: What is worked on.
        total: Number of items.
        text: What is being done, such as "checking files".
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" or not sys.stderr.isatty():
        yield from items
        return
    progress = Progress(total, delay=2.0)
    try:
        for number, item in enumerate(items, start=1):
            yield item
            progress.update(number, text)
    finally:
        progress.clear()
