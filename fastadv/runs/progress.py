"""Progress a person can read: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_BAR = 20  # characters


def clock(seconds: float) -> str:
    """`75` as `1:15`, `4000` as `1:06:40`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Progress:
    """One line that is rewritten on a terminal, or printed now and then elsewhere.

    Args:
        total: steps to be done in all.
        done: steps done before (by an earlier process); they do not count for the ETA.
        stream: where to; default stderr.
        every: seconds between lines where the stream is no terminal.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        stream: TextIO | None = None,
        every: float = 15.0,
    ) -> None:
        self.total, self.first, self.done = total, done, done
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every = 0.2 if self.live else every
        self.started = time.monotonic()
        self._shown = 0.0
        self._width = 0

    def update(self, done: int, text: str) -> None:
        """Show `text` with the share done and the time left, if it is time to."""
        self.done = done
        now = time.monotonic()
        first = done == self.first + 1  # never a silent minute: show the first at once
        if first or now - self._shown >= self.every:
            self._shown = now
            self._write(f"{self._share()} {text}")

    def _share(self) -> str:
        elapsed = time.monotonic() - self.started
        fresh = self.done - self.first
        filled = round(_BAR * self.done / max(self.total, 1))
        bar = f"[{'#' * filled}{'.' * (_BAR - filled)}] " if self.live else ""
        left = elapsed / fresh * (self.total - self.done) if fresh else 0.0
        eta = f"ETA {clock(left)}" if fresh else "ETA ?"
        return f"{bar}{self.done}/{self.total} {eta}"

    def _write(self, line: str) -> None:
        if not self.live:
            print(line, file=self.stream, flush=True)
            return
        # A line that wraps could not be rewritten.
        line = line[: shutil.get_terminal_size().columns - 1]
        padding = " " * max(0, self._width - len(line))
        self._width = len(line)
        print(f"\r{line}{padding}", end="", file=self.stream, flush=True)

    def note(self, line: str) -> None:
        """A line that stays."""
        if self.live and self._width:
            print(f"\r{' ' * self._width}\r", end="", file=self.stream)
            self._width = 0
        print(line, file=self.stream, flush=True)
