"""The report of a detector's training: events of its log, and lines for a person."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastadv.detection.config import DetectTrainConfig
from fastadv.errors import TrainingDiverged
from fastadv.phases import phase
from fastadv.runs.distributed import World
from fastadv.training.looplog import LoopLog, memory_in_use


class _Part(NamedTuple):
    losses: dict[str, float]
    images: int
    waited: float
    problem: str | None


@dataclass
class LossInterval:
    """The steps since the last "train" event; their losses are read together.

    Attributes:
        losses: Losses of each step by name, scalars on the device.
        images: Number of images of this rank.
        waited: Seconds spent waiting for batches.
        began: Time when the interval began, on the monotonic clock.
    """

    losses: list[dict[str, Tensor]] = field(default_factory=list)
    images: int = 0
    waited: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def add(self, losses: dict[str, Tensor], images: int, waited: float) -> None:
        """Add one step, without reading its losses from the device."""
        self.losses.append(losses)
        self.images += images
        self.waited += waited

    def read(self, last_step: int, world: World) -> dict[str, float]:
        """Return mean losses, speed, waiting and memory over all ranks.

        `last_step` is the number of the last step that was added.

        Raises:
            TrainingDiverged: A loss of some rank is not finite; the message names the
                step. All ranks raise it.
        """
        names = list(self.losses[0])
        with phase("sync"):
            table = torch.stack(
                [torch.stack([step[n].float() for n in names]) for step in self.losses]
            )
            device, values = table.device, table.tolist()
        problem = None
        for number, row in enumerate(values):
            wrong = [n for n, v in zip(names, row, strict=True) if not math.isfinite(v)]
            if wrong:
                step = last_step - len(values) + 1 + number
                problem = f"{', '.join(wrong)} of step {step} is not finite"
                break
        means = {
            n: sum(v) / len(v)
            for n, v in zip(names, zip(*values, strict=True), strict=True)
        }
        parts = world.gather(_Part(means, self.images, self.waited, problem))
        for part in parts:
            if part.problem:
                raise TrainingDiverged(part.problem)
        seconds = time.monotonic() - self.began
        shared = {n: sum(part.losses[n] for part in parts) / len(parts) for n in names}
        return {
            "loss": sum(shared.values()),
            **shared,
            "images_per_s": sum(part.images for part in parts) / seconds,
            "data_wait": sum(part.waited for part in parts) / seconds / len(parts),
            "memory_gib": memory_in_use(device) / 2**30,
        }


@dataclass(frozen=True)
class DetectionSummary:
    """What a finished run reached on the test images, with its last weights.

    Attributes:
        run: The run directory.
        metrics: Average precisions in [0, 1] by name: `box_ap`, `box_ap50`, `mask_ap` and
            so on; see `fastadv.detection.metrics`.
        images_per_s: Training images per second over the whole run.
    """

    run: Path
    metrics: dict[str, float]
    images_per_s: float


class DetectionLog(LoopLog[DetectTrainConfig]):
    """The log and the progress of one run; only the first of several ranks shows them.

    Args:
        config: The choices of the run.
        run: The run directory, which holds the log.
        world: The ranks.
        total_steps: Number of training steps of the whole run.
    """

    also = ", limit the gradient by `clip_grad`"

    def show(self, epoch: int, step: int) -> None:
        """Update the progress with the last measurements."""
        text, last = f"epoch {epoch + 1}/{self._config.epochs}", self._last
        if last:
            text += (
                f"  loss {last['loss']:.3f}"
                f"  {last['images_per_s']:.2f} images/s"
                f"  data wait {100 * last['data_wait']:.0f} %"
                f"  {last['memory_gib']:.1f} GiB"
            )
        self._progress.update(step, text)

    def judged(
        self, event: str, metrics: Mapping[str, float], epoch: int, step: int
    ) -> None:
        """Log average precisions on the test images as an event, `val` or `test`."""
        self._run.log(event, epoch=epoch, step=step, **metrics)
        self.note(
            f"epoch {epoch} {'test' if event == 'test' else 'so far'}: {ap_text(metrics)}"
        )


def ap_text(metrics: Mapping[str, float]) -> str:
    """Return the main average precisions in percent."""
    names = {
        "box_ap": "box AP",
        "box_ap50": "AP50",
        "mask_ap": "mask AP",
        "mask_ap50": "AP50",
    }
    return ", ".join(
        f"{text} {100 * metrics[name]:.1f} %"
        for name, text in names.items()
        if name in metrics
    )


def whole_state(values: Mapping[str, Any]) -> bool:
    """Return whether all floating point tensors of a state dict are finite."""
    return all(
        bool(value.isfinite().all())
        for value in values.values()
        if isinstance(value, Tensor) and value.is_floating_point()
    )
