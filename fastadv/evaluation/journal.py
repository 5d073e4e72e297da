"""Verdicts on finished batches, on disk: what makes an evaluation resumable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastadv.attacks.checks import Checks
from fastadv.errors import ConfigError
from fastadv.runs.eventlog import EventLog, refuse_changes


@dataclass(frozen=True)
class BatchVerdict:
    """What happened to the images of one batch, in plain values.

    Attributes:
        labels: class ids.
        fell_to: of each image, the index of the attack that broke it; -1: it was
            misclassified without one; the number of attacks: it held.
        seconds: wall time of each attack.
        nonfinite: gradient elements that were not finite.
        checks: what was found, if it was looked for.
    """

    labels: list[int]
    fell_to: list[int]
    seconds: list[float]
    nonfinite: int = 0
    checks: Checks | None = None


class Journal:
    """Verdicts on finished batches, on disk: an evaluation that can be resumed.

    Args:
        folder: where `log.jsonl` is, or will be.
        settings: everything the verdicts depend on, as plain values: hash of the
            weights, data, batch size, attack. A journal of other settings is refused.
        resume: go on with what is there.

    Attributes:
        verdicts: by number of the batch.

    Raises:
        ConfigError: the folder holds an evaluation and `resume` was not asked for, or
            one of other settings, or something else.
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
                f"{folder} holds something else than an evaluation; choose another --out"
            )
        if not resume:
            raise ConfigError(
                f"{folder} already holds an evaluation; add --resume to continue it, or "
                "choose another --out"
            )
        refuse_changes(folder, events[0]["settings"], settings)
        for event in events:
            if event["event"] == "batch":
                checks = event["checks"] and Checks(**event["checks"])
                values = {f.name: event[f.name] for f in fields(BatchVerdict)}
                self.verdicts[event["number"]] = BatchVerdict(
                    **values | {"checks": checks}
                )

    def add(self, number: int, verdict: BatchVerdict) -> None:
        """Make the verdict on batch `number` durable."""
        self.verdicts[number] = verdict
        self._log.append("batch", number=number, **asdict(verdict))

    def finish(self, result: dict[str, Any]) -> None:
        """Add what came out."""
        self._log.append("result", **result)
