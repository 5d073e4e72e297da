"""`corrupt` corrupts one image, and `Corrupted` all images of a set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.data.cache import text_key
from fastadv.data.corruptions import blur, digital, noise, weather
from fastadv.data.corruptions.severities import KINDS, SEVERITIES, parameters
from fastadv.data.counter import derive_key
from fastadv.data.loading.geometry import resize_center_crop
from fastadv.data.sets.image_set import ImageSet, checked_index
from fastadv.data.sets.subsets import Subset, base_and_positions
from fastadv.errors import ConfigError, unknown_name
from fastadv.preparation import Preparation

LEAST_SIDE = 16  # pixels

_FUNCTIONS: dict[str, Callable[..., noise.Pixels]] = {
    name: getattr(module, name)
    for module in (noise, blur, weather, digital)
    for name in KINDS
    if hasattr(module, name)
}


def corrupt(
    image: NDArray[np.uint8], kind: str, severity: int, *, seed: int = 0, index: int = 0
) -> NDArray[np.uint8]:
    """Return a corrupted copy of an image, as in ImageNet-C.

    The severities are those of CIFAR-10-C, Tiny-ImageNet-C or ImageNet-C, whichever's
    images are nearest in size. An image is drawn for by `seed`, `kind` and `index` alone:
    severities of one kind share their draws, and neither batches nor order count.

    Args:
        image: RGB pixels, uint8 [H, W, 3], with sides of at least 16 pixels.
        kind: One of the fifteen `KINDS`, for example `fog`.
        severity: From 1 (least) to 5.
        seed: Seed of everything that is drawn.
        index: Number of the image, at least 0, which gets draws of its own.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ConfigError: The kind is unknown, or the severity is not one of 1 to 5.
        ValueError: The image is of another dtype or shape, or too small.

    Source:
        Hendrycks and Dietterich 2019 (1903.12261). The texture of frost is our own.

    Example:
        >>> image = np.full((32, 32, 3), 128, np.uint8)
        >>> corrupt(image, "brightness", 3)[0, 0].tolist()
        [166, 166, 166]
    """
    check_corruptions([kind], [severity])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"the image is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3]"
        )
    side = min(image.shape[:2])
    if side < LEAST_SIDE:
        raise ValueError(
            f"the image has {image.shape[0]} x {image.shape[1]} pixels; corruptions need "
            f"sides of at least {LEAST_SIDE}"
        )
    draw = np.random.Generator(np.random.PCG64(derive_key(seed, kind, index)))
    pixels = image.astype(np.float32) / np.float32(255)
    found = _FUNCTIONS[kind](pixels, parameters(kind, severity, side), draw)
    # Rounded down, as the published images were.
    return (found * np.float32(255)).clip(0, 255).astype(np.uint8)


def check_corruptions(kinds: Sequence[str], severities: Sequence[int]) -> None:
    """Check names and severities of corruptions.

    Raises:
        ConfigError: A kind is unknown, a severity is not one of 1 to 5, or there are
            duplicates or none.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(unknown_name("corruption", str(kind), KINDS))
    for severity in severities:
        if severity not in SEVERITIES:
            raise ConfigError(
                f"severity {severity} of a corruption is none of 1, 2, 3, 4 and 5"
            )
    for what, given in (("corruption", kinds), ("severity", severities)):
        twice = [str(each) for each in dict.fromkeys(given) if given.count(each) > 1]
        if twice:
            raise ConfigError(f"{what} {', '.join(twice)} is given twice")
        if not given:
            raise ConfigError(
                f"no {what} is given; leave the choice out for all of them"
            )


class Corrupted(ImageSet):
    """The images of another set, prepared for a network and then corrupted.

    ImageNet-C corrupts images that are already cropped to what the network sees, and so
    does this set: its images are squares, which loaders need only pass on.

    Args:
        base: Where the images come from. Those of a subset are drawn for by their
            positions in the whole set.
        preparation: How they are resized and cropped before.
        kind: One of the fifteen kinds of corruption.
        severity: From 1 to 5.
        seed: Seed of what is drawn.

    Raises:
        ConfigError: The kind or the severity is unknown.
    """

    augment_default = "none"

    def __init__(
        self,
        base: ImageSet,
        preparation: Preparation,
        kind: str,
        severity: int,
        *,
        seed: int = 0,
    ) -> None:
        check_corruptions([kind], [severity])
        preparation.check()
        self.base, self.preparation = base, preparation
        self.kind, self.severity, self.seed = kind, severity, seed
        self.name, self.split = f"{base.name} ({kind} {severity})", base.split
        self.classes, self.labels = base.classes, base.labels
        self._positions = base_and_positions(base)[1]

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, corrupted, as uint8 [crop, crop, 3] RGB in 0..255."""
        position = int(self._positions[checked_index(index, len(self))])
        image = resize_center_crop(self.base.load(index), self.preparation)
        return corrupt(image, self.kind, self.severity, seed=self.seed, index=position)

    def describe(self, index: int) -> str:
        """Return the name the base set gives the image."""
        return self.base.describe(index)

    def prepare(self) -> None:
        """Prepare the base set; see `ImageSet.prepare`."""
        self.base.prepare()

    def _choices(self) -> tuple[Any, ...]:
        return self.kind, self.severity, self.seed, self.preparation

    def part_hash(self, part: ImageSet, positions: NDArray[np.int64]) -> str:
        """Return the `content_hash` of `part`, the images at `positions` of this set."""
        plain = self.base if part is self else Subset(self.base, positions)
        what = f"{self._choices()} {plain.content_hash()}"
        return hashlib.sha256(what.encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Key of the base set and the corruption, hex."""
        return text_key(f"corrupted {self._choices()} {self.base.fingerprint}")
