"""A log of events that survives being killed: one JSON object per line, only appended."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from fastadv.errors import CheckpointError


class EventLog:
    """Events in a file of JSON lines.

    Args:
        path: the file, made by the first event; its folder must exist.
        sync: make each event durable before `append` returns.
    """

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self.path = path
        self.sync = sync

    def append(self, event: str, **values: Any) -> None:
        """Add one event, with the time.

        Raises:
            CheckpointError: it cannot be written.
        """
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        try:
            with open(self.path, "a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # torn by a crash or a full disk
                        line = "\n" + line
                file.write(line.encode() + b"\n")
                if self.sync:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(
                f"could not write {self.path}: {error.strerror or error}"
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """All events so far, oldest first; a line torn by a crash is left out.

        Raises:
            CheckpointError: it is there and cannot be read.
        """
        try:
            text = self.path.read_text(errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"could not read {self.path}: {error.strerror or error}"
            ) from error
        events = []
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return events
