"""The target of a transfer: opening a data set, its options, and what is required."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from fastadv.data import DatasetSplits, ImageSet, open_dataset, subset, train_val_split
from fastadv.data.config import dataset_options
from fastadv.data.loading.geometry import usual_preparation
from fastadv.data.sets.subsets import random_subset
from fastadv.errors import ConfigError, DataError
from fastadv.evaluation.preparing import Prepared, overruled, preparation_for
from fastadv.models.source import Source
from fastadv.transfer.config import TransferConfig

log = logging.getLogger(__name__)

# A held-out share that exceeds the requested one by this factor is logged.
_CLEARLY_MORE = 1.5
_warn_once = cache(log.warning)


def open_target(config: TransferConfig, resolution: int) -> DatasetSplits:
    """Open the data set of an experiment, its images as they are stored.

    Raises:
        DataError, ConfigError: The data set cannot be opened, as in `open_dataset`.
    """
    options = dataset_options(config.dataset_option)
    return open_dataset(config.dataset, resolution=resolution, **options)


def draw_pool(config: TransferConfig, train: ImageSet, seed: int) -> ImageSet:
    """Draw the images that a seed has for training and validation.

    Raises:
        ConfigError: `config.num_train` is more images than there are, or fewer than
            classes.
    """
    draw = random_subset if config.subset_kind == "random" else subset
    return draw(train, config.num_train, seed)


def target_preparation(
    config: TransferConfig,
    source: Source,
    images: ImageSet,
    side: int,
    augment: Any = "auto",
) -> Prepared:
    """Return how images that are not augmented are prepared for a source.

    The source decides under the protocol fastadv, of photographs for all and of small
    images for the filter alone. A published protocol and `config.augment` decide of the
    rest, and flags overrule everything.

    Args:
        config: The choices of the experiment.
        source: The network.
        images: The evaluation split as it is stored.
        side: Side of the images that the network sees, in pixels.
        augment: Augmentation of the training images after protocol and flags.

    Raises:
        ConfigError: The flags cannot be met.
    """
    ours = config.protocol == "fastadv"
    # Published: both sides resized to 256 px, of which the middle 224 px are taken.
    squash = config.protocol == "zhang2023" and config.augment == "auto"
    if squash:
        augment = "rrc"
    whole = images.augment_default != "rrc"
    found = preparation_for(source, images, side, whole=whole)
    if not ours or config.augment != "auto":
        usual = usual_preparation(images.augment_as(augment), side)
        usual = replace(usual, squash=squash)
        if ours and source.preparation is not None:
            usual = replace(usual, interpolation=source.preparation.interpolation)
        why = "`augment`" if ours else f"the protocol {config.protocol}"
        found = Prepared(usual, f"as after {why}")
    return overruled(found, config)


def hold_out(
    config: TransferConfig, pool: ImageSet, seed: int
) -> tuple[ImageSet, ImageSet]:
    """Split the images of a seed into a training and a validation part.

    Every class of two or more images has one in the validation part, which can be far
    more than `config.val_fraction` if there are few images. That is logged once in each
    process, however many seeds and tasks it concerns.

    Raises:
        ConfigError: No class has two images.
    """
    if np.bincount(pool.labels).max() < 2:
        raise ConfigError(
            f"{pool.name}: no class of the {len(pool)} training images has two, so none "
            "can be held out to choose hyper-parameters; choose nothing "
            "(`select_on=none`, where a network trains with one value of `lrs`), or use "
            "more images in `num_train`"
        )
    kept, val = train_val_split(pool, config.val_fraction, seed)
    if len(val) > _CLEARLY_MORE * config.val_fraction * len(pool):
        _warn_once(
            f"{pool.name}: {len(val)} of {len(pool)} images "
            f"({len(val) / len(pool):.0%}) are held out for validation, not "
            f"`val_fraction={config.val_fraction:g}`, since every class of two or more "
            f"gives one; {len(kept)} are trained on"
        )
    return kept, val


def check_splits(splits: DatasetSplits) -> None:
    """Check that both splits have the same classes, each with training images.

    Raises:
        DataError: They do not.
    """
    train, test = splits.train, splits.test
    if train.classes != test.classes:
        only = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"{splits.name}: {len(train.classes)} classes in {train.split}, "
            f"{len(test.classes)} in {test.split}; they must be the same, in the same "
            f"order. Only in one of them: {', '.join(only[:5]) or 'none'}"
        )
    counts = np.bincount(train.labels, minlength=len(train.classes))
    empty = [train.classes[c] for c in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(
            f"{splits.name}: no training images of {len(empty)} class(es): "
            f"{', '.join(empty[:5])}; add some, or remove the class from both splits"
        )
