"""Images that gradient ascent starts from: noise, or drawn from a fitted Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.data.counter import derive_key

_NOISE = 20.0  # The noise has a standard deviation of 1/20 of the pixel range.
_JITTER = 1e-4  # What is added to the variance of every pixel of a fitted Gaussian.


def _normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Draw standard normal numbers that the key alone determines, float32."""
    # The generator takes seeds below 2^63.
    generator = torch.Generator().manual_seed(derive_key(*key) >> 1)
    return torch.randn(shape, generator=generator)


def noise_image(shape: tuple[int, int, int], seed: int, number: int) -> Tensor:
    """Return a gray image [C, H, W] with Gaussian noise of deviation 1/20, in [0, 1].

    Source: the documentation of `robustness` on custom losses.
    """
    drawn = _normal(shape, seed, "noise", number)
    return (0.5 + drawn / _NOISE).clamp_(0, 1)


class GaussianImages:
    """A Gaussian that is fitted to images, from which images to start from are drawn.

    It is fitted to the images reduced by `grain`, with 1e-4 added to each variance; what
    is drawn is enlarged again. The covariance is never formed: a random combination of
    the images, as many numbers as there are images, has it.

    Args:
        images: Images of one class, uint8 [n, C, H, W], n >= 2.
        grain: Side in pixels of the blocks that are averaged before.

    Source: Santurkar et al. 2019, "Image synthesis with a single (robust) classifier":
        blocks of 4 x 4 pixels for ImageNet, none for CIFAR-10.
    """

    def __init__(self, images: Tensor, grain: int) -> None:
        self.size = images.shape[2:]
        small = torch.nn.functional.avg_pool2d(
            images.float() / 255, grain, ceil_mode=True, count_include_pad=False
        )
        self.mean = small.mean(0)
        self.centred = (small - self.mean).flatten(1) / (len(images) - 1) ** 0.5

    def draw(self, *key: int | str) -> Tensor:
        """Draw an image [C, H, W] in [0, 1] that the key determines."""
        weights = _normal((len(self.centred),), *key, "weights")
        jitter = _JITTER**0.5 * _normal(tuple(self.mean.shape), *key, "jitter")
        small = self.mean + (weights @ self.centred).view_as(self.mean) + jitter
        large = torch.nn.functional.interpolate(small[None], self.size, mode="nearest")
        return large[0].clamp(0, 1)
