"""The report of a run while it trains: events of its log, and lines for a person."""

from __future__ import annotations

import io
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastadv.environment import provenance
from fastadv.errors import TrainingDiverged
from fastadv.evaluation.accuracy import Evaluation
from fastadv.progress import Progress
from fastadv.runs.directory import RunDirectory
from fastadv.runs.distributed import World
from fastadv.training.config import TrainConfig
from fastadv.training.images import RunImages
from fastadv.training.interval import Interval, describe_measured
from fastadv.training.overfit import ACTIONS, OverfitCheck
from fastadv.training.validation import accuracy_text, accuracy_values

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSummary:
    """What a finished run reached on the test images, with its best weights.

    Attributes:
        run: The run directory.
        clean_acc: Share of all test images that is classified correctly, in [0, 1].
        robust_acc: The same under attack, on some of them; None for a standard run.
        images_per_s: Training images per second over the whole run.
    """

    run: Path
    clean_acc: float
    robust_acc: float | None
    images_per_s: float


class RunLog:
    """The log and the progress of one run; only the first of several ranks shows them.

    Args:
        config: The choices of the run.
        run: The run directory, which holds the log.
        world: The ranks.
        total_steps: Number of training steps of the whole run.
        attacked: Whether training accuracies are measured under attack.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunDirectory,
        world: World,
        total_steps: int,
        *,
        attacked: bool,
    ) -> None:
        self._config, self._run, self._world = config, run, world
        self._total_steps, self._attacked = total_steps, attacked
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

    def describe(self, images: RunImages, device: torch.device) -> None:
        """Print what is about to be trained on what, with warnings where due."""
        config, ranks = self._config, self._world.size
        doubt = config.threat.doubt(images.resolution)
        if doubt:
            log.warning(doubt)
        if config.method == "discrepancy" and config.init_from is None:
            log.warning(
                "--method discrepancy holds on to the features of a robust source; without "
                "--init-from those are random"
            )
        what = (
            f"{config.threat}, {config.attack_steps} steps"
            if self._attacked
            else "standard"
        )
        if config.data == "shapetex":
            self.note(
                "--data is shapetex, the built-in procedural set, drawn at "
                f"{images.resolution} px; --data PATH trains on your images"
            )
        self.note(
            f"{config.arch} on {images.train.name} at {images.resolution} px, {what}: "
            f"{images.describe()}; batch {images.batch_size}, {config.epochs} epochs, "
            f"{self._total_steps} steps, {device}"
            + (f", {ranks} ranks" if ranks > 1 else "")
        )

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
        self._last = interval.read(step - 1, self._world.gather)
        self._images += (
            interval.images * self._world.size
        )  # all ranks have equally many
        self._seconds += time.monotonic() - interval.began
        rounded = {key: round(value, 5) for key, value in self._last.items()}
        self._run.log("train", epoch=epoch, step=step, lr=lr, **rounded)
        self.show(epoch, step)

    def show(self, epoch: int, step: int) -> None:
        """Update the progress, with what was measured last."""
        text = f"epoch {epoch + 1}/{self._config.epochs}"
        if self._last:
            text += f"  {describe_measured(self._last, attacked=self._attacked)}"
        self._progress.update(step, text)

    def checked(self, check: OverfitCheck, step: int) -> None:
        """Log a check for catastrophic overfitting."""
        shares = {"single_acc": check.single_acc, "pgd_acc": check.pgd_acc}
        self._run.log("watch", step=step, **shares)
        if check.collapsed:
            action = self._config.on_overfit
            self._run.log("overfit", step=step, action=action, **shares)
            self.note(f"{check.message(step)}: {ACTIONS[action]}")

    def validated(self, found: Evaluation, epoch: int, step: int) -> None:
        """Log the accuracies that a validation found."""
        self._run.log("val", epoch=epoch, step=step, **accuracy_values(found))
        self.note(f"epoch {epoch} validation: {accuracy_text(found)}")

    def tested(
        self,
        found: Evaluation,
        step: int,
        bad_images: list[str],
        compiled: dict[str, Any] | None,
    ) -> TrainSummary:
        """Log the accuracies of the best weights on the test images.

        Args:
            found: The accuracies.
            step: Number of training steps done.
            bad_images: Names of the unreadable images that were replaced on any rank.
            compiled: Report of the attack on its compilation; None without an attack.
        """
        if bad_images:
            self._run.log("bad_images", count=len(bad_images), images=bad_images)
            self.note(
                f"{len(bad_images)} unreadable image(s) were replaced by others of "
                "their class"
            )
        if compiled is not None:
            self._run.log("compile", step=step, **compiled)
        rate = self._images / max(self._seconds, 1e-9)
        self._run.log(
            "test", step=step, images_per_s=round(rate, 2), **accuracy_values(found)
        )
        self.note(f"test (best weights): {accuracy_text(found)}")
        robust = found.robust.top1 if found.robust else None
        return TrainSummary(self._run.path, found.clean.top1, robust, rate)

    def diverged(self, error: TrainingDiverged, step: int) -> TrainingDiverged:
        """Log `error`; return it with what is left on disk and what to do."""
        self._run.log("diverged", step=step, reason=str(error))
        last = self._run.checkpoints / "last"
        kept = (
            f"the last good checkpoint is {last.resolve()}"
            if last.exists()
            else "no checkpoint had been saved yet"
        )
        return TrainingDiverged(
            f"{error}; {kept}. Lower `lr` (now {self._config.lr:g}) or try "
            "`precision=fp32`"
        )
