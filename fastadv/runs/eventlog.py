"""A log of events that survives being killed: one JSON object per line, only appended."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastadv.errors import CheckpointError, ConfigError, OutputError


class EventLog:
    """Events in a file of JSON lines.

    Args:
        path: The file, which is made by the first event, with its folder.
        sync: Whether `append` returns only when the event is durable.
    """

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self.path = path
        self.sync = sync

    def append(self, event: str, **values: Any) -> None:
        """Add one event, with the time.

        Raises:
            OutputError: The file cannot be written.
        """
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
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
            raise OutputError(
                f"could not write {self.path}: {error.strerror or error}"
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """Return all events so far, oldest first, without a line that a crash tore.

        Raises:
            CheckpointError: The file exists and cannot be read.
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


def refuse_changes(
    folder: Path, saved: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Refuse to continue the run in `folder` with other choices than it began with.

    Raises:
        ConfigError: The choices `saved` and `given` differ; the message lists how.
    """
    changed = [
        f"{key}: {saved.get(key)} -> {given.get(key)}"
        for key in {**saved, **given}
        if saved.get(key) != given.get(key)
    ]
    if changed:
        raise ConfigError(
            f"`resume` would change what {folder} computes ({', '.join(changed)}); "
            "resume with the same choices, or start another `out`"
        )
