"""Images reduced to a small size, which show how fine the detail is that a transfer needs."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.data.cache import text_key
from fastadv.data.sets.image_set import ImageSet
from fastadv.data.sets.subsets import Subset
from fastadv.errors import ConfigError


class Downscaled(ImageSet):
    """The images of another set with their shorter side resized to `side` pixels.

    Bilinear with antialiasing, as torchvision's `Resize(side)`; loaders then enlarge
    them to the resolution of the model. Smaller images are enlarged, as there.

    Args:
        base: Where the images come from.
        side: Length of the shorter side in pixels, at least 1.

    Source:
        Salman et al. 2020, section 4.1 (granularity), with 32 pixels.
    """

    def __init__(self, base: ImageSet, side: int) -> None:
        if side < 1:
            raise ConfigError(f"`downscale={side}` must be at least 1 pixel")
        self.base, self.side = base, side
        self.name, self.split = base.name, base.split
        self.classes, self.labels = base.classes, base.labels
        self.augment_default = base.augment_default

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 [H, W, 3] RGB, its shorter side `side`."""
        from torchvision.transforms.v2 import functional

        image = torch.from_numpy(np.array(self.base.load(index))).permute(2, 0, 1)
        small = functional.resize(image, [self.side], antialias=True)
        pixels: NDArray[np.uint8] = small.permute(1, 2, 0).contiguous().numpy()
        return pixels

    def describe(self, index: int) -> str:
        """Return the name the base set gives the image."""
        return self.base.describe(index)

    def prepare(self) -> None:
        """Prepare the base set; see `ImageSet.prepare`."""
        self.base.prepare()

    def part_hash(self, part: ImageSet, positions: NDArray[np.int64]) -> str:
        """Return the `content_hash` of `part`, the images at `positions` of this set."""
        large = self.base if part is self else Subset(self.base, positions)
        what = f"{self.side} {large.content_hash()}"
        return hashlib.sha256(what.encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Key of the base set and the side, hex."""
        return text_key(f"downscaled {self.side} {self.base.fingerprint}")
