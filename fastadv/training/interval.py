"""Measurements between two events of the log; losses stay on the device until read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastadv.errors import TrainingDiverged
from fastadv.machine import resident_memory
from fastadv.phases import phase
from fastadv.training.step import StepResult


@dataclass
class Interval:
    """The steps since the last "train" event; their losses are read together.

    Attributes:
        losses: Loss of each step, scalars on the device.
        correct: Correctly classified images of each step, scalars on the device.
        images: Number of images of this rank.
        waited: Seconds spent waiting for batches.
        began: Time when the interval began, on the monotonic clock.
    """

    losses: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    images: int = 0
    waited: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def add(self, result: StepResult, images: int, waited: float) -> None:
        """Add one step, without reading its measurements from the device."""
        self.losses.append(result.loss)
        self.correct.append(result.correct)
        self.images += images
        self.waited += waited

    def read(self, last_step: int, gather: Gather | None = None) -> dict[str, float]:
        """Return mean loss, accuracy, speed, waiting and memory over all ranks.

        Args:
            last_step: Number of the last step that was added.
            gather: Returns the measurements of every rank, given those of this one;
                None for a single process.

        Raises:
            TrainingDiverged: A loss of some rank is not finite; the message names the
                step. All ranks raise it.
        """
        with phase("sync"):
            losses = torch.stack(self.losses).tolist()
            correct = int(torch.stack(self.correct).sum())
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        problem = None
        if bad:
            step = last_step - len(losses) + 1 + bad[0]
            problem = f"the loss of step {step} is {losses[bad[0]]}"
        own = _Part(losses, correct, self.images, self.waited, problem)
        parts = [own] if gather is None else gather(own)
        for part in parts:
            if part.problem:
                raise TrainingDiverged(part.problem)
        seconds = time.monotonic() - self.began
        images = sum(part.images for part in parts)
        return {
            "loss": sum(sum(part.losses) for part in parts) / len(losses) / len(parts),
            "acc": sum(part.correct for part in parts) / images,
            "images_per_s": images / seconds,
            "data_wait": sum(part.waited for part in parts) / seconds / len(parts),
            "memory_gib": memory_in_use(self.losses[-1].device) / 2**30,
        }


class _Part(NamedTuple):
    """The measurements of one rank in an interval."""

    losses: list[float]
    correct: int
    images: int
    waited: float
    problem: str | None


Gather: TypeAlias = Callable[[_Part], list[_Part]]


def describe_measured(measured: dict[str, float], *, attacked: bool) -> str:
    """Return what `Interval.read` returned as part of a line.

    Args:
        measured: The measurements; the accuracy is that on the training images.
        attacked: Whether those images were attacked.
    """
    return (
        f"loss {measured['loss']:.3f}"
        f"  {'robust' if attacked else 'clean'} acc {100 * measured['acc']:.1f} %"
        f"  {measured['images_per_s']:.1f} images/s"
        f"  data wait {100 * measured['data_wait']:.0f} %"
        f"  {measured['memory_gib']:.1f} GiB"
    )


def memory_in_use(device: torch.device, *, peak: bool = False) -> int:
    """Return the bytes allocated on a CUDA device, else the memory of this process."""
    if device.type == "cuda":
        if peak:
            return torch.cuda.max_memory_allocated(device)
        return torch.cuda.memory_allocated(device)
    return resident_memory(peak)
