"""How every benchmark here measures: interleaved repeats, medians with their spread, one
JSON line per row with what it was measured on. Nothing else may run meanwhile.

On the CPU a repeat is wall time, with the process's CPU time beside it; on a GPU, time
between two events on the stream.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fastadv.environment import provenance

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of one call over the repeats; `cpu` of all threads, empty on a GPU."""

    seconds: tuple[float, ...]
    cpu: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        return min(self.seconds)

    @property
    def high(self) -> float:
        return max(self.seconds)


def _once(call: Callable[[], object], device: torch.device) -> tuple[float, ...]:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return (start.elapsed_time(end) / 1e3,)
    began, worked = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - worked


def interleaved(
    cases: dict[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 2,
    device: str | torch.device = "cpu",
) -> dict[str, Timing]:
    """Time every case `repeats` times, in turn, so that drift hits all of them alike."""
    device = torch.device(device)
    for call in cases.values():
        for _ in range(warmup):
            call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    repeated: dict[str, list[tuple[float, ...]]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, call in cases.items():
            repeated[name].append(_once(call, device))
    return {
        name: Timing(*zip(*values, strict=True)) for name, values in repeated.items()
    }


def ratio(other: Timing, ours: Timing) -> tuple[float, float, float]:
    """How many times faster `ours` is: of the medians, and the spread of the pairs."""
    pairs = [a / b for a, b in zip(other.seconds, ours.seconds, strict=True)]
    return other.median / ours.median, min(pairs), max(pairs)


class Results:
    """Rows of one benchmark run, written to `results/NAME.jsonl` (replaced as a whole)."""

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f"{name}.jsonl"
        self.rows: list[dict[str, Any]] = []
        self._about = {
            "bench": name,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **provenance(),
        }

    def add(self, **values: Any) -> None:
        """Add a row; floats keep five significant digits."""
        rounded = {
            key: float(f"{value:.5g}") if isinstance(value, float) else value
            for key, value in values.items()
        }
        self.rows.append(self._about | rounded)

    def compare(
        self, what: str, timing: Timing, mine: Timing, *, images: int, **values: Any
    ) -> None:
        """Add and print the row of a case that `mine` is compared with.

        `values` are its further entries, and `images` the number of images of a repeat.
        """
        faster, low, high = ratio(timing, mine)
        self.add(
            **values,
            what=what,
            seconds=timing.median,
            seconds_range=[round(timing.low, 4), round(timing.high, 4)],
            cpu_seconds=statistics.median(timing.cpu) if timing.cpu else None,
            images_per_s=images / timing.median,
            times_ours=faster,
            times_ours_range=[round(low, 3), round(high, 3)],
            repeats=len(timing.seconds),
        )
        print(
            f"{values.get('arch', '')} {what:20}{timing.median:8.3f} s [{timing.low:.3f}, "
            f"{timing.high:.3f}]{images / timing.median:8.2f} images/s   "
            f"{faster:.2f} x [{low:.2f}, {high:.2f}]",
            flush=True,
        )

    def write(self) -> None:
        """Write all rows."""
        self.path.parent.mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        self.path.write_text(lines)
        print(f"{len(self.rows)} rows in {self.path}")
