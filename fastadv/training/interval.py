"""What is measured between two lines of the log. Losses stay on the device until read."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastadv.errors import TrainingDiverged
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

    def read(self, last_step: int) -> dict[str, float]:
        """The interval in numbers.

        Raises:
            TrainingDiverged: a loss is not finite; the message names the step.
        """
        losses = torch.stack(self.losses).tolist()
        for back, loss in enumerate(losses):
            if not math.isfinite(loss):
                step = last_step - len(losses) + 1 + back
                raise TrainingDiverged(f"the loss of step {step} is {loss}")
        seconds = time.monotonic() - self.began
        return {
            "loss": sum(losses) / len(losses),
            "acc": torch.stack(self.correct).sum().item() / self.images,
            "images_per_s": self.images / seconds,
            "data_wait": self.waited / seconds,
        }
