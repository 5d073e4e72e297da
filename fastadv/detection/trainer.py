"""The training loop of detectors: it builds a run, resumes, steps, saves and tests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastadv.data.counter import derive_key
from fastadv.detection.batches import (
    DetectionBatch,
    DetectionLoader,
    DetectionLoaderOptions,
)
from fastadv.detection.config import DetectorConfig, DetectTrainConfig
from fastadv.detection.learner import DetectorLearner
from fastadv.detection.metrics import Findings
from fastadv.detection.networks import build_detector
from fastadv.detection.opening import open_detection
from fastadv.detection.runlog import (
    DetectionLog,
    DetectionSummary,
    LossInterval,
    whole_state,
)
from fastadv.detection.saving import DETECTOR_FILE, DetectorFacts, write_detector
from fastadv.detection.sets import DetectionSet
from fastadv.device import exact_float32
from fastadv.errors import ConfigError, FastadvError, Preempted, TrainingDiverged
from fastadv.models import create_model, get_spec
from fastadv.models.checkpoint import decimals
from fastadv.models.source import open_source
from fastadv.phases import phase
from fastadv.ranges import ordered_values
from fastadv.runs.directory import RunDirectory
from fastadv.runs.distributed import World, join_ranks, random_state, set_random_state
from fastadv.runs.listeners import check_listeners, open_listeners
from fastadv.runs.preemption import StopRequest, stop_on_signal
from fastadv.runs.profile import StepProfile

# Choices that may differ when a run is resumed: none of them changes what is computed.
MAY_CHANGE = (
    "out", "resume", "device", "workers", "save_minutes", "backend", "data", "keep_every",
    "tensorboard", "wandb", "source",
)  # fmt: skip
_LOG_SECONDS = 10.0  # between "train" events; reading the losses waits for the device


class DetectorTrainer:
    """Everything that one run needs, built from its choices.

    Args:
        config: The choices of the run.
        dry_run: Build everything, but neither create nor open the run directory.
        world: The ranks of which this process is one; see `distributed.join_ranks`.
        profile: Number of steps to time; see `StepProfile`. None times nothing.

    Raises:
        ConfigError: Choices contradict each other.
        DataError: The set cannot be used.
        CheckpointError: The source or the state to resume from cannot be read.
    """

    def __init__(
        self,
        config: DetectTrainConfig,
        *,
        dry_run: bool = False,
        world: World | None = None,
        profile: int | None = None,
    ) -> None:
        self.config = config
        self.world = world or World()
        leads = self.world.leads
        check_listeners(config.tensorboard, config.wandb, writes=leads)
        self.device = self.world.device(config.device)
        self.run = RunDirectory(config.out_path, may_change=MAY_CHANGE, writes=leads)
        self._open_images()
        self.detector = self._build().to(self.device)
        self.total_steps = config.epochs * len(self.loader)
        warmup = min(config.warmup_steps, len(self.loader))
        self.learner = DetectorLearner(
            config, self.detector, self.world, self.total_steps, warmup
        )
        self.step = 0
        self.log = DetectionLog(config, self.run, self.world, self.total_steps)
        folder = self.run.path if leads else None
        self.profile = StepProfile(
            folder, profile, self.device, config.batch_size, self.log.note
        )
        self.resumed = False
        if not dry_run:
            self._prepare()

    def _open_images(self) -> None:
        config = self.config
        splits = open_detection(
            config.data,
            masks=config.masks,
            test_share=config.test_share,
            split_seed=config.split_seed,
            origin=config.origin,
            class_name=config.class_name,
        )
        self.train_set, self.test_set = splits.train, splits.test
        self.all_train = len(self.train_set)
        if config.empty_images == "leave_out":
            self.train_set = self.train_set.without_empty()
        self.loader = DetectionLoader(
            self.train_set,
            DetectionLoaderOptions(
                batch_size=self.world.per_rank(config.batch_size),
                train=True,
                seed=config.seed,
                rank=self.world.rank,
                world_size=self.world.size,
                augment=config.augment,
                device=self.device,
                on_bad_image=config.on_bad_image,
                workers=config.workers,
            ),
        )

    def _build(self) -> Any:
        config = self.config
        source: dict[str, Any] = {}
        if config.source is not None:
            opened = open_source(config.source)
            model = opened.load()
            named = ("name", "given", "digest", "norm", "eps", "kind")
            source = {name: getattr(opened, name) for name in named}
        else:
            model = create_model(config.arch or "", seed=config.seed)
        self.facts = DetectorFacts(
            arch=get_spec(model.arch).name,  # refused if it could not be built again
            mean=decimals(model.mean),
            std=decimals(model.std),
            classes=self.train_set.classes,
            category_ids=self.train_set.category_ids,
            masks=config.masks,
            config=DetectorConfig(**ordered_values(config, DetectorConfig)),
            source=source,
            training=config.to_dict(),
        )
        return build_detector(
            model,
            len(self.train_set.classes),
            config,
            masks=config.masks,
            seed=config.seed,
        )

    def _prepare(self) -> None:
        config, leads = self.config, self.world.leads
        state = None
        if leads:
            state = self.run.prepare(config.to_dict(), resume=config.resume)
        state = self.world.share(state)
        self.resumed = state is not None
        try:
            if state is not None:
                self._load_state(state)
            if leads:  # only now: a resume that is refused changes nothing
                self.run.record(config.to_dict())
        except BaseException:
            self.run.release()
            raise

    # ---- state ----

    def _state(self) -> dict[str, Any]:
        """Return everything that a resume needs. Every rank must call it."""
        return {
            "config": self.config.to_dict(),
            "classes": self.train_set.classes,
            "epoch": self.loader.epoch,
            "step": self.step,
            "loader": self.loader.state_dict(),
            "rng": self.world.gather(random_state()),
        } | self.learner.state_dict()

    def _load_state(self, state: dict[str, Any]) -> None:
        if state["classes"] != self.train_set.classes:
            raise ConfigError(
                f"`data={self.config.data}` has the classes {self.train_set.classes}, the "
                f"run was begun on {state['classes']}; resume with the set it was begun on"
            )
        self.loader.load_state_dict(state["loader"])
        self.learner.load_state_dict(state)
        self.step = state["step"]
        set_random_state(state["rng"], self.world.rank, self.config.seed)

    def _save(self, *, keep: str | None = None) -> None:
        state = self._state()
        if not whole_state(state["weights"]):
            raise TrainingDiverged(
                f"the weights after step {self.step - 1} are not finite"
            )
        if self.world.leads:
            progress = {"epoch": self.loader.epoch, "step": self.step}
            facts = DetectorFacts(
                **vars(self.facts) | {"training": self.facts.training | progress}
            )
            self.run.save(
                lambda folder: write_detector(
                    self.learner.published, facts, folder / DETECTOR_FILE
                ),
                state,
                step=self.step,
                best=False,
                keep=keep,
            )
        self._saved_at = time.monotonic()

    # ---- the loop ----

    def fit(self) -> DetectionSummary:
        """Train to the end of the last epoch, saving on the way, and test.

        Raises:
            Preempted: A signal requested a stop; the state is saved.
            TrainingDiverged: A loss or a weight is not finite; nothing was saved since.
            OutputError: A checkpoint or the log cannot be written.
        """
        config, leads = self.config, self.world.leads
        if not self.resumed:
            # Drawing proposals and sizes of images takes torch's own generator.
            torch.manual_seed(derive_key(config.seed, "proposals", self.world.rank))
        self.log.begin(self.step)
        self.describe()
        self._saved_at = time.monotonic()
        with (
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
                self.log.started(self.step, resumed=self.resumed)
                while self.loader.epoch < config.epochs:
                    self._epoch(stop)
                    self._finish_epoch(stop)
                return self._finish()
            except TrainingDiverged as error:
                raise self.log.diverged(error, self.step) from None
            finally:
                self.run.release()

    def describe(self) -> None:
        """Print a description of the run, and what was left out of the set."""
        config = self.config
        begin = "random weights" if config.scratch else f"{config.source}"
        left = self.all_train - len(self.train_set)
        what = "Mask R-CNN" if config.masks else "Faster R-CNN"
        empty = f" ({left} without objects left out)" if left else ""
        stages, norm = config.frozen
        self.log.note(
            f"{what} on {self.facts.arch} from {begin}, {self.train_set.name}: "
            f"{len(self.train_set)} training images{empty}, {len(self.test_set)} test "
            f"images, {len(self.train_set.classes)} classes; {stages} frozen stages, "
            f"BatchNorm {'frozen' if norm else 'trains'}; shorter side "
            f"{' '.join(map(str, config.min_size))} px; batch {config.batch_size}, "
            f"{config.epochs} epochs, {self.total_steps} steps, {self.learner.precision}, "
            f"{self.device}"
        )
        for images in (self.train_set, self.test_set):
            for line in images.report.lines():
                self.log.note(f"{images.split}: {line}")

    def _epoch(self, stop: StopRequest) -> None:
        config, epoch = self.config, self.loader.epoch
        self.detector.train()
        interval = LossInterval()
        batches, stopping = iter(self.loader), 0  # signal number
        self.profile.begin_epoch()
        while not stopping:
            began = time.monotonic()
            with phase("data"), self._saved_on_error():
                batch = next(batches, None)
            if batch is None:
                break
            waited = time.monotonic() - began
            losses = self.update(batch)
            interval.add(losses, len(batch.images), waited)
            now = time.monotonic()
            stopping, overdue, report = self.world.agree_to_stop(
                stop,
                now - self._saved_at > 60 * config.save_minutes,
                now - interval.began > _LOG_SECONDS,
            )
            if stopping or overdue or report:
                interval = self._report(interval, epoch)
            else:
                self.log.show(epoch, self.step)
            self.profile.end_step()
            if overdue and not stopping and self.step % len(self.loader):
                self._save()
                self.profile.begin_epoch()
        if interval.losses:
            self._report(interval, epoch)
        if stopping:
            self._save()
            self._preempted(stop)

    def update(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Do one training step; the detector must be in train mode."""
        losses = self.learner.update(batch, self.step)
        self.step += 1
        return losses

    @contextlib.contextmanager
    def _saved_on_error(self) -> Iterator[None]:
        """Save before an error ends the run; several ranks resume from `last` instead."""
        try:
            yield
        except Exception:
            if self.world.size == 1 and self.step:
                with contextlib.suppress(FastadvError):
                    self._save()
            raise

    def _report(self, interval: LossInterval, epoch: int) -> LossInterval:
        lr = self.learner.optimizer.param_groups[0]["lr"]
        self.log.trained(interval, epoch, self.step, lr)
        return LossInterval()

    def _finish_epoch(self, stop: StopRequest) -> None:
        config, epoch = self.config, self.loader.epoch
        every = config.eval_every
        if every and epoch % every == 0 and epoch < config.epochs:
            self.log.judged("val", self.judge(), epoch, self.step)
        keeps = config.keep_every and epoch % config.keep_every == 0
        self._save(keep=f"epoch-{epoch:04d}" if keeps else None)
        number, *_ = self.world.agree_to_stop(stop)
        if number:
            self._preempted(stop)

    def test_loader(self, images: DetectionSet) -> DetectionLoader:
        """Return batches of one image of a set to be judged on, in its order."""
        return DetectionLoader(
            images,
            DetectionLoaderOptions(
                batch_size=1,
                train=False,
                device=self.device,
                on_bad_image=self.config.on_bad_image,
                workers=self.config.workers,
            ),
        )

    def judge(self) -> dict[str, float]:
        """Return average precisions on the test images by name. Every rank must call it.

        The random state, which training draws from, stays as it was.
        """
        found: dict[str, float] = {}
        if self.world.leads:
            detector = self.learner.published
            training = detector.training
            findings = Findings(self.train_set.classes, self.config.masks)
            loader = self.test_loader(self.test_set)
            detector.eval()
            with torch.no_grad(), exact_float32():
                for batch in loader:
                    images = [image.float() / 255 for image in batch.images]
                    for one, target in zip(
                        detector(images), batch.targets, strict=True
                    ):
                        findings.add(one, target)
            detector.train(training)
            metrics = findings.metrics(resamples=0)
            found = {name: each.value for name, each in metrics.values.items()}
        return self.world.share(found)

    def _finish(self) -> DetectionSummary:
        metrics = self.judge()
        bad = {name for name, _ in self.loader.bad_images}
        self.log.bad_images(sorted(set().union(*self.world.gather(bad))), "others")
        self.log.judged("test", metrics, self.loader.epoch, self.step)
        return DetectionSummary(self.run.path, metrics, self.log.images_per_s)

    def _preempted(self, stop: StopRequest) -> NoReturn:
        self.run.log("preempted", step=self.step, signal=stop.signal)
        raise Preempted(
            f"{stop.signal}: saved step {self.step}; continue with "
            f"`resume` `out={self.run.path}`"
        )


def train_detector(config: DetectTrainConfig) -> DetectionSummary:
    """Build a `DetectorTrainer` and fit it, as one of the ranks of the environment."""
    with join_ranks(config.device) as world:
        return DetectorTrainer(config, world=world).fit()
