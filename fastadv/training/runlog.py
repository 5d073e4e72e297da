"""What a run tells while it trains: events of its log, and lines a person reads."""

from __future__ import annotations

import io
import time
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
from fastadv.training.interval import Interval, in_words
from fastadv.training.overfit import ACTIONS, Look
from fastadv.training.validation import numbers, words


class RunLog:
    """The log and the progress of one run; other ranks than the first are silent.

    Args:
        config: of the run.
        run: where the log is.
        world: the ranks.
        total_steps: of the whole run.
        attacked: whether training accuracies are those under attack.
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
        """Count time from here, where `step` steps are done."""
        stream = None if self._world.leads else io.StringIO()
        self._progress = Progress(self._total_steps, step, stream)

    def note(self, line: str) -> None:
        """A line that stays."""
        self._progress.note(line)

    def describe(self, images: RunImages, device: torch.device) -> None:
        """Say what is about to be trained on what."""
        config, ranks = self._config, self._world.size
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
        """The run begins, or goes on at `step`."""
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
        """Read what an interval measured, and tell it; every rank must.

        Raises:
            TrainingDiverged: a loss of it is not finite.
        """
        self._last = interval.read(step - 1, self._world.gather)
        self._images += interval.images * self._world.size  # each has as many
        self._seconds += time.monotonic() - interval.began
        rounded = {key: round(value, 5) for key, value in self._last.items()}
        self._run.log("train", epoch=epoch, step=step, lr=lr, **rounded)
        self.show(epoch, step)

    def show(self, epoch: int, step: int) -> None:
        """Move the progress, with what was measured last."""
        text = f"epoch {epoch + 1}/{self._config.epochs}"
        if self._last:
            text += f"  {in_words(self._last, attacked=self._attacked)}"
        self._progress.update(step, text)

    def looked(self, look: Look, step: int) -> None:
        """What the watch for catastrophic overfitting saw."""
        shares = {"single_acc": look.single_acc, "pgd_acc": look.pgd_acc}
        self._run.log("watch", step=step, **shares)
        if look.collapsed:
            action = self._config.on_overfit
            self._run.log("overfit", step=step, action=action, **shares)
            self.note(f"{look.words(step)}: {ACTIONS[action]}")

    def validated(self, found: Evaluation, epoch: int, step: int) -> None:
        """What a validation found."""
        self._run.log("val", epoch=epoch, step=step, **numbers(found))
        self.note(f"epoch {epoch} validation: {words(found)}")

    def tested(
        self,
        found: Evaluation,
        step: int,
        bad_images: list[str],
        compiled: dict[str, Any] | None,
    ) -> float:
        """What the test of the best weights found.

        Args:
            found: by it.
            step: of the end.
            bad_images: names of those replaced, of all ranks.
            compiled: what the attack says of its compilation; None without an attack.

        Returns:
            Training images per second over the whole run.
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
        self._run.log("test", step=step, images_per_s=round(rate, 2), **numbers(found))
        self.note(f"test (best weights): {words(found)}")
        return rate

    def diverged(self, error: TrainingDiverged, step: int) -> TrainingDiverged:
        """Log `error`; the same with what is left and what to do."""
        self._run.log("diverged", step=step, reason=str(error))
        last = self._run.checkpoints / "last"
        kept = (
            f"the last good checkpoint is {last.resolve()}"
            if last.exists()
            else "no checkpoint had been saved yet"
        )
        return TrainingDiverged(
            f"{error}; {kept}. Lower --lr (now {self._config.lr:g}) or try "
            "--precision fp32"
        )
