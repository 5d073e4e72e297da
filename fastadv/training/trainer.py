"""The training loop: build, resume, step, validate, save, test."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastadv.attacks import PGD
from fastadv.data import (
    Batch,
    ImageSet,
    Loader,
    make_loader,
    native_resolution,
    open_dataset,
    subset,
    train_val_split,
)
from fastadv.data.counter import derive_key
from fastadv.data.loaders import Backend
from fastadv.environment import provenance, resolve_device
from fastadv.errors import ConfigError, Preempted, TrainingDiverged
from fastadv.evaluation import Evaluation, evaluate
from fastadv.kernels import use_backend
from fastadv.kernels.registry import check_backend_name
from fastadv.models import NormalizedModel, create_model, load_model
from fastadv.models.view import AttackView
from fastadv.training.config import TrainConfig, learning_rate
from fastadv.training.interval import Interval
from fastadv.training.preemption import StopRequest, stop_on_signal
from fastadv.training.progress import Progress
from fastadv.training.rundir import RunDirectory
from fastadv.training.step import train_step

log = logging.getLogger(__name__)

_VAL_SHARE, _VAL_MOST = 0.05, 10_000
_LOG_SECONDS = 10.0  # between "train" events; reading the losses waits for the device
_EVAL_BATCH = 128


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

    Raises:
        ConfigError: choices that do not go together.
        DataError: the data set cannot be used.
        CheckpointError: the state to resume from cannot be read.
    """

    def __init__(self, config: TrainConfig, *, dry_run: bool = False) -> None:
        self.config = config
        if config.backend != "auto":
            check_backend_name(config.backend)
        self.device = resolve_device(config.device)
        self.run = RunDirectory(config.out_path)
        drawn = (
            32 if config.arch.endswith("_cifar") else 64
        )  # where images have no size
        self.resolution = config.resolution or native_resolution(config.data) or drawn
        config.threat.check_side(self.resolution)
        splits = open_dataset(config.data, resolution=self.resolution)
        pool = subset(splits.train, config.num_train, config.seed)
        self.train_set, self.val_set = self._hold_out(pool)
        self.test_set = splits.test
        self.batch_size = config.resolve_batch_size(len(self.train_set))
        self.loader = self._loader(self.train_set, train=True)
        self.total_steps = config.epochs * len(self.loader)
        classes = len(splits.train.classes)
        self.model = create_model(config.arch, classes, seed=config.seed)
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.attack = self._attack(config.num_steps) if config.adversarial else None
        self.view = (
            AttackView(self.model, dtype=self.attack.dtype) if self.attack else None
        )
        self.step, self.best_score = 0, -1.0
        self._validated = True  # what the last epoch left
        self.bad_images: set[str] = set()
        self._trained_images, self._trained_seconds = 0, 0.0
        self.progress = Progress(self.total_steps)
        state = None if dry_run else self.run.prepare(config)
        self.resumed = state is not None
        if state is not None:
            self._load_state(state)

    # ---- parts ----

    def _hold_out(self, pool: ImageSet) -> tuple[ImageSet, ImageSet]:
        wanted = self.config.val_size
        if wanted is None:
            wanted = min(round(_VAL_SHARE * len(pool)), _VAL_MOST)
        wanted = max(wanted, len(pool.classes))
        if wanted >= len(pool):
            raise ConfigError(
                f"{len(pool)} training images cannot give {wanted} for validation; "
                "use more images or a smaller --val-size"
            )
        return train_val_split(pool, wanted / len(pool), self.config.seed)

    def _loader(
        self, images: ImageSet, *, train: bool, backend: Backend | None = None
    ) -> Loader:
        config = self.config
        return make_loader(
            images,
            backend=backend or config.loader,
            batch_size=self.batch_size if train else _EVAL_BATCH,
            resolution=self.resolution,
            train=train,
            seed=config.seed,
            augment=config.augment,  # decides how evaluation crops, too
            device=self.device,
            workers=config.workers,
            on_bad_image=config.on_bad_image,
        )

    def _attack(self, num_steps: int, *, judge: bool = False) -> PGD:
        config = self.config
        step_size, how = config.step_size, config.compile
        if judge:  # 2.5 eps / K crosses the ball from anywhere (Madry et al. 2018)
            step_size = 2.5 * config.threat.eps / num_steps
            how = "off" if how == "off" else "auto"  # too few batches to compile for
        return PGD(
            config.threat,
            num_steps,
            step_size,
            random_start=judge or config.random_start,
            keep="best" if judge else "last",
            seed=config.seed,
            dtype=torch.bfloat16 if config.precision == "bf16" and not judge else None,
            compile=how,
        )

    # ---- state ----

    def _state(self, epoch: int) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "resolution": self.resolution,
            "classes": list(self.test_set.classes),
            "epoch": epoch,
            "step": self.step,
            "best": self.best_score,
            "validated": self._validated,
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "loader_backend": self.loader.backend,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all()
            if torch.cuda.is_available()
            else [],
            "weights": self.model.state_dict(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        backend = state["loader_backend"]
        if backend != self.loader.backend:
            # `auto` looks at the memory that is free now; the run goes on as it began.
            self.loader = self._loader(self.train_set, train=True, backend=backend)
        self.loader.load_state_dict(state["loader"])
        self.step, self.best_score = state["step"], state["best"]
        self._validated = state["validated"]
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    def _save(self, *, best: bool = False) -> None:
        values = (v for v in self.model.state_dict().values() if v.is_floating_point())
        if not all(value.isfinite().all() for value in values):
            raise TrainingDiverged(
                f"the weights after step {self.step - 1} are not finite"
            )
        self.run.save(
            self.model, self._state(self.loader.epoch), step=self.step, best=best
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
        self.progress = Progress(self.total_steps, self.step)
        self.describe()
        self._log_start()
        self._saved_at = time.monotonic()
        with use_backend(config.backend), stop_on_signal() as stop:
            try:
                while self.loader.epoch < config.epochs or not self._validated:
                    if self._validated:
                        self._epoch(stop)
                    self._finish_epoch(stop)
                return self._finish(stop)
            except TrainingDiverged as error:
                raise self._diverged(error) from None

    def describe(self) -> None:
        """Say what is about to be trained on what."""
        config, note = self.config, self.progress.note
        doubt = config.threat.doubt(self.resolution)
        if doubt:
            log.warning(doubt)
        what = (
            f"{config.threat}, {config.num_steps} steps" if self.attack else "standard"
        )
        if config.data == "shapetex":
            note(
                "--data is shapetex, the built-in procedural set, drawn at "
                f"{self.resolution} px; --data PATH trains on your images"
            )
        note(
            f"{config.arch} on {self.train_set.name} at {self.resolution} px, {what}: "
            f"{len(self.train_set)} training, {len(self.val_set)} validation, "
            f"{len(self.test_set)} test images, {len(self.test_set.classes)} classes; "
            f"batch {self.batch_size}, {config.epochs} epochs, {self.total_steps} steps, "
            f"{self.device}"
        )

    def _log_start(self) -> None:
        config, note = self.config, self.progress.note
        if self.resumed:
            note(f"resuming {self.run.path} at step {self.step}")
        elif config.resume:
            note(f"{self.run.path} holds no run yet: starting it")
        self.run.log(
            "resume" if self.resumed else "start",
            step=self.step,
            total_steps=self.total_steps,
            config=config.to_dict(),
            environment=provenance(),
        )

    def _epoch(self, stop: StopRequest) -> None:
        config, epoch = self.config, self.loader.epoch
        self.model.train()
        interval = Interval()
        for batch, waited in _timed(self._batches(self.loader, stop)):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(config, self.step, self.total_steps)
            result = train_step(
                self.model,
                batch.images,
                batch.labels,
                self.optimizer,
                attack=self.attack,
                view=self.view,
                seed=derive_key(config.seed, "start", self.step),
                precision=config.precision,
            )
            self.step += 1
            interval.add(result, len(batch.labels), waited)
            overdue = time.monotonic() - self._saved_at > 60 * config.save_minutes
            if time.monotonic() - interval.began > _LOG_SECONDS or stop or overdue:
                interval = self._report(interval, epoch)
            else:
                self._show(epoch)
            if overdue and self.step % len(self.loader):
                self._save()
        if interval.losses:
            self._report(interval, epoch)

    def _report(self, interval: Interval, epoch: int) -> Interval:
        self._last = numbers = interval.read(self.step - 1)
        self._trained_images += interval.images
        self._trained_seconds += time.monotonic() - interval.began
        lr = self.optimizer.param_groups[0]["lr"]
        rounded = {key: round(value, 5) for key, value in numbers.items()}
        self.run.log("train", epoch=epoch, step=self.step, lr=lr, **rounded)
        self._show(epoch)
        return Interval()

    def _show(self, epoch: int) -> None:
        text = f"epoch {epoch + 1}/{self.config.epochs}"
        last = getattr(self, "_last", None)
        if last:
            text += (
                f"  loss {last['loss']:.3f}  acc {100 * last['acc']:.1f} %"
                f"  {last['images_per_s']:.1f} images/s"
                f"  data wait {100 * last['data_wait']:.0f} %"
            )
        self.progress.update(self.step, text)

    def _finish_epoch(self, stop: StopRequest) -> None:
        epoch = self.loader.epoch  # of the next one: the loader has moved on
        best = False
        if epoch % self.config.eval_every == 0 or epoch == self.config.epochs:
            self._validated = False
            found = self._evaluate(self.model, self.val_set, stop)
            self._validated = True
            score = found.robust.top1 if found.robust else found.clean.top1
            best, self.best_score = score > self.best_score, max(score, self.best_score)
            self.run.log("val", epoch=epoch, step=self.step, **_numbers(found))
            self.progress.note(f"epoch {epoch} validation: {_words(found)}")
        self._save(best=best)
        self._stop_if(stop)

    def _evaluate(
        self, model: NormalizedModel, images: ImageSet, stop: StopRequest
    ) -> Evaluation:
        """Clean accuracy on all of `images`, robust accuracy on `eval_images` of them."""

        def batches(images: ImageSet) -> Iterator[Batch]:
            return self._batches(self._loader(images, train=False), stop)

        if self.attack is None:
            return evaluate(model, batches(images))
        judge = self._attack(self.config.eval_steps, judge=True)
        most = max(self.config.eval_images, len(images.classes))
        if len(images) <= most:
            return evaluate(model, batches(images), judge)
        attacked = subset(images, most, self.config.seed)
        clean = evaluate(model, batches(images)).clean
        robust = evaluate(model, batches(attacked), judge).robust
        return Evaluation(clean, robust)

    def _batches(self, loader: Loader, stop: StopRequest) -> Iterator[Batch]:
        """Batches of `loader`, until a stop is asked for: then the state is saved."""
        batches = iter(loader)
        while not stop:
            batch = next(batches, None)
            if batch is None:
                self.bad_images |= {name for name, _ in loader.bad_images}
                return
            yield batch
        self._save()
        self._stop_if(stop)

    def _finish(self, stop: StopRequest) -> TrainSummary:
        # What every other command loads from this run: the best weights, not the last.
        model = load_model(self.run.path).to(self.device)
        found = self._evaluate(model, self.test_set, stop)
        if self.bad_images:
            names = sorted(self.bad_images)
            self.run.log("bad_images", count=len(names), images=names)
            self.progress.note(
                f"{len(names)} unreadable image(s) were replaced by others of their class"
            )
        if self.attack is not None:
            report = self.attack.compile_report().to_dict()
            self.run.log("compile", step=self.step, **report)
        rate = self._trained_images / max(self._trained_seconds, 1e-9)
        self.run.log(
            "test", step=self.step, images_per_s=round(rate, 2), **_numbers(found)
        )
        self.progress.note(f"test (best weights): {_words(found)}")
        robust = found.robust.top1 if found.robust else None
        return TrainSummary(self.run.path, found.clean.top1, robust, rate)

    def _stop_if(self, stop: StopRequest) -> None:
        if stop:
            self.run.log("preempted", step=self.step, signal=stop.signal)
            raise Preempted(
                f"{stop.signal}: saved step {self.step}; continue with "
                f"--resume --out {self.run.path}"
            )

    def _diverged(self, error: TrainingDiverged) -> TrainingDiverged:
        self.run.log("diverged", step=self.step, reason=str(error))
        last = self.run.checkpoints / "last"
        kept = (
            f"the last good checkpoint is {last.resolve()}"
            if last.exists()
            else "no checkpoint had been saved yet"
        )
        return TrainingDiverged(
            f"{error}; {kept}. Lower --lr (now {self.config.lr:g}) or try --precision fp32"
        )


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds spent waiting for it."""
    while True:
        began = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - began


def _numbers(found: Evaluation) -> dict[str, Any]:
    numbers: dict[str, Any] = {"clean_acc": found.clean.top1, "n": found.clean.n}
    if found.robust:
        numbers |= {"robust_acc": found.robust.top1, "robust_n": found.robust.n}
    return numbers


def _words(found: Evaluation) -> str:
    text = f"clean {100 * found.clean.top1:.1f} % of {found.clean.n}"
    if found.robust:
        text += f", robust {100 * found.robust.top1:.1f} % of {found.robust.n}"
    return text


def train(config: TrainConfig) -> TrainSummary:
    """Build a `Trainer` and fit it."""
    return Trainer(config).fit()
