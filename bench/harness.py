"""How every benchmark here measures: interleaved repeats, medians with their spread, one
JSON line per row with what it was measured on. Nothing else may run meanwhile.

On the CPU a repeat is wall time, with the process's CPU time beside it. On a GPU it is the
time between two events on the stream, with the time that the host took to launch the work
beside it: `device_timing` for kernels of microseconds, which the host could not launch as
fast as they run, `interleaved` for the rest.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fastadv.environment import provenance

RESULTS = Path(os.environ.get("FASTADV_BENCH", Path(__file__).parent / "results"))
# Cycles for which a GPU is kept busy before what is timed, so that the host is ahead of it.
_HEAD_START = 2_000_000
# Buffers that are used in turn hold this many times what the L2 cache of a GPU does.
_EVICTING = 4


@dataclass(frozen=True)
class Timing:
    """Seconds of one call over the repeats.

    `cpu` is the time of all threads, empty on a GPU; `host` is how long a call took to
    return there, empty on the CPU.
    """

    seconds: tuple[float, ...]
    cpu: tuple[float, ...] = ()
    host: tuple[float, ...] = ()

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
    """Return wall and CPU time of a call; on a GPU its time there and that of the host."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_HEAD_START)
        start.record()
        began = time.perf_counter()
        call()
        host = time.perf_counter() - began
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, host
    began, worked = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - worked


def buffer_sets(moved: int, device: torch.device) -> int:
    """Return how many sets of buffers, each of `moved` bytes, no cache holds together."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, -(-_EVICTING * cache // max(moved, 1)))


def device_timing(
    calls: Sequence[Callable[[], object]], *, repeats: int, device: torch.device
) -> Timing:
    """Time one call of kernels alone: a CUDA graph of all `calls`, replayed.

    Args:
        calls: The same job on other buffers each time (`buffer_sets`), so that every one
            finds cold caches.
        repeats: Number of replays that count; two more go before.
        device: A CUDA device. On the CPU all calls are made `repeats` times.
    """
    for call in calls:  # compiles, tunes and allocates
        call()
    if device.type != "cuda":
        parts = [
            _once(lambda: [call() for call in calls], device) for _ in range(repeats)
        ]
        wall, cpu = zip(*parts, strict=True)
        return Timing(
            tuple(s / len(calls) for s in wall), tuple(s / len(calls) for s in cpu)
        )
    torch.cuda.synchronize()
    began = time.perf_counter()
    for call in calls:
        call()
    host = (time.perf_counter() - began) / len(calls)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = [_once(graph.replay, device)[0] / len(calls) for _ in range(repeats + 2)]
    return Timing(tuple(times[2:]), host=(host,))


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
    found = {}
    for name, values in repeated.items():
        seconds, other = zip(*values, strict=True)
        on_gpu = device.type == "cuda"
        found[name] = Timing(seconds, **{"host" if on_gpu else "cpu": other})
    return found


def ratio(other: Timing, ours: Timing) -> tuple[float, float, float]:
    """How many times faster `ours` is: of the medians, and the spread of the pairs."""
    pairs = [a / b for a, b in zip(other.seconds, ours.seconds, strict=True)]
    return other.median / ours.median, min(pairs), max(pairs)


class Results:
    """Rows of one benchmark run, in `results/NAME.jsonl`, which is replaced as a whole.

    The file holds every row as soon as it is added, so that a run that is cut leaves those
    that it had. The variable FASTADV_BENCH names another folder.
    """

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
        row = self._about | rounded
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a" if self.rows else "w") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)

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
            host_seconds=statistics.median(timing.host) if timing.host else None,
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
        """Say where the rows are."""
        print(f"{len(self.rows)} rows in {self.path}")
