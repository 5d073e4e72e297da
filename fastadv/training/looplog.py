"""What the logs of all training loops share: events, progress, speed and divergence."""

from __future__ import annotations

import io
import time
from typing import Any, Generic, Protocol, TypeVar

import torch

from fastadv.environment import provenance
from fastadv.errors import TrainingDiverged
from fastadv.machine import resident_memory
from fastadv.progress import Progress
from fastadv.runs.directory import RunDirectory
from fastadv.runs.distributed import World


class LoopConfig(Protocol):
    """The choices of a run that its log reads."""

    @property
    def epochs(self) -> int:
        """Number of epochs."""

    @property
    def lr(self) -> float | None:
        """Learning rate; a run has chosen one where none was given."""

    @property
    def resume(self) -> bool:
        """Whether a run is continued where there is one."""

    def to_dict(self) -> dict[str, Any]:
        """Return all choices as plain values."""


class MeasuredInterval(Protocol):
    """The steps since the last "train" event."""

    images: int
    began: float

    def read(self, last_step: int, world: World) -> dict[str, float]:
        """Return their means over all ranks."""


Config = TypeVar("Config", bound=LoopConfig)


def memory_in_use(device: torch.device, *, peak: bool = False) -> int:
    """Return the bytes allocated on a CUDA device, else the memory of this process."""
    if device.type != "cuda":
        return resident_memory(peak)
    used = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
    return used(device)


class LoopLog(Generic[Config]):
    """The log and the progress of one run; only the first of several ranks shows them.

    Args:
        config: The choices of the run.
        run: The run directory, which holds the log.
        world: The ranks.
        total_steps: Number of training steps of the whole run.
    """

    also = ""
    """What else helps against divergence, in its message."""

    def __init__(
        self, config: Config, run: RunDirectory, world: World, total_steps: int
    ) -> None:
        self._config, self._run, self._world = config, run, world
        self._total_steps = total_steps
        self._last: dict[str, float] = {}
        self._images, self._seconds = 0, 0.0
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start to measure time, after `step` steps were done."""
        stream = None if self._world.leads else io.StringIO()
        self._progress = Progress(self._total_steps, step, stream)

    def note(self, line: str) -> None:
        """Print a line that stays, above the progress."""
        self._progress.note(line)

    def started(self, step: int, *, resumed: bool) -> None:
        """Log that the run begins, or that it goes on at `step`."""
        config, run = self._config, self._run
        if resumed:
            self.note(f"resuming {run.path} at step {step}")
        elif config.resume:
            self.note(f"{run.path} holds no run yet: starting it")
        run.log(
            "resume" if resumed else "start",
            step=step,
            total_steps=self._total_steps,
            config=config.to_dict(),
            environment=provenance(),
        )

    def trained(
        self, interval: MeasuredInterval, epoch: int, step: int, lr: float
    ) -> None:
        """Read and log what an interval measured. Every rank must call it.

        Raises:
            TrainingDiverged: A loss of the interval is not finite.
        """
        self._last = interval.read(step - 1, self._world)
        # All ranks have equally many images.
        self._images += interval.images * self._world.size
        self._seconds += time.monotonic() - interval.began
        rounded = {key: round(value, 5) for key, value in self._last.items()}
        self._run.log("train", epoch=epoch, step=step, lr=lr, **rounded)
        self.show(epoch, step)

    def show(self, epoch: int, step: int) -> None:
        """Update the progress with the last measurements."""
        raise NotImplementedError

    def bad_images(self, names: list[str], others: str) -> None:
        """Log the unreadable images that any rank met, and what replaced them."""
        if names:
            self._run.log("bad_images", count=len(names), images=names)
            self.note(
                f"{len(names)} unreadable image(s) were replaced by {others} in training, "
                "or left out of tests"
            )

    @property
    def images_per_s(self) -> float:
        """Training images per second of all ranks so far."""
        return self._images / max(self._seconds, 1e-9)

    def diverged(self, error: TrainingDiverged, step: int) -> TrainingDiverged:
        """Log `error`; return it with the last checkpoint and what to do."""
        self._run.log("diverged", step=step, reason=str(error))
        last = self._run.checkpoints / "last"
        kept = "no checkpoint had been saved yet"
        if last.exists():
            kept = f"the last good checkpoint is {last.resolve()}"
        return TrainingDiverged(
            f"{error}; {kept}. Lower `lr` (now {self._config.lr:g}){self.also} or try "
            "`precision=fp32`"
        )
