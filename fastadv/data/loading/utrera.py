"""The augmentation of Utrera et al. 2021 (2007.05869), for streamed training images.

Resize, padded random crop, flip, colour jitter of 0.25 and rotation by up to 2 degrees:
torchvision's own transforms of Pillow images, as published.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.data.counter import derive_key


def augment_utrera(
    image: NDArray[np.uint8], side: int, seed: int, epoch: int, index: int
) -> NDArray[np.uint8]:
    """Augment an image uint8 [H, W, 3]; the result is uint8 [side, side, 3].

    Random numbers depend on seed, epoch and index alone, and the global random state
    stays as it was.
    """
    from PIL import Image

    transform = utrera_transform(side)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_key(seed, "utrera", epoch, index))
        return np.array(transform(Image.fromarray(image)), dtype=np.uint8)


def utrera_transform(side: int) -> Callable[[Any], Any]:
    """Return the published transforms, of Pillow images to ones of `side` pixels."""
    from torchvision import transforms

    composed: Callable[[Any], Any] = transforms.Compose(
        [
            transforms.Resize(side),
            transforms.RandomCrop(side, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.25, 0.25, 0.25),
            transforms.RandomRotation(2),
        ]
    )
    return composed
