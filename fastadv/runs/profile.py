"""Profiles of training steps: the time of each phase, and a trace of a few steps.

Some steps are timed by the phases they enter (see `fastadv.phases`), then a few more run
under torch's profiler, which slows them and so is kept out of the table. On the CPU times
are wall time. On CUDA they are measured by events on the stream, so that a share is time
of the device: loading a batch while the device is busy costs nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastadv.files import write_atomic
from fastadv.phases import marked
from fastadv.text_tables import text_table

WARMUP = 3  # untimed steps first, in which allocators, tuners and CUDA graphs settle
TRACED = 2  # steps in the trace: enough to see one follow the other
OTHER = "other"
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


class PhaseTimer:
    """Times the phases of steps; a step reaches from one boundary to the next.

    Args:
        device: The device that the steps run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._open = [OTHER]  # phases, each within the one before it
        # The times at which the innermost phase changed, and what it was from then on.
        self._changes: list[tuple[_Stamp, str]] = []
        self._steps: list[list[tuple[_Stamp, str]]] = []
        self._change()

    def __len__(self) -> int:
        return len(self._steps)

    def boundary(self, *, counted: bool) -> None:
        """End a step and begin the next; a step that is not `counted` is dropped."""
        self._change()
        if counted:
            self._steps.append(self._changes)
        self._changes = self._changes[-1:]

    @contextlib.contextmanager
    def mark(self, name: str) -> Iterator[None]:
        """Time one phase; this is a marker for `fastadv.phases.marked`."""
        if self._cuda and torch.cuda.is_current_stream_capturing():
            yield  # the recorded graph runs later: only its replay is timed
            return
        # The time of the attack that is not in its inner phases has a name of its own.
        self._open.append("attack, rest" if name == "attack" else name)
        self._change()
        try:
            yield
        finally:
            self._open.pop()
            self._change()

    def seconds(self) -> dict[str, float]:
        """Return the mean seconds of a step in each phase, and outside of all ("other").

        The values add up to the mean step. This waits for the device.
        """
        if self._cuda:
            torch.cuda.synchronize()
        sums = dict.fromkeys(_ORDER, 0.0)
        for step in self._steps:
            for (begin, name), (end, _) in itertools.pairwise(step):
                if isinstance(begin, float) and isinstance(end, float):
                    spent = end - begin
                else:  # CUDA events, in milliseconds
                    spent = begin.elapsed_time(end) / 1e3  # type: ignore[union-attr, arg-type]
                sums[name] = sums.get(name, 0.0) + spent
        sums[OTHER] = sums.pop(OTHER, 0.0)  # the last
        count = max(len(self._steps), 1)
        return {name: value / count for name, value in sums.items()}

    def _change(self) -> None:
        now: _Stamp = time.perf_counter()
        if self._cuda:
            now = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record()
        self._changes.append((now, self._open[-1]))


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
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._trace = torch.profiler.profile(activities=activities)
            self._trace.start()
            self._marks.enter_context(marked(torch.profiler.record_function))
        elif done == self.steps + TRACED:
            self.close()

    def close(self) -> None:
        """Write the results so far, if the run was shorter than the profile."""
        if self._timer is not None:
            self._write()
        elif self.steps and self._seen < WARMUP:
            self.note(f"`profile`: the run ended within the {WARMUP} steps of warm-up")
        self.steps = 0
        self._marks.close()
        if self._trace is not None:
            self._trace.stop()
            path = self.folder / "trace.json"
            self._trace.export_chrome_trace(str(path))
            self._trace = None
            self.note(f"trace of {TRACED} steps, for chrome://tracing: {path}")

    def _write(self) -> None:
        timer, self._timer = self._timer, None
        self._marks.close()
        if timer is None or not len(timer):
            return
        found = summary(timer.seconds(), len(timer), self.batch_size)
        path = self.folder / "profile.json"
        write_atomic(path, json.dumps(found, indent=1).encode())
        rows = [
            [name, f"{1e3 * found['seconds'][name]:.2f}", f"{100 * share:.1f} %"]
            for name, share in found["shares"].items()
        ]
        rows.append(["step", f"{1e3 * found['step_seconds']:.2f}", "100.0 %"])
        title = f"where a step went (mean of {len(timer)}, batch {self.batch_size})"
        self.note(f"{title}\n{text_table(['phase', 'ms', 'share'], rows)}")


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
