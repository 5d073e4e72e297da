"""The journal of an evaluation: verdicts on finished batches, from which it resumes."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadv.attacks.checks import Checks
from fastadv.errors import ConfigError
from fastadv.evaluation.accuracy import BatchVerdict
from fastadv.results.identity import digest
from fastadv.runs.eventlog import EventLog, refuse_changes

_LOGITS = ("clean_logits", "attacked_logits")


class Journal:
    """Verdicts on finished batches on disk, so that an evaluation can be resumed.

    Logits are stored as base64 text of little-endian float32 numbers. Journals without
    logits can be resumed, too.

    Args:
        folder: Folder that holds `log.jsonl`, or will hold it.
        settings: Everything that the verdicts depend on, as plain values: hash of the
            weights, data, batch size, attack. A journal of other settings is refused.
        resume: Whether to continue an evaluation that is already there.

    Attributes:
        verdicts: Verdicts by the number of the batch.

    Raises:
        ConfigError: The folder holds an evaluation and `resume` is false, or one of other
            settings, or something else.
        CheckpointError: The file cannot be read.
        OutputError: The file cannot be written.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], *, resume: bool = False
    ) -> None:
        self._log = EventLog(folder / "log.jsonl", sync=True)
        self.verdicts: dict[int, BatchVerdict] = {}
        settings = json.loads(json.dumps(settings))  # tuples become lists, as on disk
        events = self._log.read()
        if not events:
            self._log.append("start", settings=settings)
            return
        if "settings" not in events[0]:
            raise ConfigError(
                f"{folder} holds something else than an evaluation; choose another `out`"
            )
        if not resume:
            raise ConfigError(
                f"{folder} already holds an evaluation; add `resume` to continue it, or "
                "choose another `out`"
            )
        refuse_changes(folder, events[0]["settings"], settings)
        for event in events:
            if event["event"] == "batch":
                self.verdicts[event["number"]] = _verdict(event)

    def add(self, number: int, verdict: BatchVerdict) -> None:
        """Store the verdict on batch `number` durably."""
        self.verdicts[number] = verdict
        plain = asdict(replace(verdict, clean_logits=None, attacked_logits=None))
        logits = {name: _to_text(getattr(verdict, name)) for name in _LOGITS}
        self._log.append("batch", number=number, **plain | logits)

    def finish(self, result: dict[str, Any]) -> None:
        """Store the result of the whole evaluation."""
        self._log.append("result", **result)


class KeptJournal:
    """Opens a journal beside a results table, for an evaluation without a folder of its own.

    The same evaluation finds it again after an interruption, and goes on by itself.

    Args:
        table: The folder of the table.
    """

    def __init__(self, table: Path) -> None:
        # Readers of Parquet data sets pass over names that begin with an underscore.
        self._journals = table / "_journals"
        self._folder: Path | None = None

    def __call__(self, settings: dict[str, Any]) -> Journal:
        """Open the journal of an evaluation with these settings."""
        self._folder = self._journals / digest(settings)
        return Journal(self._folder, settings, resume=True)

    def remove(self) -> None:
        """Remove the journal, once the rows are in the table."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # of other evaluations
                self._journals.rmdir()


def _verdict(event: dict[str, Any]) -> BatchVerdict:
    """Return the verdict that an event holds; older journals lack a few of its fields."""
    values = {f.name: event[f.name] for f in fields(BatchVerdict) if f.name in event}
    if values["checks"] is not None:
        values["checks"] = Checks(**values["checks"])
    for name in _LOGITS:
        if values.get(name) is not None:
            numbers = np.frombuffer(base64.b64decode(values[name]), "<f4")
            shape = len(values["labels"]), values["num_classes"]
            values[name] = torch.from_numpy(numbers.astype(np.float32)).view(shape)
    return BatchVerdict(**values)


def _to_text(logits: Tensor | None) -> str | None:
    if logits is None:
        return None
    return base64.b64encode(logits.numpy().astype("<f4").tobytes()).decode()
