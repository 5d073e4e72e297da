"""The images of an analysis, prepared as the network expects them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.analysis.config import AnalysisConfig
from fastadv.analysis.portions import numbered_batches
from fastadv.data import ImageSet, LoaderOptions, make_loader
from fastadv.data.counter import derive_key, permutation
from fastadv.data.sets.subsets import Downscaled, Subset
from fastadv.device import resolve_device
from fastadv.evaluation.preparing import preparation_for
from fastadv.models.source import Source


def options_for(
    source: Source, images: ImageSet, config: AnalysisConfig
) -> LoaderOptions:
    """Return the options of a loader of a source's images in evaluation mode.

    Args:
        source: The network.
        images: The images, all of the split.
        config: The choices; they overrule what the source expects.

    Raises:
        ConfigError: The choices cannot be met.
    """
    side = config.resolution or source.resolution
    augment: Any = source.augment
    return LoaderOptions(
        batch_size=config.batch_size,
        resolution=side,
        train=False,
        augment=augment,
        preparation=preparation_for(source, images, side, config).how,
        channels=source.channels,
        device=resolve_device(config.device),
        workers=config.workers,
        on_bad_image=config.on_bad_image,
    )


def seen_by(source: Source, images: ImageSet) -> ImageSet:
    """Return images reduced to the side that those of the network's training were."""
    return images if source.downscale is None else Downscaled(images, source.downscale)


def a_few(images: ImageSet, count: int, seed: int) -> ImageSet:
    """Return some images at random, of as many different classes as there can be.

    Args:
        images: Where they come from.
        count: Number of images; all are returned where there are fewer.
        seed: Chooses the images. A larger count keeps those of a smaller one.
    """
    order = permutation(derive_key(seed, "a few"), len(images))
    seen: Counter[int] = Counter()
    turn = np.empty(len(order), np.int64)  # How many of its class came before.
    for i, label in enumerate(images.labels[order].tolist()):
        turn[i] = seen[label]
        seen[label] += 1
    return Subset(images, order[np.argsort(turn, kind="stable")][:count])


def pixels(
    images: ImageSet, rows: Sequence[int] | NDArray[np.int64], options: LoaderOptions
) -> Tensor:
    """Return some images as the network sees them before normalisation.

    Args:
        images: Where they come from.
        rows: Positions of those that are wanted. Ones that cannot be read are named in the
            log and left out.
        options: Options of the loader.

    Returns:
        uint8 [n, C, H, W] on the CPU.

    Raises:
        DataError: None of them can be read.
    """
    loader = make_loader(Subset(images, rows), **(vars(options) | {"device": "cpu"}))
    return torch.cat([each.images.contiguous() for _, each in numbered_batches(loader)])
