"""Measurements between two events of the log; losses stay on the device until read."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fastadv.errors import TrainingDiverged
from fastadv.machine import resident_memory
from fastadv.phases import phase
from fastadv.runs.distributed import World
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

    def read(self, last_step: int, world: World) -> dict[str, float]:
        """Return mean loss, accuracy, speed, waiting and memory over all ranks.

        Args:
            last_step: Number of the last step that was added.
            world: The ranks.

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
        parts = world.gather(_Part(losses, correct, self.images, self.waited, problem))
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
    losses: list[float]
    correct: int
    images: int
    waited: float
    problem: str | None


def memory_in_use(device: torch.device, *, peak: bool = False) -> int:
    """Return the bytes allocated on a CUDA device, else the memory of this process."""
    if device.type != "cuda":
        return resident_memory(peak)
    used = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
    return used(device)
