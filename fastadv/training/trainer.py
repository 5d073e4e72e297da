"""The training loop: build, resume, step, validate, save, test."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from fastadv.attacks import PGD
from fastadv.data import Batch
from fastadv.data.counter import derive_key
from fastadv.errors import (
    CatastrophicOverfitting,
    FastadvError,
    Preempted,
    TrainingDiverged,
)
from fastadv.kernels import use_backend
from fastadv.kernels.registry import check_backend_name
from fastadv.models import create_model, load_model, save_model
from fastadv.models.architecture_names import MODEL_FILE
from fastadv.models.view import AttackView
from fastadv.phases import phase
from fastadv.runs.directory import RunDirectory
from fastadv.runs.distributed import (
    World,
    joined,
    random_state,
    set_random_state,
)
from fastadv.runs.listeners import (
    PICTURE,
    ListenerGroup,
    check_listeners,
    open_listeners,
)
from fastadv.runs.preemption import StopRequest, stop_on_signal
from fastadv.runs.profile import StepProfile
from fastadv.training.config import TrainConfig
from fastadv.training.images import RunImages
from fastadv.training.interval import Interval
from fastadv.training.learner import Learner, judging_attack
from fastadv.training.optimizer_config import learning_rate
from fastadv.training.overfit import Look, OverfitWatch, held_out
from fastadv.training.runlog import RunLog
from fastadv.training.snapshots import draw, shown
from fastadv.training.stages import radius_at, side_at
from fastadv.training.step import StepResult, train_step
from fastadv.training.validation import Interrupted, Validation

log = logging.getLogger(__name__)

# Choices that may differ when a run is resumed: none of them changes what is computed.
MAY_CHANGE = (
    "out",
    "resume",
    "device",
    "workers",
    "save_minutes",
    "backend",
    "data",
    "dataset_option",
    "keep_every",
    "pictures_every",
    "tensorboard",
    "wandb",
    "parallel",
)
# The parts of the state that are saved with the weights, too.
METADATA = ("config", "resolution", "classes", "epoch", "step", "best")
_LOG_SECONDS = 10.0  # between "train" events; reading the losses waits for the device


@dataclass(frozen=True)
class TrainSummary:
    """What a finished run reached, on the evaluation split, with its best weights.

    Attributes:
        run: the run directory.
        clean_acc: share of all test images, in [0, 1].
        robust_acc: share of the attacked ones; None for a standard run.
        images_per_s: training images per second over the whole run.
    """

    run: Path
    clean_acc: float
    robust_acc: float | None
    images_per_s: float


class Trainer:
    """Everything one run needs, built from its config.

    Args:
        config: the run's choices.
        dry_run: build everything, but neither create nor open the run directory.
        world: the ranks this process is one of; see `distributed.joined`.
        profile: find out where so many steps go, see `StepProfile`; None for not.

    Raises:
        ConfigError: choices that do not go together.
        DataError: the data set cannot be used.
        CheckpointError: the state to resume from cannot be read.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        dry_run: bool = False,
        world: World | None = None,
        profile: int | None = None,
    ) -> None:
        self.config = config
        self.world = world or World()
        check_listeners(**self._listeners, writes=self.world.leads)
        if config.backend != "auto":
            check_backend_name(config.backend)
        self.device = self.world.device(config.device)
        self.run = RunDirectory(
            config.out_path, may_change=MAY_CHANGE, writes=self.world.leads
        )
        self.images = RunImages(config, self.device, self.world)
        self.resolution, self.batch_size = (
            self.images.resolution,
            self.images.batch_size,
        )
        self.train_set, self.val_set = self.images.train, self.images.val
        self.test_set = self.images.test
        self.loader = self.images.train_loader()
        self.total_steps = config.epochs * len(self.loader)
        classes = len(self.train_set.classes)
        resumes = self.world.share(config.resume and self.run.began)
        # Not read again to resume: what a run began with may be gone by then.
        source = None if resumes else config.init_from
        self.model = create_model(
            config.arch, classes, weights=source, seed=config.seed
        )
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.learner = Learner(config, self.model, self.resolution, self.world)
        self.parallel, self.optimizer = self.learner.parallel, self.learner.optimizer
        if self.learner.watched and not dry_run:
            self.learner.watch = OverfitWatch.on(
                self.images.eval_loader(held_out(self.val_set, config.seed)),
                config.threat,
                updates_per_epoch=len(self.loader),
                batch_size=self.batch_size,
                seed=config.seed,
                dtype=self.view.dtype if self.view is not None else None,
            )
        self.validation = Validation(
            self.images.eval_loader,
            self.judge if self.attack else None,
            config.eval_images,
            config.seed,
            self.world,
        )
        self.step, self.best_score = 0, -1.0
        self._validated = True  # what the last epoch left
        self.runlog = RunLog(
            config,
            self.run,
            self.world,
            self.total_steps,
            attacked=self.attack is not None,
        )
        self.profile = StepProfile(
            self.run.path if self.world.leads else None,
            profile,
            self.device,
            self.batch_size,
            self.runlog.note,
        )
        prepares = self.world.leads and not dry_run
        state = self.world.share(self._open_run() if prepares else None)
        self.resumed = state is not None
        try:
            if state is not None:
                self._load_state(state)
            if prepares:  # not before: a resume that is refused changes nothing
                self.run.record(config.to_dict())
        except BaseException:
            self.run.release()
            raise

    # ---- parts ----

    @property
    def attack(self) -> PGD | None:
        """The attack of training at its full radius."""
        return self.learner.attack

    @property
    def view(self) -> AttackView | None:
        """What it attacks."""
        return self.learner.view

    @property
    def judge(self) -> PGD:
        """What validations attack with."""
        return judging_attack(self.config, self.config.eval_steps)

    def _stage(self, epoch: int) -> None:
        """Resolution and radius of `epoch`."""
        side = side_at(self.config, self.resolution, epoch)
        self.loader.set_resolution(side)
        scale = radius_at(self.config, side, self.resolution, epoch)
        self.learner.begin_epoch(scale)

    @property
    def _listeners(self) -> dict[str, Any]:
        """Return what of the configuration chooses listeners."""
        return {"tensorboard": self.config.tensorboard, "wandb": self.config.wandb}

    # ---- state ----

    def _open_run(self) -> dict[str, Any] | None:
        """Lock the run directory; return the state to resume from, if there is one."""
        config = self.config
        state = self.run.prepare(config.to_dict(), resume=config.resume)
        if state is not None and not self.run.has_best:
            state["best"] = -1.0  # the best epoch is chosen again from those to come
        return state

    def _state(self, epoch: int) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "resolution": self.resolution,
            "classes": list(self.test_set.classes),
            "epoch": epoch,
            "step": self.step,
            "best": self.best_score,
            "validated": self._validated,
            "loader": self.loader.state_dict(),
            "loader_backend": self.loader.backend,
            "rng": self.world.gather(random_state()),
        } | self.learner.state_dict()

    def _open_listeners(self) -> AbstractContextManager[ListenerGroup]:
        if not self.world.leads:
            return contextlib.nullcontext(ListenerGroup())
        config = self.config
        return open_listeners(
            self.run.path, self.step, config.to_dict(), **self._listeners
        )

    def _load_state(self, state: dict[str, Any]) -> None:
        self.images.check_classes(state["classes"])
        backend = state["loader_backend"]
        if backend != self.loader.backend:
            # `auto` looks at the memory that is free now; the run goes on as it began.
            self.loader = self.images.train_loader(backend=backend)
        self.loader.load_state_dict(state["loader"])
        self.learner.load_state_dict(state)
        self.step, self.best_score = state["step"], state["best"]
        self._validated = state["validated"]
        set_random_state(state["rng"], self.world.rank, self.config.seed)

    def _save(self, *, best: bool = False, keep: str | None = None) -> None:
        model, state = self.learner.published(), self._state(self.loader.epoch)
        values = (v for v in state["weights"].values() if v.is_floating_point())
        if not all(value.isfinite().all() for value in values):
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
            Preempted: a signal asked for a stop; the state is saved.
            TrainingDiverged: a loss or a weight is not finite; nothing was saved since.
            CheckpointError: a checkpoint cannot be written.
        """
        config = self.config
        self.runlog.begin(self.step)
        self.describe()
        self._saved_at = time.monotonic()
        with (
            use_backend(config.backend),
            self._open_listeners() as self.run.listeners,
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
        """Say what is about to be trained on what."""
        doubt = self.config.threat.doubt(self.resolution)
        if doubt:
            log.warning(doubt)
        if self.config.method == "discrepancy" and self.config.init_from is None:
            log.warning(
                "--method discrepancy holds on to the features of a robust source; without "
                "--init-from those are random"
            )
        self.runlog.describe(self.images, self.device)

    def _epoch(self, stop: StopRequest) -> None:
        config, epoch = self.config, self.loader.epoch
        self.model.train()
        self._stage(epoch)
        interval = Interval()
        batches, stopping = iter(self.loader), 0  # signal number
        self.profile.begin_epoch()
        while not stopping:
            began = time.monotonic()
            with phase("data"):
                batch = self._next(batches)
            if batch is None:
                self.validation.saw(self.loader)
                break
            waited = time.monotonic() - began
            result = self.update(batch)
            interval.add(result, len(batch.labels), waited)
            look = self.learner.look(self.step)
            if look is not None:
                self._looked(look)
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
        """One training step: the model must be in the mode it trains in."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.total_steps)
        self.parallel.gather_weights()
        result = train_step(
            self.model,
            batch.images,
            batch.labels,
            self.optimizer,
            method=self.learner.method,
            update=self.learner.update,
            seed=derive_key(self.config.seed, "start", self.step),
            # Ranks hold consecutive parts of one batch, numbered through.
            offset=self.world.rank * len(batch.labels),
            ranks=self.world.size,
        )
        self.learner.after_step()
        self.step += 1
        return result

    def _looked(self, look: Look) -> None:
        """Act on what the watch for catastrophic overfitting saw."""
        self.runlog.looked(look, self.step)
        if look.collapsed and self.config.on_overfit == "stop":
            raise CatastrophicOverfitting(
                f"{look.words(self.step)}; checkpoints are as they were. Choose a smaller "
                "--eps, --method n_fgsm, gradalign or pgd_at, or --on-overfit fallback"
            )

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch; where it cannot be had, what was reached is saved."""
        try:
            return next(batches, None)
        except Exception:
            self._save_alone()
            raise

    def _save_alone(self) -> None:
        """Before an error ends the run: other ranks could not take part, and go on from
        `last`.
        """
        if self.world.size == 1 and self.step:
            with contextlib.suppress(FastadvError):
                self._save()

    def _report(self, interval: Interval, epoch: int) -> Interval:
        lr = self.optimizer.param_groups[0]["lr"]
        self.runlog.trained(interval, epoch, self.step, lr)
        return Interval()

    def _finish_epoch(self, stop: StopRequest) -> None:
        epoch = self.loader.epoch  # of the next one: the loader has moved on
        best = False
        if epoch % self.config.eval_every == 0 or epoch == self.config.epochs:
            self._validated = False
            try:
                found = self.validation(self.learner.published(), self.val_set, stop)
            except Interrupted:
                raise
            except Exception:
                self._save_alone()
                raise
            self._validated = True
            score = found.robust.top1 if found.robust else found.clean.top1
            best, self.best_score = score > self.best_score, max(score, self.best_score)
            self.runlog.validated(found, epoch, self.step)
        self._draw(epoch)
        every = self.config.keep_every
        keep = f"epoch-{epoch:04d}" if every and epoch % every == 0 else None
        self._save(best=best, keep=keep)
        number, *_ = self.world.agree_to_stop(stop)
        if number:
            self._preempted(stop)

    def _draw(self, epoch: int) -> None:
        every = self.config.pictures_every
        if not every or epoch % every:
            return
        model = self.parallel.plain()  # of all ranks, so before the next line
        if not self.world.leads:
            return
        batch = next(iter(self.images.eval_loader(shown(self.val_set))))
        attack = self.judge if self.attack else None
        names = self.test_set.classes
        file = draw(self.run.path, epoch, model, batch, names, attack)
        if file:
            self.run.log(PICTURE, epoch=epoch, step=self.step, file=file)

    def _finish(self, stop: StopRequest) -> TrainSummary:
        # What every other command loads from this run: the best weights, not the last.
        if self.world.size == 1:
            model = load_model(self.run.path).to(self.device)
        else:
            leads = self.world.leads
            best = load_model(self.run.path).state_dict() if leads else {}
            model = self.parallel.replica(self.world.share(best))
        found = self.validation(model, self.test_set, stop)
        names = sorted(set().union(*self.world.gather(self.validation.bad_images)))
        attack = self.attack
        compiled = None if attack is None else attack.compile_report().to_dict()
        rate = self.runlog.tested(found, self.step, names, compiled)
        robust = found.robust.top1 if found.robust else None
        return TrainSummary(self.run.path, found.clean.top1, robust, rate)

    def _stop(self, stop: StopRequest) -> NoReturn:
        """Save and end, as some rank was asked to."""
        self.world.agree_to_stop(stop)
        self._save()
        self._preempted(stop)

    def _preempted(self, stop: StopRequest) -> NoReturn:
        self.run.log("preempted", step=self.step, signal=stop.signal)
        raise Preempted(
            f"{stop.signal}: saved step {self.step}; continue with "
            f"--resume --out {self.run.path}"
        )


def train(config: TrainConfig) -> TrainSummary:
    """Build a `Trainer` and fit it, as one of the ranks the environment describes."""
    with joined(config.device) as world:
        return Trainer(config, world=world).fit()
