"""Profiles of training steps: the time of each phase, and a trace of a few steps.

Some steps are timed by the phases they enter (see `fastadv.phases`), then a few more run
under torch's profiler, which slows them and so is kept out of the table. On the CPU times
are wall time. On CUDA they are measured by events on the stream, so that a share is what
the device spent: loading a batch while the device is busy costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastadv.files import write_atomic
from fastadv.phases import marked
from fastadv.text_tables import text_table

WARMUP = 3  # untimed steps first, in which allocators, tuners and CUDA graphs settle
TRACED = 2  # steps in the trace: enough to see one follow the other
OTHER = "other"
# The time of a phase that is not in its inner phases has a name of its own.
_REST = {"attack": "attack, rest"}
_ORDER = (
    "data",
    "attack forward",
    "attack backward",
    "fused step",
    "attack, rest",
    "train",
    "optimiser",
    "sync",
)

_Stamp = float | torch.cuda.Event


@dataclass
class _Span:
    """One phase of one step, with the phases within it."""

    name: str
    begin: _Stamp
    end: _Stamp | None = None
    within: list[_Span] = field(default_factory=list)


class PhaseTimer:
    """Times the phases of steps; a step reaches from one boundary to the next.

    Args:
        device: The device that the steps run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._steps: list[_Span] = []
        self._open = [_Span("step", self._stamp())]

    def __len__(self) -> int:
        return len(self._steps)

    def boundary(self, *, counted: bool) -> None:
        """End a step and begin the next; a step that is not `counted` is dropped."""
        step = self._open[0]
        step.end = now = self._stamp()
        if counted:
            self._steps.append(step)
        self._open = [_Span("step", now)]

    @contextlib.contextmanager
    def mark(self, name: str) -> Iterator[None]:
        """Time one phase; this is a marker for `fastadv.phases.marked`."""
        if self._cuda and torch.cuda.is_current_stream_capturing():
            yield  # the recorded graph runs later: only its replay is timed
            return
        span = _Span(name, self._stamp())
        self._open[-1].within.append(span)
        self._open.append(span)
        try:
            yield
        finally:
            span.end = self._stamp()
            self._open.pop()

    def seconds(self) -> dict[str, float]:
        """Return the mean seconds of a step in each phase, and outside of all ("other").

        The values add up to the mean step. This waits for the device.
        """
        if self._cuda:
            torch.cuda.synchronize()
        sums = dict.fromkeys(_ORDER, 0.0)
        for step in self._steps:
            _add(step, sums)
        sums[OTHER] = sums.pop("step", 0.0)
        count = max(len(self._steps), 1)
        return {name: value / count for name, value in sums.items()}

    def _stamp(self) -> _Stamp:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _add(span: _Span, sums: dict[str, float]) -> float:
    """Add the seconds of `span` outside of its inner spans; return all its seconds."""
    begin, end = span.begin, span.end
    if isinstance(begin, float) and isinstance(end, float):
        spent = end - begin
    else:  # CUDA events, in milliseconds
        spent = begin.elapsed_time(end) / 1e3  # type: ignore[union-attr, arg-type]
    name = _REST.get(span.name, span.name)
    within = sum(_add(inner, sums) for inner in span.within)
    sums[name] = sums.get(name, 0.0) + spent - within
    return float(spent)


class StepProfile:
    """Times `steps` training steps of a run, traces `TRACED` more, writes both down.

    Args:
        folder: The folder for `profile.json` and `trace.json`; None profiles nothing.
        steps: Number of steps to time after `WARMUP` others; None profiles nothing.
        device: The device that the run trains on.
        batch_size: Number of images of a step.
        note: Is called with the results as text.
    """

    def __init__(
        self,
        folder: Path | None,
        steps: int | None,
        device: torch.device,
        batch_size: int,
        note: Callable[[str], None],
    ) -> None:
        self.folder = folder or Path()
        self.steps = steps if steps and folder else 0
        self.device, self.batch_size, self.note = device, batch_size, note
        self._seen = 0
        self._timer: PhaseTimer | None = None
        self._trace: torch.profiler.profile | None = None
        self._marks = contextlib.ExitStack()

    def begin_epoch(self) -> None:
        """Drop the time since the last step (validation, saving)."""
        if self._timer is not None:
            self._timer.boundary(counted=False)

    def end_step(self) -> None:
        """Count one more step, which has just ended."""
        if not self.steps:
            return
        self._seen += 1
        if self._timer is not None:
            self._timer.boundary(counted=True)
        done = self._seen - WARMUP
        if done == 0:
            self._timer = PhaseTimer(self.device)
            self._marks.enter_context(marked(self._timer.mark))
        elif done == self.steps:
            self._write()
            self._start_trace()
        elif done == self.steps + TRACED:
            self.close()

    def close(self) -> None:
        """Write the results so far, if the run was shorter than the profile."""
        if self._timer is not None:
            self._write()
        elif self.steps and self._seen < WARMUP:
            self.note(f"--profile: the run ended within the {WARMUP} steps of warm-up")
        self.steps = 0
        self._marks.close()
        if self._trace is not None:
            self._trace.stop()
            path = self.folder / "trace.json"
            self._trace.export_chrome_trace(str(path))
            self._trace = None
            self.note(f"trace of {TRACED} steps, for chrome://tracing: {path}")

    def _start_trace(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._trace = torch.profiler.profile(activities=activities)
        self._trace.start()
        self._marks.enter_context(marked(torch.profiler.record_function))

    def _write(self) -> None:
        timer, self._timer = self._timer, None
        self._marks.close()
        if timer is None or not len(timer):
            return
        found = summary(timer.seconds(), len(timer), self.batch_size)
        text = json.dumps(found, indent=1)
        write_atomic(self.folder / "profile.json", text.encode())
        self.note(as_text(found))


def summary(seconds: dict[str, float], steps: int, batch_size: int) -> dict[str, Any]:
    """Return plain values: seconds of each phase, and shares that add up to one."""
    whole = sum(seconds.values())
    return {
        "steps": steps,
        "batch_size": batch_size,
        "step_seconds": whole,
        "seconds": seconds,
        "shares": {name: value / whole for name, value in seconds.items()},
    }


def as_text(found: dict[str, Any]) -> str:
    """Return a `summary` as a table for a terminal."""
    rows = [
        [name, f"{1e3 * found['seconds'][name]:.2f}", f"{100 * share:.1f} %"]
        for name, share in found["shares"].items()
    ]
    rows.append(["step", f"{1e3 * found['step_seconds']:.2f}", "100.0 %"])
    title = f"where a step went (mean of {found['steps']}, batch {found['batch_size']})"
    return f"{title}\n{text_table(['phase', 'ms', 'share'], rows)}"
