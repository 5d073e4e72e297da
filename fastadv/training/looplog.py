"""What the logs of all training loops share: events, progress, speed and divergence."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fastadv.environment import provenance
from fastadv.errors import TrainingDiverged
from fastadv.machine import resident_memory
from fastadv.phases import phase
from fastadv.progress import Progress
from fastadv.runs.directory import RunDirectory
from fastadv.runs.distributed import World


class LoopConfig(Protocol):
    """The choices of a run that its loop and its log read."""

    @property
    def epochs(self) -> int:
        """Number of epochs of the whole run."""

    @property
    def lr(self) -> float | None:
        """Learning rate; a run has chosen one where none was given."""

    @property
    def resume(self) -> bool:
        """Whether a run is continued where there is one."""

    @property
    def device(self) -> str:
        """Name of the device, for example `cuda:1`."""

    @property
    def backend(self) -> str:
        """Name of the kernel backend."""

    @property
    def seed(self) -> int:
        """Random seed of the run."""

    @property
    def out_path(self) -> Path:
        """Folder in which the run is kept."""

    @property
    def save_minutes(self) -> float:
        """Minutes between checkpoints within an epoch."""

    @property
    def keep_every(self) -> int | None:
        """Number of epochs after which a checkpoint is kept for good."""

    @property
    def tensorboard(self) -> bool:
        """Whether curves are written for TensorBoard."""

    @property
    def wandb(self) -> str | None:
        """Project of Weights & Biases."""

    def to_dict(self) -> dict[str, Any]:
        """Return all choices as plain values."""


Config = TypeVar("Config", bound=LoopConfig)


def memory_in_use(device: torch.device, *, peak: bool = False) -> int:
    """Return the bytes allocated on a CUDA device, else the memory of this process."""
    if device.type != "cuda":
        return resident_memory(peak)
    used = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
    return used(device)


class _Part(NamedTuple):
    """What one rank measured in an interval."""

    sums: dict[str, float]
    images: int
    waited: float
    problem: str | None


@dataclass
class Interval:
    """The steps since the last "train" event; what they measured is read together.

    Attributes:
        steps: Measurements of each step by name, scalars on the device. Every name is a
            loss, but for `correct`, the number of correctly classified images.
        images: Number of images of this rank.
        waited: Seconds spent waiting for batches.
        began: Time when the interval began, on the monotonic clock.
    """

    steps: list[dict[str, Tensor]] = field(default_factory=list)
    images: int = 0
    waited: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def add(self, measured: dict[str, Tensor], images: int, waited: float) -> None:
        """Add one step, without reading its measurements from the device."""
        self.steps.append(measured)
        self.images += images
        self.waited += waited

    def read(self, last_step: int, world: World) -> dict[str, float]:
        """Return means over all ranks.

        Args:
            last_step: Number of the last step that was added.
            world: The ranks; each must call it.

        Returns:
            The mean of each loss and, as `loss`, of their sum; `acc`, the share of images
            that were classified correctly, where it is known; images per second, the
            share of the time that was spent waiting for batches, and the memory in GiB.

        Raises:
            TrainingDiverged: A loss of some rank is not finite; the message names the
                step. All ranks raise it.
        """
        names = list(self.steps[0])
        with phase("sync"):
            table = torch.stack(
                [torch.stack([step[n].float() for n in names]) for step in self.steps]
            )
            values: list[list[float]] = table.tolist()
        first = last_step - len(values) + 1
        sums = {
            n: sum(v) for n, v in zip(names, zip(*values, strict=True), strict=True)
        }
        problem = _not_finite(names, values, first)
        parts = world.gather(_Part(sums, self.images, self.waited, problem))
        for part in parts:
            if part.problem:
                raise TrainingDiverged(part.problem)
        seconds = time.monotonic() - self.began
        images = sum(part.images for part in parts)
        summed = {n: sum(part.sums[n] for part in parts) for n in names}
        correct = summed.pop("correct", None)
        means = {n: v / len(values) / len(parts) for n, v in summed.items()}
        accuracy = {} if correct is None else {"acc": correct / images}
        return {
            "loss": sum(means.values()),
            **means,
            **accuracy,
            "images_per_s": images / seconds,
            "data_wait": sum(part.waited for part in parts) / seconds / len(parts),
            "memory_gib": memory_in_use(table.device) / 2**30,
        }


def _not_finite(
    names: Sequence[str], values: Sequence[Sequence[float]], first: int
) -> str | None:
    """Return which of the values of steps `first` and on is not finite, or None."""
    for step, row in enumerate(values, start=first):
        for name, value in zip(names, row, strict=True):
            if not math.isfinite(value):
                return f"the {name} of step {step} is {value}"
    return None


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

    def trained(self, interval: Interval, epoch: int, step: int, lr: float) -> None:
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
