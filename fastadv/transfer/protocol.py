"""The two protocols, fixed-feature and full-network, and the row each leaves behind."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from fastadv.data import (
    DatasetSplits,
    ImageSet,
    Loader,
    make_loader,
    open_dataset,
    subset,
    train_val_split,
)
from fastadv.environment import provenance, resolve_device
from fastadv.errors import FastadvError, TrainingDiverged
from fastadv.evaluation import Accuracy, evaluate
from fastadv.kernels import use_backend
from fastadv.models import NormalizedModel
from fastadv.training.config import scheduled
from fastadv.training.progress import Progress
from fastadv.training.step import train_step
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.features import Features, extract, fit_head, head_accuracy
from fastadv.transfer.source import Source, open_source
from fastadv.transfer.table import ResultsTable

log = logging.getLogger(__name__)

_EVAL_BATCH = 128


@dataclass(frozen=True)
class Outcome:
    """What one protocol run found.

    Attributes:
        test: accuracy on the evaluation split.
        val_value: share in [0, 1] that the choice of hyper-parameters was made on.
        chosen: the hyper-parameters chosen.
    """

    test: Accuracy
    val_value: float
    chosen: dict[str, Any]


class TransferRun:
    """One source on one data set.

    Args:
        config: the experiment.

    Raises:
        CheckpointError, DataError, ConfigError: source, data or choices are unusable.
    """

    def __init__(self, config: TransferConfig) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.source: Source = open_source(config.source, config.name, config.arch)
        self.resolution = config.resolution or self.source.resolution
        self.splits: DatasetSplits = open_dataset(
            config.dataset, resolution=self.resolution
        )
        self.table = ResultsTable(config.results)
        self.bad_images: set[str] = set()
        self._features: dict[str, Features] = {}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Run every seed; each row is in the table before it is yielded."""
        splits = [self._split(seed) for seed in self.config.seeds]
        self.table.prepare()
        with use_backend(self.config.backend):
            for seed, (train_set, val_set) in zip(
                self.config.seeds, splits, strict=True
            ):
                began = time.monotonic()
                if self.config.mode == "fixed_feature":
                    outcome = self._fixed_feature(seed, train_set, val_set)
                else:
                    outcome = self._full_network(seed, train_set, val_set)
                held_out = val_set is not self.splits.test
                sizes = len(train_set), len(val_set) if held_out else 0
                row = self._row(seed, sizes, outcome, time.monotonic() - began)
                try:
                    self.table.append([row])
                except FastadvError:
                    # The number must not be lost with the disk that was to hold it.
                    log.error("the row was: %s", json.dumps(row, default=str))
                    raise
                yield row

    def _split(self, seed: int) -> tuple[ImageSet, ImageSet]:
        pool = subset(self.splits.train, self.config.num_train, seed)
        if self.config.select_on == "test":
            return pool, self.splits.test  # nothing of the training images is held out
        return train_val_split(pool, self.config.val_fraction, seed)

    def _loader(self, images: ImageSet, *, train: bool, seed: int = 0) -> Loader:
        config = self.config
        return make_loader(
            images,
            batch_size=config.batch_size if train else _EVAL_BATCH,
            resolution=self.resolution,
            train=train,
            seed=seed,
            augment=config.augment,
            device=self.device,
            workers=config.workers,
            on_bad_image=config.on_bad_image,
        )

    def _model(self) -> NormalizedModel:
        model = self.source.load()
        return model.to(self.device).to(memory_format=torch.channels_last)

    # ---- fixed feature ----

    def _fixed_feature(
        self, seed: int, train_set: ImageSet, val_set: ImageSet
    ) -> Outcome:
        train = self._embed(self.splits.train).of(train_set)
        test = self._embed(self.splits.test)
        val = test
        if val_set is not self.splits.test:
            val = self._embed(self.splits.train).of(val_set)
        metric = self.splits.metric
        head, strength, val_value = fit_head(train, val, metric, seed)
        accuracy = head_accuracy(head, test, len(self.splits.train.classes))
        return Outcome(accuracy, val_value, {"C": strength, "solver": "lbfgs"})

    def _embed(self, images: ImageSet) -> Features:
        """Features of a whole split, computed once per run."""
        if images.split not in self._features:
            loader = self._loader(images, train=False)
            progress = Progress(len(loader))
            self._features[images.split] = extract(
                self._model(), loader, progress, f"features of {images.split}"
            )
            self._note_bad(loader)
        return self._features[images.split]

    # ---- full network ----

    def _full_network(
        self, seed: int, train_set: ImageSet, val_set: ImageSet
    ) -> Outcome:
        metric = self.splits.metric
        judge = self._loader(val_set, train=False)
        best: tuple[float, float, NormalizedModel] | None = None
        for lr in self.config.lrs:
            model = self._fine_tune(lr, seed, train_set)
            found = evaluate(model, judge)
            value = found.clean.value(metric)
            if best is None or value > best[0]:
                best = (value, lr, model)
        if best is None:
            raise AssertionError("TransferConfig guarantees at least one learning rate")
        self._note_bad(judge)
        value, lr, model = best
        loader = self._loader(self.splits.test, train=False)
        test = evaluate(model, loader).clean
        self._note_bad(loader)
        config = self.config
        chosen = {
            "lr": lr,
            "lrs": list(config.lrs),
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "momentum": config.momentum,
            "weight_decay": config.weight_decay,
            "schedule": "x 0.1 every third",
        }
        return Outcome(test, value, chosen)

    def _fine_tune(self, lr: float, seed: int, images: ImageSet) -> NormalizedModel:
        config = self.config
        model = self._model()
        model.replace_head(len(self.splits.train.classes), seed=seed)
        model.train()
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        loader = self._loader(images, train=True, seed=seed)
        progress = Progress(config.epochs * len(loader))
        began = time.monotonic()
        step, images_seen = 0, 0
        for epoch in range(config.epochs):
            for group in optimizer.param_groups:
                group["lr"] = scheduled(lr, "step", epoch, config.epochs)
            for batch in loader:
                result = train_step(model, batch.images, batch.labels, optimizer)
                step += 1
                images_seen += len(batch.labels)
                rate = images_seen / (time.monotonic() - began)
                progress.update(
                    step,
                    f"full network, lr {lr:g}, epoch {epoch + 1}/{config.epochs}"
                    f"  {rate:.1f} images/s",
                )
            if not result.loss.isfinite():
                raise TrainingDiverged(
                    f"fine-tuning with lr {lr:g} diverged in epoch {epoch + 1}; leave "
                    "that value out of --lrs"
                )
        self._note_bad(loader)
        return model

    # ---- the row ----

    def _note_bad(self, loader: Loader) -> None:
        self.bad_images |= {name for name, _ in loader.bad_images}

    def _row(
        self, seed: int, sizes: tuple[int, int], outcome: Outcome, seconds: float
    ) -> dict[str, Any]:
        source, splits = self.source, self.splits
        low, high = outcome.test.interval(splits.metric)
        return {
            "time": datetime.now(UTC),
            "source": source.name,
            "source_path": str(source.file),
            "source_hash": source.digest,
            "arch": source.arch,
            "source_norm": source.norm,
            "source_eps": source.eps,
            "dataset": splits.name,
            "dataset_fingerprint": splits.train.fingerprint,
            "resolution": self.resolution,
            "mode": self.config.mode,
            "protocol": "fastadv",
            "select_on": self.config.select_on,
            "num_train": sizes[0],
            "num_val": sizes[1],
            "num_test": len(splits.test),
            "num_classes": len(splits.train.classes),
            "seed": seed,
            "hyperparameters": json.dumps(
                outcome.chosen
                | {
                    "augment": self.config.augment,
                    "val_fraction": self.config.val_fraction,
                }
            ),
            "metric": splits.metric,
            "value": 100 * outcome.test.value(splits.metric),
            "ci_low": 100 * low,
            "ci_high": 100 * high,
            "val_value": 100 * outcome.val_value,
            "per_class_correct": outcome.test.correct.tolist(),
            "per_class_total": outcome.test.total.tolist(),
            "bad_images": len(self.bad_images),
            "wall_seconds": round(seconds, 2),
            "environment": json.dumps(provenance()),
        }


def transfer(config: TransferConfig) -> list[dict[str, Any]]:
    """Run a transfer experiment; the rows, which the results table then holds too."""
    return list(TransferRun(config).rows())
