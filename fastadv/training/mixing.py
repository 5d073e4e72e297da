"""Label smoothing, mixup and CutMix; the attack sees the mixed labels, too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastadv.data.counter import derive_key


@dataclass(frozen=True)
class Mixing:
    """Mixes images and labels of a batch before it is attacked.

    Partners are the batch in reverse order: an epoch is shuffled, so nothing has to be
    drawn on the device or sent there. With both mixup and CutMix a coin decides.

    Attributes:
        label_smoothing: Share of the label that is spread over all classes, in [0, 1).
        mixup: Alpha of Beta(alpha, alpha), the share of the first image; 0 is off.
        cutmix: Alpha of Beta(alpha, alpha), the area that is kept; 0 is off.

    Source:
        Szegedy et al. 2016; Zhang et al. 2018 (mixup); Yun et al. 2019 (CutMix,
        algorithm 1: a box with sides sqrt(1 - share), cut at the border, and the share
        that is left).
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images and their targets.

        Args:
            images: Images in 0..255, uint8 [N, C, H, W].
            labels: Their classes, int64 [N].
            num_classes: Number of classes K.
            seed: Seed of this update.

        Returns:
            The images (uint8, or float32 in [0, 1] after mixup), and the targets: class
            probabilities, float32 [N, K], or `labels` themselves if nothing is on.
        """
        if not (self.label_smoothing or self.mixup or self.cutmix):
            return images, labels
        targets = F.one_hot(labels, num_classes).float()
        if self.label_smoothing:
            share = self.label_smoothing
            targets = (1 - share) * targets + share / num_classes
        generator = np.random.default_rng(derive_key(seed, "mix"))
        if self.mixup and (not self.cutmix or generator.random() < 0.5):
            kept = float(generator.beta(self.mixup, self.mixup))
            pixels = images.float().div_(255)
            images = torch.lerp(pixels.flip(0), pixels, kept)
        elif self.cutmix:
            kept = float(generator.beta(self.cutmix, self.cutmix))
            images, kept = _cut(images, kept, generator)
        else:
            return images, targets
        return images, torch.lerp(targets.flip(0), targets, kept)


def _cut(
    images: Tensor, kept: float, generator: np.random.Generator
) -> tuple[Tensor, float]:
    """Return `images` with a box of the reversed batch, and the share of area kept."""
    height, width = images.shape[2:]
    side = (1 - kept) ** 0.5
    bounds: list[int] = []
    for size in (height, width):
        middle, half = int(generator.integers(size)), int(size * side) // 2
        bounds += [max(middle - half, 0), min(middle + half, size)]
    top, bottom, left, right = bounds
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
