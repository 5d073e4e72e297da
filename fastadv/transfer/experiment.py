"""An experiment, opened and checked: its source, its data set, and how batches are made."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from fastadv.attacks import PGD
from fastadv.data import ImageSet, Loader, LoaderOptions, make_loader
from fastadv.data.metric import is_own
from fastadv.data.sets.subsets import Downscaled
from fastadv.device import resolve_device
from fastadv.errors import ConfigError
from fastadv.evaluation.accuracy import check_on_few
from fastadv.models import NormalizedModel
from fastadv.models.source import open_source
from fastadv.threat import ThreatModel
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.features import FeatureCache, Features, SplitFeatures
from fastadv.transfer.freezing import choose_trained, misfreezing
from fastadv.transfer.heads import LinearHead
from fastadv.transfer.history import History
from fastadv.transfer.procedure import make_procedure
from fastadv.transfer.target import (
    check_splits,
    draw_pool,
    hold_out,
    open_target,
    target_preparation,
)

_EVAL_BATCH = 128

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeedSplit:
    """The images of one seed.

    Attributes:
        seed: Chooses the subset, the split, the initial head and the order of images.
        train: Images that are trained on.
        val: Images that hyper-parameters are chosen on; None if nothing is chosen.
        pool: All images of the seed: those of `train`, and what is held out of them.
    """

    seed: int
    train: ImageSet
    val: ImageSet | None
    pool: ImageSet


@dataclass(frozen=True)
class Fitted:
    """A network that was fitted to the target with one seed.

    Attributes:
        model: The network. None where a head was fitted to cached features that are
            not what the head of the architecture reads (SqueezeNet).
        chosen: How it was fitted, as fields of a `TransferSetting`, the chosen
            hyper-parameters among them.
        value: Share in [0, 1] that the choice was made by; None if nothing was chosen.
        head: The linear head, where cached features were fitted.
        history: The trainings of networks, the one that gave `model` last.
    """

    model: NormalizedModel | None
    chosen: dict[str, Any]
    value: float | None
    head: LinearHead | None = None
    history: tuple[History, ...] = ()


class Experiment:
    """One source on one data set.

    Args:
        config: The choices of the experiment.

    Raises:
        CheckpointError, DataError, ConfigError: The source, the data set or the choices
            are unusable.

    Attributes:
        source: The pretrained network and what is known of it.
        opened: The data set with its images as they are stored.
        splits: The data set with its images reduced to `config.downscale` pixels.
        num_classes: Number of classes of the data set.
        resolution: Side of the images that the network sees, in pixels.
        procedure: Every setting after protocol and flags.
        prepared: How images that are not augmented are resized and cropped.
        bad_images: Names of the images that could not be decoded.
    """

    def __init__(self, config: TransferConfig) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.source = open_source(
            config.source, config.name, config.arch, download=config.download
        )
        self.resolution = config.side(self.source.resolution)
        self.opened = open_target(config, self.resolution)
        check_splits(self.opened)
        self.splits = self.opened
        if side := config.downscale:
            train, test = self.opened.train, self.opened.test
            self.splits = replace(
                self.opened, train=Downscaled(train, side), test=Downscaled(test, side)
            )
        self.num_classes = len(self.splits.train.classes)
        by_name = config.freezes_by_name
        self.procedure = make_procedure(
            config,
            self.splits.name,
            config.num_train or len(self.splits.train),
            self.resolution,
            misfreezing=misfreezing(self.load_model()) if by_name else None,
        )
        self.prepared = target_preparation(
            config,
            self.source,
            self.opened.test,
            self.resolution,
            self.procedure.augment,
        )
        self._check_choices()
        self.bad_images: set[str] = set()
        self.features = SplitFeatures(self.splits, config.num_train, self._embed)

    def _check_choices(self) -> None:
        """Refuse, before hours of work, what can be known to fail."""
        config = self.config
        threats = [] if config.method_config is None else [config.method_config.threat]
        if (attack := self.attack) is not None:
            threats.append(attack.threat)
        for threat in threats:
            threat.check_side(self.resolution)
        for doubt in dict.fromkeys(threat.doubt(self.resolution) for threat in threats):
            if doubt:
                log.warning(doubt)
        by_features = attack is not None and config.on_cached_features
        if by_features and not self.frozen.head_is_linear:
            raise ConfigError(
                f"`robust_eps`: the head of {self.source.arch} is no linear function "
                "of its features, so a head fitted to those cannot be put on it; use "
                "`mode=last_k_blocks` `k=0`"
            )
        if is_own(self.splits.metric):
            check_on_few(self.splits.metric, self.num_classes)
        for epoch in config.test_epochs:
            if epoch > self.procedure.epochs:
                raise ConfigError(
                    f"`test_epochs`: {epoch} is beyond the {self.procedure.epochs} epochs "
                    "of the training"
                )
        if config.mode == "last_k_blocks":
            choose_trained(self.load_model(), config.mode, config.k)

    @property
    def attack(self) -> PGD | None:
        """A fresh attack that judges a result, for one network; None for no attack."""
        config = self.config
        if config.robust_eps is None:
            return None
        threat = ThreatModel(config.norm, config.robust_eps)  # type: ignore[arg-type]
        options: dict[str, Any] = {}
        if config.protocol == "zhang2023":
            options["step_size"] = 1.5 * threat.eps / config.judge_steps
        return PGD.judge(threat, config.judge_steps, **options)

    def split(self, seed: int) -> SeedSplit:
        """Draw the training and validation images of a seed."""
        pool = draw_pool(self.config, self.splits.train, seed)
        if self.config.holds_out:
            return SeedSplit(seed, *hold_out(self.config, pool, seed), pool)
        on_test = self.procedure.select_on == "test"
        return SeedSplit(seed, pool, self.splits.test if on_test else None, pool)

    def load_model(self) -> NormalizedModel:
        """Return a fresh copy of the source on the device."""
        model = self.source.load()
        model.set_image_size(self.resolution)
        return model.to(self.device).to(memory_format=torch.channels_last)

    @cached_property
    def frozen(self) -> NormalizedModel:
        """The source, loaded once, for whoever changes nothing of it."""
        return self.load_model()

    def options(self, *, train: bool, seed: int = 0) -> LoaderOptions:
        """Return the options of a loader of training or evaluation batches."""
        return LoaderOptions(
            batch_size=self.procedure.batch_size if train else _EVAL_BATCH,
            resolution=self.resolution,
            train=train,
            seed=seed,
            augment=self.procedure.augment,
            preparation=self.prepared.how,
            channels=self.source.channels,
            device=self.device,
            workers=self.config.workers,
            on_bad_image=self.config.on_bad_image,
        )

    def loader(self, images: ImageSet, *, train: bool, seed: int = 0) -> Loader:
        """Return a loader of training or evaluation batches of `images`."""
        return make_loader(images, **vars(self.options(train=train, seed=seed)))

    def note_bad(self, found: Loader | Features) -> None:
        """Remember the images that could not be decoded."""
        self.bad_images |= {name for name, _ in found.bad_images}

    def _embed(self, images: ImageSet) -> Features:
        cache = FeatureCache.at(self.config.feature_cache)
        options, what = self.options(train=False), f"features of {images.split}"
        found = cache.features(self.frozen, images, options, what)
        self.note_bad(found)
        return found
