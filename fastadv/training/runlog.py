"""The report of a run while it trains: events of its log, and lines for a person.

Losses stay on the device until an event is due.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastadv.attacks import PGD
from fastadv.data import ImageSet
from fastadv.evaluation.accuracy import Evaluation
from fastadv.evaluation.rows import evaluation_rows, store, target_record
from fastadv.models.source import open_source
from fastadv.results.settings import EvaluationSetting
from fastadv.results.table import ResultsTable
from fastadv.runs.directory import RunDirectory
from fastadv.runs.distributed import World
from fastadv.training.config import TrainConfig
from fastadv.training.images import RunImages
from fastadv.training.looplog import LoopLog
from fastadv.training.overfit import ACTIONS, OverfitCheck
from fastadv.training.validation import accuracy_text, accuracy_values

log = logging.getLogger(__name__)
_FEW = 100  # images: fewer leave an accuracy uncertain by more than ten points


def store_final_test(
    folder: Path,
    config: TrainConfig,
    images: RunImages,
    found: Evaluation,
    judge: PGD | None,
    judged: ImageSet,
) -> None:
    """Add what the test of the best weights found to the table `FOLDER/results`.

    The same weights are added once, however often their run is resumed.

    Args:
        folder: Folder of the run.
        config: Choices of the run.
        images: Images of the run.
        found: Accuracies of the best weights on the evaluation split.
        judge: Attack that the robust accuracy was measured under.
        judged: The images of the evaluation split that could be read.
    """
    source, test = open_source(str(folder)), images.test
    name = config.name_with_options(test.name)
    rows = evaluation_rows(
        found,
        judge,
        source,
        command="fastadv-train",
        target=target_record(test, images.resolution, name),
        setting=EvaluationSetting(
            split=test.split,
            augment=source.augment,
            preparation=images.unusual_preparation,
            chose_preparation=images.prepared.chosen,
        ),
        seed=config.seed,
    )
    store(ResultsTable(folder / "results", once=True), rows, found, judged)


@dataclass(frozen=True)
class TrainSummary:
    """What a finished run reached on the test images, with its best weights.

    Attributes:
        run: The run directory.
        clean_acc: Share of all test images that is classified correctly, in [0, 1].
        robust_acc: Share of the attacked test images that is classified correctly, in
            [0, 1]; None for a standard run.
        images_per_s: Training images per second over the whole run.
    """

    run: Path
    clean_acc: float
    robust_acc: float | None
    images_per_s: float


class RunLog(LoopLog[TrainConfig]):
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
        super().__init__(config, run, world, total_steps)
        self._attacked = attacked

    def describe(self, images: RunImages, device: torch.device) -> None:
        """Print a description of the run, with warnings where due."""
        config, size = self._config, self._world.size
        ranks = f", {size} ranks" if size > 1 else ""
        doubt = config.threat.doubt(images.resolution)
        if doubt:
            log.warning(doubt)
        if config.method == "discrepancy" and config.init_from is None:
            log.warning(
                "`method=discrepancy` holds on to the features of a robust source; without "
                "`init_from` those are random"
            )
        attack = f"{config.threat}, {config.attack_steps} steps"
        what = attack if self._attacked else "standard"
        if config.data.startswith("shapetex"):
            self.note(
                f"`data` is {config.data}, a built-in procedural set, drawn at "
                f"{images.resolution} px; `data=PATH` trains on your images, by default "
                "as published for ImageNet: 90 epochs of SGD with learning rate 0.1, "
                "batches of 512, an l2 radius of 3 at 224 px, which per pixel is as large "
                f"as {3 * images.resolution / 224:.2g} at {images.resolution} px"
            )
        self.note(
            f"{config.arch} on {images.train.name} at {images.resolution} px, {what}: "
            f"{images.describe()}; batch {images.batch_size}, {config.epochs} epochs, "
            f"{self._total_steps} steps, {device}{ranks}"
        )
        chosen_on = len(images.val)
        if self._attacked:
            chosen_on = min(chosen_on, max(config.eval_images, len(images.val.classes)))
        if chosen_on < _FEW and config.epochs > config.eval_every:
            # The half-width of a 95 % interval at a share of one half.
            log.warning(
                f"the best epoch is chosen on {chosen_on} validation images, where an "
                f"accuracy is known to +-{98 / math.sqrt(chosen_on):.0f} points; "
                "`val_size` holds out more"
            )

    def show(self, epoch: int, step: int) -> None:
        """Update the progress with the last measurements."""
        text, last = f"epoch {epoch + 1}/{self._config.epochs}", self._last
        if last:
            text += (
                f"  loss {last['loss']:.3f}"
                f"  {'robust' if self._attacked else 'clean'} acc {100 * last['acc']:.1f} %"
                f"  {last['images_per_s']:.1f} images/s"
                f"  data wait {100 * last['data_wait']:.0f} %"
                f"  {last['memory_gib']:.1f} GiB"
            )
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
            bad_images: Names of the unreadable images that any rank met.
            compiled: How the attack was compiled; None without an attack.
        """
        self.bad_images(bad_images, "others of their class")
        if compiled is not None:
            self._run.log("compile", step=step, **compiled)
        rate = self.images_per_s
        self._run.log(
            "test", step=step, images_per_s=round(rate, 2), **accuracy_values(found)
        )
        self.note(f"test (best weights): {accuracy_text(found)}")
        for what, accuracy in (("clean", found.clean), ("robust", found.robust)):
            chance = 1 / max(len(found.clean.total), 1)
            if accuracy is not None and accuracy.interval("top1")[0] <= chance:
                log.warning(
                    f"the {what} accuracy is not above that of guessing, "
                    f"{100 * chance:.1f} %: the network has learnt too little. Try a "
                    "smaller `eps`, more `clean_epochs` or `eps_warmup`, a smaller `lr` or "
                    "more `epochs`"
                )
                break
        robust = found.robust.top1 if found.robust else None
        return TrainSummary(self._run.path, found.clean.top1, robust, rate)
