"""What is measured between two lines of the log. Losses stay on the device until read."""

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
    """Steps since the last "train" event; their losses are read together."""

    losses: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    images: int = 0
    waited: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def add(self, result: StepResult, images: int, waited: float) -> None:
        """Count one step, without reading what it measured."""
        self.losses.append(result.loss)
        self.correct.append(result.correct)
        self.images += images
        self.waited += waited

    def read(self, last_step: int, gather: Gather | None = None) -> dict[str, float]:
        """The interval in numbers, over all ranks.

        Args:
            last_step: number of the last step that was added.
            gather: gives what each rank measured, from what this one did.

        Raises:
            TrainingDiverged: a loss of some rank is not finite; the message names the
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
    """The interval of one rank."""

    losses: list[float]
    correct: int
    images: int
    waited: float
    problem: str | None


Gather: TypeAlias = Callable[[_Part], list[_Part]]


def in_words(numbers: dict[str, float], *, attacked: bool) -> str:
    """What `read` gave, as a part of a line; accuracy is that on the training images."""
    return (
        f"loss {numbers['loss']:.3f}"
        f"  {'robust' if attacked else 'clean'} acc {100 * numbers['acc']:.1f} %"
        f"  {numbers['images_per_s']:.1f} images/s"
        f"  data wait {100 * numbers['data_wait']:.0f} %"
        f"  {numbers['memory_gib']:.1f} GiB"
    )


def memory_in_use(device: torch.device, *, peak: bool = False) -> int:
    """Bytes allocated on a CUDA device, else those this process holds in memory."""
    if device.type == "cuda":
        if peak:
            return torch.cuda.max_memory_allocated(device)
        return torch.cuda.memory_allocated(device)
    return resident_memory(peak)
