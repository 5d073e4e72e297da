"""The training loop: it builds a run, resumes, steps, validates, saves and tests."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, NoReturn

import torch
from torch import nn

from fastadv.attacks import PGD
from fastadv.data import Batch
from fastadv.data.counter import derive_key
from fastadv.errors import (
    CatastrophicOverfitting,
    CheckpointError,
    FastadvError,
    Preempted,
    TrainingDiverged,
)
from fastadv.kernels import use_backend
from fastadv.kernels.registry import check_backend_name
from fastadv.models import as_model, load_model, save_model
from fastadv.models.architecture_names import MODEL_FILE
from fastadv.phases import phase
from fastadv.runs.directory import RunDirectory
from fastadv.runs.distributed import World, join_ranks, random_state, set_random_state
from fastadv.runs.listeners import check_listeners, open_listeners
from fastadv.runs.preemption import StopRequest, stop_on_signal
from fastadv.runs.profile import StepProfile
from fastadv.training.config import TrainConfig
from fastadv.training.images import RunImages
from fastadv.training.learner import Learner, judging_attack
from fastadv.training.network import network_of
from fastadv.training.optimizer_config import learning_rate
from fastadv.training.overfit import OverfitWatch, updates_between, watched_images
from fastadv.training.runlog import Interval, RunLog, TrainSummary, store_final_test
from fastadv.training.snapshots import draw_pictures, pictured_images
from fastadv.training.stages import radius_at, side_at
from fastadv.training.step import StepResult, train_step
from fastadv.training.validation import Interrupted, Validation

log = logging.getLogger(__name__)

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
_LOG_SECONDS = 10.0  # between "train" events; reading the losses waits for the device


class Trainer:
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
        self.config = config
        self.world = world or World()
        leads = self.world.leads
        check_listeners(config.tensorboard, config.wandb, writes=leads)
        if config.backend != "auto":
            check_backend_name(config.backend)
        self.device = self.world.device(config.device)
        self.run = RunDirectory(config.out_path, may_change=MAY_CHANGE, writes=leads)
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
        self.step, self.best_score = 0, NO_SCORE
        self._validated = True  # the model that the last epoch left
        self.runlog = RunLog(
            config, self.run, self.world, self.total_steps, attacked=attacked
        )
        folder = self.run.path if leads else None
        self.profile = StepProfile(
            folder, profile, self.device, self.batch_size, self.runlog.note
        )
        prepares = leads and not dry_run
        state = None
        if prepares:
            state = self.run.prepare(config.to_dict(), resume=config.resume)
            if state is not None and not self.run.has_best:
                state["best"] = NO_SCORE  # it is chosen again from the epochs to come
        state = self.world.share(state)
        self.resumed = state is not None
        try:
            if state is not None:
                self._resume_from(state)
            if prepares:  # only now: a resume that is refused changes nothing
                self.run.record(config.to_dict())
        except BaseException:
            self.run.release()
            raise

    def _judge(self) -> PGD | None:
        attacked = self.learner.attack is not None
        return judging_attack(self.config, self.config.eval_steps) if attacked else None

    # ---- state ----

    def _state(self, epoch: int) -> dict[str, Any]:
        """Return everything that a resume needs. Every rank must call it."""
        return {
            "config": self.config.to_dict(),
            "resolution": self.resolution,
            "augment": self.images.augment,
            "preparation": asdict(self.images.prepared.how),
            "classes": list(self.test_set.classes),
            "epoch": epoch,
            "step": self.step,
            "best": self.best_score,
            "validated": self._validated,
            "loader": self.loader.state_dict(),
            "loader_backend": self.loader.backend,
            "rng": self.world.gather(random_state()),
        } | self.learner.state_dict()

    def _resume_from(self, state: dict[str, Any]) -> None:
        try:
            self._load_state(state)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the state in {self.run.checkpoints / 'last'} is not one of this program "
                f"({type(error).__name__}: {error}); start the run again with another `out`"
            ) from error

    def _load_state(self, state: dict[str, Any]) -> None:
        self.images.check_classes(state["classes"])
        augments_otherwise = self.images.augment_as(state.get("augment"))
        if augments_otherwise or state["loader_backend"] != self.loader.backend:
            # `auto` depends on the memory that is free; the run goes on as it began.
            self.loader = self.images.train_loader(backend=state["loader_backend"])
        self.loader.load_state_dict(state["loader"])
        self.learner.load_state_dict(state)
        self.step, self.best_score = state["step"], state["best"]
        self._validated = state["validated"]
        set_random_state(state["rng"], self.world.rank, self.config.seed)

    def _save(self, *, best: bool = False, keep: str | None = None) -> None:
        model, state = self.learner.published(), self._state(self.loader.epoch)
        if not all(value.isfinite().all() for value in state["weights"].values()):
            raise TrainingDiverged(
                f"the weights after step {self.step - 1} are not finite"
            )
        if self.world.leads:
            metadata = {key: state[key] for key in METADATA}
            self.run.save(
                lambda folder: save_model(model, folder / MODEL_FILE, metadata),
                state,
                step=self.step,
                best=best,
                keep=keep,
            )
        self._saved_at = time.monotonic()

    # ---- the loop ----

    def fit(self) -> TrainSummary:
        """Train to the end of the last epoch, validating and saving on the way.

        Raises:
            Preempted: A signal requested a stop; the state is saved.
            TrainingDiverged: A loss or a weight is not finite; nothing was saved since.
            OutputError: A checkpoint or the log cannot be written.
        """
        config, leads = self.config, self.world.leads
        self.runlog.begin(self.step)
        self.describe()
        self._saved_at = time.monotonic()
        with (
            use_backend(config.backend),
            open_listeners(
                self.run.path,
                self.step,
                config.to_dict(),
                config.tensorboard and leads,
                config.wandb if leads else None,
            ) as self.run.listeners,
            contextlib.closing(self.profile),
            stop_on_signal() as stop,
        ):
            try:
                self.runlog.started(self.step, resumed=self.resumed)
                while self.loader.epoch < config.epochs or not self._validated:
                    if self._validated:
                        self._epoch(stop)
                    self._finish_epoch(stop)
                return self._finish(stop)
            except TrainingDiverged as error:
                raise self.runlog.diverged(error, self.step) from None
            except Interrupted:
                self._stop(stop)
            finally:
                self.run.release()

    def describe(self) -> None:
        """Print a description of the run, with warnings where due."""
        self.runlog.describe(self.images, self.device)
        if self.learner.exact_input:
            self.runlog.note(
                f"inputs of the network stay float32: in {self.learner.precision}, much of "
                f"a perturbation of {self.config.threat} at {self.resolution} px would be "
                "rounded away"
            )

    def _epoch(self, stop: StopRequest) -> None:
        config, epoch = self.config, self.loader.epoch
        self.model.train()
        side = side_at(config, self.resolution, epoch)
        self.loader.set_resolution(side)
        self.learner.begin_epoch(radius_at(config, side, self.resolution, epoch))
        interval = Interval()
        batches, stopping = iter(self.loader), 0  # signal number
        self.profile.begin_epoch()
        while not stopping:
            began = time.monotonic()
            with phase("data"), self._saved_on_error():
                batch = next(batches, None)
            if batch is None:
                self.validation.saw(self.loader)
                break
            waited = time.monotonic() - began
            result = self.update(batch)
            interval.add(result, len(batch.labels), waited)
            self._check_overfit()
            now = time.monotonic()
            stopping, overdue, report = self.world.agree_to_stop(
                stop,
                now - self._saved_at > 60 * config.save_minutes,
                now - interval.began > _LOG_SECONDS,
            )
            if stopping or overdue or report:
                interval = self._report(interval, epoch)
            else:
                self.runlog.show(epoch, self.step)
            self.profile.end_step()
            if overdue and not stopping and self.step % len(self.loader):
                self._save()
                self.profile.begin_epoch()
        if interval.losses:
            self._report(interval, epoch)
        if stopping:
            self._stop(stop)

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

    def _check_overfit(self) -> None:
        check = self.learner.check_overfit(self.step)
        if check is None:
            return
        self.runlog.checked(check, self.step)
        if check.collapsed and self.config.on_overfit == "stop":
            raise CatastrophicOverfitting(
                f"{check.message(self.step)}; checkpoints are as they were. Choose a smaller "
                "`eps`, `method=n_fgsm`, gradalign or pgd_at, or `on_overfit=fallback`"
            )

    @contextlib.contextmanager
    def _saved_on_error(self) -> Iterator[None]:
        """Save before an error ends the run; several ranks resume from `last` instead."""
        try:
            yield
        except Interrupted:
            raise
        except Exception:
            if self.world.size == 1 and self.step:
                with contextlib.suppress(FastadvError):
                    self._save()
            raise

    def _report(self, interval: Interval, epoch: int) -> Interval:
        lr = self.optimizer.param_groups[0]["lr"]
        self.runlog.trained(interval, epoch, self.step, lr)
        return Interval()

    def _finish_epoch(self, stop: StopRequest) -> None:
        epoch = self.loader.epoch  # epochs done: the loader is at the next one
        best = False
        if epoch % self.config.eval_every == 0 or epoch == self.config.epochs:
            self._validated = False
            with self._saved_on_error():
                found = self.validation(self.learner.published(), self.val_set, stop)
            self._validated = True
            score = found.robust.top1 if found.robust else found.clean.top1
            best, self.best_score = score > self.best_score, max(score, self.best_score)
            self.runlog.validated(found, epoch, self.step)
        self._draw_pictures(epoch)
        every = self.config.keep_every
        keep = f"epoch-{epoch:04d}" if every and epoch % every == 0 else None
        self._save(best=best, keep=keep)
        number, *_ = self.world.agree_to_stop(stop)
        if number:
            self._preempted(stop)

    def _draw_pictures(self, epoch: int) -> None:
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
        names = sorted(set().union(*self.world.gather(self.validation.bad_images)))
        attack = self.learner.attack
        compiled = asdict(attack.compile_report()) if attack else None
        summary = self.runlog.tested(found, self.step, names, compiled)
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

    def _stop(self, stop: StopRequest) -> NoReturn:
        self.world.agree_to_stop(stop)
        self._save()
        self._preempted(stop)

    def _preempted(self, stop: StopRequest) -> NoReturn:
        self.run.log("preempted", step=self.step, signal=stop.signal)
        raise Preempted(
            f"{stop.signal}: saved step {self.step}; continue with "
            f"`resume` `out={self.run.path}`"
        )


def train(config: TrainConfig, model: nn.Module | None = None) -> TrainSummary:
    """Build a `Trainer` and fit it, as one of the ranks that the environment describes."""
    with join_ranks(config.device) as world:
        return Trainer(config, world=world, model=model).fit()
