"""The training of a classifier: what it adds to the loop that all trainings share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.attacks import PGD
from fastadv.data import Batch, Loader
from fastadv.data.counter import derive_key
from fastadv.device import autotuned
from fastadv.errors import (
    CatastrophicOverfitting,
    TrainingDiverged,
)
from fastadv.evaluation.accuracy import Evaluation
from fastadv.models import as_model, load_model, save_model
from fastadv.models.architecture_names import MODEL_FILE
from fastadv.runs.distributed import World, join_ranks
from fastadv.runs.preemption import StopRequest
from fastadv.training.config import TrainConfig
from fastadv.training.images import RunImages
from fastadv.training.learner import Learner, judging_attack
from fastadv.training.loop import TrainingLoop
from fastadv.training.network import network_of
from fastadv.training.optimizer_config import learning_rate
from fastadv.training.overfit import OverfitWatch, updates_between, watched_images
from fastadv.training.runlog import RunLog, TrainSummary, store_final_test
from fastadv.training.snapshots import draw_pictures, pictured_images
from fastadv.training.stages import radius_at, side_at
from fastadv.training.step import StepResult, train_step
from fastadv.training.validation import Validation

# Choices that may differ when a run is resumed: none of them changes what is computed.
MAY_CHANGE = (
    "out", "resume", "device", "workers", "save_minutes", "backend", "data",
    "dataset_option", "keep_every", "pictures_every", "tensorboard", "wandb", "parallel",
)  # fmt: skip
# The parts of the state that are saved with the weights, too.
METADATA = (
    "config", "resolution", "augment", "preparation", "classes", "epoch", "step", "best",
)  # fmt: skip
NO_SCORE = -1.0  # below every accuracy


class Trainer(TrainingLoop[TrainConfig, Batch, StepResult, TrainSummary]):
    """Everything that one run needs, built from its choices.

    Args:
        config: The choices of the run.
        dry_run: Build everything, but neither create nor open the run directory.
        world: The ranks of which this process is one; see `distributed.join_ranks`.
        profile: Number of steps to time; see `StepProfile`. None times nothing.
        model: A network of your own to train: a `NormalizedModel`, or a module that takes
            [0, 1] images. It is trained as it is, but for its head, where the data have
            another number of classes; `config.arch` becomes its name.

    Raises:
        ConfigError: Choices contradict each other.
        DataError: The data set cannot be used.
        CheckpointError: The state to resume from cannot be read.
    """

    loader: Loader
    learner: Learner
    log: RunLog

    def __init__(
        self,
        config: TrainConfig,
        *,
        dry_run: bool = False,
        world: World | None = None,
        profile: int | None = None,
        model: nn.Module | None = None,
    ) -> None:
        if model is not None:
            model = as_model(model)
            config = replace(config, arch=model.arch)
        super().__init__(config, world, MAY_CHANGE)
        self.images = RunImages(config, self.device, self.world)
        self.resolution = self.images.resolution
        self.batch_size = self.images.batch_size
        self.train_set, self.val_set = self.images.train, self.images.val
        self.test_set = self.images.test
        self.loader = self.images.train_loader()
        self.total_steps = config.epochs * len(self.loader)
        classes = len(self.train_set.classes)
        resumes = self.world.share(config.resume and self.run.began)
        # A resumed run does not read it again: the file may be gone by then.
        source = None if resumes else config.init_from
        self.model = network_of(config, classes, self.images.channels, source, model)
        self.model.set_image_size(self.resolution)
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.learner = Learner(config, self.model, self.resolution, self.world)
        self.parallel, self.optimizer = self.learner.parallel, self.learner.optimizer
        if self.learner.watched and not dry_run:
            held = watched_images(self.val_set, config.seed)
            batches = list(self.images.eval_loader(held))
            labels = torch.cat([batch.labels for batch in batches])
            self.learner.watch = OverfitWatch(
                torch.cat([batch.images for batch in batches]),
                labels,
                config.threat,
                every=updates_between(len(self.loader), len(labels), self.batch_size),
                seed=config.seed,
                dtype=self.learner.view.dtype if self.learner.view else None,
            )
        attacked = self.learner.attack is not None
        self.validation = Validation(
            self.images.eval_loader,
            self._judge(),
            config.eval_images,
            config.seed,
            self.world,
        )
        self.best_score = NO_SCORE
        self.log = RunLog(
            config, self.run, self.world, self.total_steps, attacked=attacked
        )
        self.prepare(self.batch_size, dry_run=dry_run, profile=profile)

    def _judge(self) -> PGD | None:
        attacked = self.learner.attack is not None
        return judging_attack(self.config, self.config.eval_steps) if attacked else None

    # ---- state ----

    def _own_state(self) -> dict[str, Any]:
        return {
            "resolution": self.resolution,
            "augment": self.images.augment,
            "preparation": asdict(self.images.prepared.how),
            "classes": list(self.test_set.classes),
            "best": self.best_score,
            "loader_backend": self.loader.backend,
        }

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.images.check_classes(state["classes"])
        augments_otherwise = self.images.augment_as(state.get("augment"))
        if augments_otherwise or state["loader_backend"] != self.loader.backend:
            # `auto` depends on the memory that is free; the run goes on as it began.
            self.loader = self.images.train_loader(backend=state["loader_backend"])
        # Without the best weights they are chosen again from the epochs to come.
        has_best = self.world.share(self.run.has_best)
        self.best_score = state["best"] if has_best else NO_SCORE

    def _writer(self, state: dict[str, Any]) -> Callable[[Path], None]:
        model = self.learner.published()
        metadata = {key: state[key] for key in METADATA}
        return lambda folder: save_model(model, folder / MODEL_FILE, metadata)

    # ---- the loop ----

    def fit(self) -> TrainSummary:
        """Train to the end and test; see `TrainingLoop.fit`."""
        with autotuned(self.config.autotune):
            return super().fit()

    def describe(self) -> None:
        """Print a description of the run, with warnings where due."""
        self.log.describe(self.images, self.device)
        if self.learner.exact_input:
            self.log.note(
                f"inputs of the network stay float32: in {self.learner.precision}, much of "
                f"a perturbation of {self.config.threat} at {self.resolution} px would be "
                "rounded away"
            )

    def _begin_epoch(self, epoch: int) -> None:
        self.model.train()
        side = side_at(self.config, self.resolution, epoch)
        self.loader.set_resolution(side)
        self.learner.begin_epoch(radius_at(self.config, side, self.resolution, epoch))

    def _end_epoch(self) -> None:
        self.validation.saw(self.loader)

    def _values(self, result: StepResult) -> dict[str, Tensor]:
        return {"loss": result.loss, "correct": result.correct}

    def update(self, batch: Batch) -> StepResult:
        """Do one training step; the model must be in the mode it trains in."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.total_steps)
        self.parallel.gather_weights()
        result = train_step(
            self.model,
            batch.images,
            batch.labels,
            self.optimizer,
            method=self.learner.epoch_method,
            update=self.learner.update,
            seed=derive_key(self.config.seed, "start", self.step),
            # Ranks hold consecutive parts of one batch.
            offset=self.world.rank * len(batch.labels),
            ranks=self.world.size,
        )
        self.learner.after_step()
        self.step += 1
        return result

    def _after_update(self) -> None:
        check = self.learner.check_overfit(self.step)
        if check is None:
            return
        self.log.checked(check, self.step)
        if check.collapsed and self.config.on_overfit == "stop":
            raise CatastrophicOverfitting(
                f"{check.message(self.step)}; checkpoints are as they were. Choose a smaller "
                "`eps`, `method=n_fgsm`, gradalign or pgd_at, or `on_overfit=fallback`"
            )

    def _validates(self, epoch: int) -> bool:
        return epoch % self.config.eval_every == 0 or epoch == self.config.epochs

    def _validate(self, stop: StopRequest) -> Evaluation:
        return self.validation(self.learner.published(), self.val_set, stop)

    def _check_finite(self, found: Evaluation) -> None:
        """Raise TrainingDiverged where a network gives no finite logits for any image."""
        if found.clean.n and found.nonfinite_clean == found.clean.n:
            raise TrainingDiverged(
                f"the logits of all {found.clean.n} evaluated images after step {self.step} "
                "are NaN or infinite, although the loss in training was finite (in "
                "evaluation, BatchNorm uses its running statistics)"
            )

    def _scored(self, found: Evaluation, epoch: int) -> bool:
        self._check_finite(found)
        score = found.robust.top1 if found.robust else found.clean.top1
        best, self.best_score = score > self.best_score, max(score, self.best_score)
        self.log.validated(found, epoch, self.step)
        return best

    def _after_epoch(self, epoch: int) -> None:
        every = self.config.pictures_every
        if not every or epoch % every:
            return
        model = self.parallel.plain()  # every rank must call it
        if self.world.leads:
            batch = next(iter(self.images.eval_loader(pictured_images(self.val_set))))
            names, judge = self.test_set.classes, self._judge()
            draw_pictures(self.run, self.step, epoch, model, batch, names, judge)

    def _finish(self, stop: StopRequest) -> TrainSummary:
        # Other commands load the best weights of this run, not the last: test those.
        if self.world.size == 1:
            model = load_model(self.run.path).to(self.device)
        else:
            best = load_model(self.run.path).state_dict() if self.world.leads else {}
            model = self.parallel.replica(self.world.share(best))
        found = self.validation(model, self.test_set, stop)
        self._check_finite(found)
        names = sorted(set().union(*self.world.gather(self.validation.bad_images)))
        attack = self.learner.attack
        compiled = asdict(attack.compile_report()) if attack else None
        summary = self.log.tested(found, self.step, names, compiled)
        judged = self.validation.readable(self.test_set)
        if self.world.leads:
            store_final_test(
                self.run.path,
                self.config,
                self.images,
                found,
                self.validation.judge,
                judged,
            )
        return summary


def train(config: TrainConfig, model: nn.Module | None = None) -> TrainSummary:
    """Build a `Trainer` and fit it, as one of the ranks that the environment describes."""
    with join_ranks(config.device) as world:
        return Trainer(config, world=world, model=model).fit()
