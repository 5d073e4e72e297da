"""The training of a detector: what it adds to the loop that all trainings share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.data.counter import derive_key
from fastadv.detection.batches import (
    DetectionBatch,
    DetectionLoader,
    DetectionLoaderOptions,
)
from fastadv.detection.config import DetectorConfig, DetectTrainConfig
from fastadv.detection.judging import Judged, evaluate_detector
from fastadv.detection.learner import DetectorLearner
from fastadv.detection.metrics import DetectionMetrics
from fastadv.detection.networks import build_detector
from fastadv.detection.opening import open_detection
from fastadv.detection.rows import RESAMPLES, Condition, row_fields, store_rows
from fastadv.detection.runlog import DetectionLog, DetectionSummary
from fastadv.detection.saving import (
    DETECTOR_FILE,
    DetectorFacts,
    open_detector,
    write_detector,
)
from fastadv.errors import ConfigError
from fastadv.models import create_model, get_spec
from fastadv.models.checkpoint import decimals
from fastadv.models.source import open_source
from fastadv.ranges import ordered_values
from fastadv.results.table import ResultsTable
from fastadv.runs.distributed import World, join_ranks
from fastadv.runs.preemption import StopRequest
from fastadv.training.loop import TrainingLoop
from fastadv.training.validation import Interrupted

# Choices that may differ when a run is resumed: none of them changes what is computed.
MAY_CHANGE = (
    "out", "resume", "device", "workers", "save_minutes", "backend", "data", "keep_every",
    "tensorboard", "wandb", "source",
)  # fmt: skip

Losses = dict[str, Tensor]


class DetectorTrainer(
    TrainingLoop[DetectTrainConfig, DetectionBatch, Losses, DetectionSummary]
):
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

    loader: DetectionLoader
    learner: DetectorLearner
    log: DetectionLog

    def __init__(
        self,
        config: DetectTrainConfig,
        *,
        dry_run: bool = False,
        world: World | None = None,
        profile: int | None = None,
    ) -> None:
        super().__init__(config, world, MAY_CHANGE)
        self._open_images()
        self.detector = self._build().to(self.device)
        self.total_steps = config.epochs * len(self.loader)
        warmup = min(config.warmup_steps, len(self.loader))
        self.learner = DetectorLearner(
            config, self.detector, self.world, self.total_steps, warmup
        )
        self.log = DetectionLog(config, self.run, self.world, self.total_steps)
        self._bad_tests: set[str] = set()
        self.prepare(config.batch_size, dry_run=dry_run, profile=profile)

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
                aspect_factor=config.aspect_factor,
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

    # ---- state ----

    def _own_state(self) -> dict[str, Any]:
        return {"classes": self.train_set.classes}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        if state["classes"] != self.train_set.classes:
            raise ConfigError(
                f"`data={self.config.data}` has the classes {self.train_set.classes}, the "
                f"run was begun on {state['classes']}; resume with the set it was begun on"
            )

    def _writer(self, state: dict[str, Any]) -> Callable[[Path], None]:
        detector, progress = (
            self.learner.published,
            {name: state[name] for name in ("epoch", "step")},
        )
        facts = DetectorFacts(
            **vars(self.facts) | {"training": self.facts.training | progress}
        )
        return lambda folder: write_detector(detector, facts, folder / DETECTOR_FILE)

    # ---- the loop ----

    def _seed(self) -> None:
        # Drawing proposals and sizes of images takes torch's own generator.
        torch.manual_seed(derive_key(self.config.seed, "proposals", self.world.rank))

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

    def _begin_epoch(self, epoch: int) -> None:
        self.detector.train()

    def update(self, batch: DetectionBatch) -> Losses:
        """Do one training step; the detector must be in train mode."""
        losses = self.learner.update(batch, self.step)
        self.step += 1
        return losses

    def _values(self, result: Losses) -> dict[str, Tensor]:
        return result

    def _validates(self, epoch: int) -> bool:
        every = self.config.eval_every or self.config.epochs
        return epoch % every == 0 and epoch < self.config.epochs

    def _validate(self, stop: StopRequest) -> DetectionMetrics:
        return self.judge(self.learner.published, stop)[1]

    def _scored(self, found: DetectionMetrics, epoch: int) -> bool:
        self.log.judged("val", values_of(found), epoch, self.step)
        return False  # the last weights are kept, whatever the test images say

    def test_loader(self) -> DetectionLoader:
        """Return batches of one test image."""
        return DetectionLoader(
            self.test_set,
            DetectionLoaderOptions(
                batch_size=1,
                train=False,
                device=self.device,
                on_bad_image=self.config.on_bad_image,
                workers=self.config.workers,
            ),
        )

    def judge(
        self,
        detector: nn.Module,
        stop: StopRequest | None = None,
        *,
        resamples: int = 0,
    ) -> tuple[Judged | None, DetectionMetrics]:
        """Judge a detector on the test images. Every rank must call it.

        The mode of the detector and the random state, which training draws from, stay as
        they were.

        Args:
            detector: The detector, on the device of the run.
            stop: A request that ends it early; None for none.
            resamples: Number of samples of the images for intervals; 0 for none.

        Returns:
            What the first rank found, None on others, and its metrics.

        Raises:
            Interrupted: `stop` was requested.
        """
        judged: Judged | None = None
        metrics: DetectionMetrics | None = None
        if self.world.leads:
            loader = self.test_loader()

            def check(images: int) -> None:
                if stop:
                    raise Interrupted

            with contextlib.suppress(Interrupted):
                judged = evaluate_detector(
                    detector,
                    loader,
                    self.train_set.classes,
                    masks=self.config.masks,
                    note=check,
                )
                metrics = judged.findings.metrics(resamples=resamples)
            self._bad_tests |= {name for name, _ in loader.bad_images}
        metrics = self.world.share(metrics)
        if metrics is None:
            raise Interrupted
        return judged, metrics

    def _finish(self, stop: StopRequest) -> DetectionSummary:
        # What other commands read is tested: the last weights, as they were saved.
        opened = open_detector(self.run.path) if self.world.leads else None
        detector = opened.detector.to(self.device) if opened else self.detector
        judged, metrics = self.judge(detector, stop, resamples=RESAMPLES)
        bad = self._bad_tests | {name for name, _ in self.loader.bad_images}
        self.log.bad_images(sorted(set().union(*self.world.gather(bad))), "others")
        values = values_of(metrics)
        self.log.judged("test", values, self.loader.epoch, self.step)
        if opened and judged:
            fields = row_fields(
                opened, self.test_set, Condition(), given=str(self.run.path)
            )
            table = ResultsTable(self.run.path / "results", once=True)
            store_rows(table, fields, judged, metrics, bad=len(self._bad_tests))
        return DetectionSummary(self.run.path, values, self.log.images_per_s)


def values_of(metrics: DetectionMetrics) -> dict[str, float]:
    """Return average precisions in [0, 1] by name, without their intervals."""
    return {name: each.value for name, each in metrics.values.items()}


def train_detector(config: DetectTrainConfig) -> DetectionSummary:
    """Build a `DetectorTrainer` and fit it, as one of the ranks of the environment."""
    with join_ranks(config.device) as world:
        return DetectorTrainer(config, world=world).fit()
