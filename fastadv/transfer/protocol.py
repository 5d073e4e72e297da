"""Transfer by any protocol, and the row each seed leaves behind."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from fastadv.attacks import PGD
from fastadv.data import (
    DatasetSplits,
    ImageSet,
    Loader,
    LoaderOptions,
    make_loader,
    subset,
)
from fastadv.device import resolve_device
from fastadv.environment import provenance
from fastadv.errors import ConfigError, FastadvError, TrainingDiverged
from fastadv.evaluation.evaluate import Evaluation, evaluate
from fastadv.kernels import use_backend
from fastadv.models import NormalizedModel, create_model
from fastadv.models.source import Source, open_source
from fastadv.results.table import ResultsTable
from fastadv.runs.progress import Progress
from fastadv.threat import ThreatModel
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.features import FeatureCache, Features, SplitFeatures
from fastadv.transfer.heads import LinearHead, Schedule, fit_exact, fit_sgd
from fastadv.transfer.identity import row_identity
from fastadv.transfer.outcome import Outcome
from fastadv.transfer.settings import make_settings
from fastadv.transfer.target import (
    check_classes,
    held_out,
    open_target,
    reduced,
    target_name,
)
from fastadv.transfer.tuning import (
    UtreraLoader,
    choose_trained,
    fine_tune,
    make_method,
    misfrozen,
    prepare_model,
)

log = logging.getLogger(__name__)

_EVAL_BATCH = 128


class TransferRun:
    """One source on one data set.

    Args:
        config: the experiment.
        table: where rows go; default the table at `config.results`.

    Raises:
        CheckpointError, DataError, ConfigError: source, data or choices are unusable.
    """

    def __init__(
        self, config: TransferConfig, table: ResultsTable | None = None
    ) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.source: Source = open_source(
            config.source, config.name, config.arch, download=config.download
        )
        self.resolution = config.side(self.source.resolution)
        self._opened = open_target(config, self.resolution)
        check_classes(self._opened)
        self.splits: DatasetSplits = reduced(self._opened, config.downscale)
        self.settings = make_settings(
            config,
            self.splits.name,
            config.num_train or len(self.splits.train),
            self.resolution,
            misfrozen=misfrozen(self._model()) if config.freezes_by_name else None,
        )
        self._check_choices()
        self.table = table or ResultsTable(config.results)
        self.bad_images: set[str] = set()
        self._features = SplitFeatures(self.splits, config.num_train, self._embed)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Run every seed; each row is in the table before it is yielded."""
        seeds = self.config.seeds
        parts = [self._split(seed) for seed in seeds]
        self.table.prepare()
        with use_backend(self.config.backend):
            began = time.monotonic()
            outcomes = self._outcomes(seeds, parts)
            for seed, (train_set, val_set) in zip(seeds, parts, strict=True):
                outcome = next(outcomes)
                held_out = val_set is not None and val_set is not self.splits.test
                sizes = len(train_set), len(val_set or ()) if held_out else 0
                row = self._row(seed, sizes, outcome, time.monotonic() - began)
                try:
                    self.table.append([row])
                except FastadvError:
                    # The number must not be lost with the disk that was to hold it.
                    log.error("the row was: %s", json.dumps(row, default=str))
                    raise
                yield row
                began = time.monotonic()

    def _check_choices(self) -> None:
        """What can be known to fail before hours of work."""
        config = self.config
        if config.method_config is not None:
            config.method_config.threat.check_side(self.resolution)
        if config.robust_eps is not None:
            self._threat().check_side(self.resolution)
            if config.on_cached_features and not self._model().head_is_linear:
                raise ConfigError(
                    f"--robust-eps: the head of {self.source.arch} is no linear function "
                    "of its features, so a head fitted to those cannot be put on it; use "
                    "--mode last_k_blocks --k 0"
                )
        if config.mode == "last_k_blocks":
            choose_trained(self._model(), config.mode, config.k)

    def _split(self, seed: int) -> tuple[ImageSet, ImageSet | None]:
        if self.config.holds_out:
            return held_out(self.config, self.splits.train, seed)
        pool = subset(self.splits.train, self.config.num_train, seed)
        return pool, self.splits.test if self.settings.select_on == "test" else None

    def _options(self, *, train: bool, seed: int = 0) -> LoaderOptions:
        settings, augment = self.settings, self.settings.augment
        return LoaderOptions(
            batch_size=settings.batch_size if train else _EVAL_BATCH,
            resolution=self.resolution,
            train=train,
            seed=seed,
            augment="none" if augment == "utrera" else augment,  # type: ignore[arg-type]
            device=self.device,
            workers=self.config.workers,
            on_bad_image=self.config.on_bad_image,
        )

    def _loader(self, images: ImageSet, *, train: bool, seed: int = 0) -> Loader:
        options = self._options(train=train, seed=seed)
        if train and self.settings.augment == "utrera":
            return UtreraLoader(images, options)
        return make_loader(images, **vars(options))

    def _model(self) -> NormalizedModel:
        model = self.source.load()
        return model.to(self.device).to(memory_format=torch.channels_last)

    def _outcomes(
        self, seeds: tuple[int, ...], parts: list[tuple[ImageSet, ImageSet | None]]
    ) -> Iterator[Outcome]:
        if not self.config.on_cached_features:
            for seed, (train_set, val_set) in zip(seeds, parts, strict=True):
                yield self._tuned(seed, train_set, val_set)
        elif self.config.exact:
            for seed, (train_set, val_set) in zip(seeds, parts, strict=True):
                yield self._exact(seed, train_set, val_set)
        else:
            yield from self._sgd_grid(seeds, parts)

    # ---- heads on cached features ----

    def _exact(
        self, seed: int, train_set: ImageSet, val_set: ImageSet | None
    ) -> Outcome:
        train, test = self._features.of(train_set, seed), self._features.test()
        val = self._features.of(val_set or self.splits.test, seed)
        classes, metric = len(self.splits.train.classes), self.splits.metric
        head, strength, value = fit_exact(train, val, classes, metric, seed)
        return self._head_outcome(head, test, value, {"C": strength, "solver": "lbfgs"})

    def _sgd_grid(
        self, seeds: tuple[int, ...], parts: list[tuple[ImageSet, ImageSet | None]]
    ) -> Iterator[Outcome]:
        settings, classes = self.settings, len(self.splits.train.classes)
        pool, rows = self._features.together([part for part, _ in parts], seeds)
        test = self._features.test()
        schedule = Schedule(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        progress = Progress(settings.epochs * -(-rows.shape[1] // settings.batch_size))
        count = len(seeds) * len(settings.lrs)
        heads = fit_sgd(
            pool,
            rows,
            seeds,
            settings.lrs,
            classes,
            schedule,
            device=self.device,
            report=lambda done, _: progress.update(done, f"{count} heads"),
        )
        for of_seed, seed, (_, val_set) in zip(heads, seeds, parts, strict=True):
            val = self._features.of(val_set or self.splits.test, seed)
            sound = {
                lr: head
                for lr, head in zip(settings.lrs, of_seed, strict=True)
                if head.finite
            }
            diverged = [f"{lr:g}" for lr in settings.lrs if lr not in sound]
            if diverged:
                error = TrainingDiverged(
                    f"heads diverged with lr {', '.join(diverged)}; leave that out of --lrs"
                )
                if not sound:
                    raise error
                log.warning("%s", error)
            metric = self.splits.metric
            values = {
                lr: head.accuracy(val).value(metric) for lr, head in sound.items()
            }
            best = max(values, key=values.__getitem__)  # the first, where several are
            chosen = settings.for_row() | {"lr": best, "solver": "sgd"}
            # Features are of images that were only resized.
            chosen |= {"augment": "none"}
            yield self._head_outcome(sound[best], test, values[best], chosen)

    def _head_outcome(
        self, head: LinearHead, test: Features, value: float, chosen: dict[str, Any]
    ) -> Outcome:
        robust = None
        if self.config.robust_eps is not None:
            model = self._model()
            model.replace_head(len(head.bias))
            with torch.no_grad():
                model.head.weight.copy_(torch.from_numpy(head.weight))
                # Not -inf, for a class without images: its gradient is not finite.
                bias = torch.from_numpy(np.maximum(head.bias, -1e4))
                if model.head.bias is None:
                    model.head.bias = torch.nn.Parameter(bias.to(model.head.weight))
                model.head.bias.copy_(bias)
            robust = self._judged(model).robust
        return Outcome(head.accuracy(test), value, chosen, robust)

    def _embed(self, images: ImageSet) -> Features:
        found = FeatureCache.at(self.config.feature_cache).features(
            self._model(),
            images,
            self._options(train=False),
            f"features of {images.split}",
        )
        self.bad_images |= {name for name, _ in found.bad_images}
        return found

    # ---- networks that train ----

    def _tuned(
        self, seed: int, train_set: ImageSet, val_set: ImageSet | None
    ) -> Outcome:
        settings, metric = self.settings, self.splits.metric
        judge = None if val_set is None else self._loader(val_set, train=False)
        best: tuple[float, float, int, NormalizedModel] | None = None
        diverged: TrainingDiverged | None = None
        for lr in settings.lrs:
            try:
                for epoch, model in self._candidates(lr, seed, train_set):
                    value = 0.0
                    if judge is not None:
                        value = evaluate(model, judge).clean.value(metric)
                    if best is None or value > best[0]:
                        last = epoch == settings.epochs
                        kept = model if last else copy.deepcopy(model)
                        best = value, lr, epoch, kept
            except TrainingDiverged as error:
                log.warning("%s", error)
                diverged = error
        if best is None:
            raise diverged or AssertionError("there is at least one learning rate")
        if judge is not None:
            self._note_bad(judge)
        value, lr, epoch, model = best
        found = self._judged(model)
        chosen = settings.for_row() | {"lr": lr, "epoch": epoch}
        if self.config.precision != "fp32":
            chosen["precision"] = self.config.precision
        training = self.config.method_config
        if training is not None:
            chosen["method"] = {
                "name": training.method,
                "norm": training.norm,
                "eps": training.threat.eps,
                "num_steps": training.attack_steps,
                **training.parameters,
            }
        return Outcome(
            found.clean, None if judge is None else value, chosen, found.robust
        )

    def _candidates(
        self, lr: float, seed: int, images: ImageSet
    ) -> Iterator[tuple[int, NormalizedModel]]:
        """The network after each epoch that may be chosen; it trains on afterwards."""
        settings, model = self.settings, self._fresh_model(seed)
        for epoch in self._fine_tune(model, lr, seed, images):
            every = settings.select_every
            if epoch == settings.epochs or (every and (epoch - 1) % every == 0):
                yield epoch, model

    def _fresh_model(self, seed: int) -> NormalizedModel:
        model, classes = self._model(), len(self.splits.train.classes)
        if self.config.mode == "scratch":
            mean, std = model.mean.tolist(), model.std.tolist()
            model = create_model(
                self.source.arch, classes, mean=mean, std=std, seed=seed
            )
            model.to(self.device).to(memory_format=torch.channels_last)
        return prepare_model(model, classes, seed, self.settings)

    def _fine_tune(
        self, model: NormalizedModel, lr: float, seed: int, images: ImageSet
    ) -> Iterator[int]:
        config, settings = self.config, self.settings
        trained = choose_trained(
            model, config.mode, config.k, by_name=settings.freeze_by_name
        )
        method = make_method(
            model, config.method_config, self.resolution, config.precision
        )
        loader = self._loader(images, train=True, seed=seed)
        words = config.mode.replace("_", " ")
        yield from fine_tune(model, trained, loader, lr, settings, method, words)
        self._note_bad(loader)

    # ---- the row ----

    def _threat(self) -> ThreatModel:
        return ThreatModel(self.config.norm, self.config.robust_eps or 0.0)  # type: ignore[arg-type]

    def _attack(self) -> PGD | None:
        config = self.config
        if config.robust_eps is None:
            return None
        # 2.5 eps / K crosses the ball from anywhere (Madry et al. 2018).
        step_size = 2.5 * config.robust_eps / config.robust_steps
        return PGD(
            self._threat(),
            config.robust_steps,
            step_size,
            random_start=True,
            keep="best",
        )

    def _judged(self, model: NormalizedModel) -> Evaluation:
        """Accuracy on the test images, also under attack if that is asked for."""
        loader = self._loader(self.splits.test, train=False)
        found = evaluate(model, loader, self._attack())
        self._note_bad(loader)
        return found

    def _note_bad(self, loader: Loader) -> None:
        self.bad_images |= {name for name, _ in loader.bad_images}

    def _row(
        self, seed: int, sizes: tuple[int, int], outcome: Outcome, seconds: float
    ) -> dict[str, Any]:
        source, splits = self.source, self.splits
        return {
            "time": datetime.now(UTC),
            "source": source.name,
            "source_path": str(source.file),
            "source_given": self.config.source,
            "source_hash": source.digest,
            "arch": source.arch,
            "source_norm": source.norm,
            "source_eps": source.eps,
            "dataset": target_name(self.config, splits),
            "dataset_fingerprint": splits.train.fingerprint,
            "resolution": self.resolution,
            "mode": self.config.mode,
            "protocol": self.config.protocol,
            "select_on": self.settings.select_on,
            "num_train": sizes[0],
            "num_val": sizes[1],
            "num_test": len(splits.test),
            "num_classes": len(splits.train.classes),
            "seed": seed,
            "hyperparameters": json.dumps(
                {"augment": self.settings.augment}
                | outcome.chosen
                | {"val_fraction": self.config.val_fraction}
            ),
            "metric": splits.metric,
            "bad_images": len(self.bad_images),
            "wall_seconds": round(seconds, 2),
            "environment": json.dumps(provenance()),
            "identity": row_identity(
                self.config, seed, source, self._opened, self.resolution
            ),
            "num_pool": sum(sizes),
            "num_available": len(splits.train),
            "class_names": list(splits.train.classes),
            "source_accuracy": self.config.source_accuracy,
            "k_blocks": self.config.k,
            "downscale": self.config.downscale,
            "notes": self.settings.notes,
            **outcome.columns(splits.metric, self._attack()),
        }


def transfer(config: TransferConfig) -> list[dict[str, Any]]:
    """Run a transfer experiment; the rows, which the results table then holds too."""
    return list(TransferRun(config).rows())
