"""Images from which something is taken: their layout, or a range of frequencies.

All functions take and return batches; a manipulation at the level that takes nothing
returns the images as they are.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.data.counter import derive_key, permutation


def shuffle_patches(
    images: Tensor, grid: int, indices: NDArray[np.int64], seed: int = 0
) -> Tensor:
    """Put the patches of a grid x grid division of each image in random order.

    Args:
        images: Images, any dtype [N, C, R, R].
        grid: Number of patches per side, a divisor of R; 1 changes nothing.
        indices: Numbers of the images, int64 [N], by which each has its own order.
        seed: Chooses the orders.

    Returns:
        Images of the same shape with the same pixels.

    Raises:
        ValueError: The side is not divisible by the grid.

    Source:
        Zhang and Zhu 2019, section 4.3, with grids of 2, 4 and 8.
    """
    n, channels, side, width = images.shape
    if grid < 1 or side % grid or width != side:
        divisors = [k for k in range(1, side + 1) if side % k == 0]
        raise ValueError(
            f"images of {side} x {width} px cannot be cut into {grid} x {grid} equal "
            f"patches; use one of {', '.join(map(str, divisors))}"
        )
    if grid == 1:
        return images
    patch = side // grid
    cut = images.reshape(n, channels, grid, patch, grid, patch)
    cut = cut.permute(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, channels, patch, patch)
    orders = np.stack(
        [
            permutation(derive_key(seed, "patches", grid, int(i)), grid**2)
            for i in indices
        ]
    )
    rows = torch.arange(n, device=images.device)[:, None]
    cut = cut[rows, torch.from_numpy(orders).to(images.device)]
    cut = cut.reshape(n, grid, grid, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return cut.reshape(n, channels, side, side)


def band_pass(images: Tensor, low: float, high: float) -> Tensor:
    """Keep the frequencies of images between two radii, and the mean of each channel.

    The filter is a sharp ring in the two-dimensional Fourier transform of each channel.

    Args:
        images: Images, float32 or float64 [N, C, H, W], of any range.
        low: Frequencies above this radius are kept, in cycles per image (per its side).
        high: Frequencies up to this radius are kept; those at the corners of the
            spectrum of a square image have a radius of R / sqrt(2).

    Returns:
        Images of the same shape and dtype, which may leave the range of the pixels:
        `images` itself where nothing is taken away. With one radius, what is below it and
        what is above it add up to the image and its mean.

    Raises:
        ValueError: The radii are not in order.
    """
    if not low < high:
        raise ValueError(f"low={low} must be below high={high}")
    height, width = images.shape[2:]
    radius = torch.hypot(
        torch.fft.fftfreq(height, 1 / height, device=images.device)[:, None],
        torch.fft.rfftfreq(width, 1 / width, device=images.device)[None, :],
    )
    kept = (radius > low) & (radius <= high)
    kept[0, 0] = True
    if bool(kept.all()):
        return images
    spectrum = torch.fft.rfft2(images) * kept
    found: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    return found


def highest_frequency(side: int) -> float:
    """Return the largest radius in the spectrum of images of a side, in cycles."""
    return math.hypot(side // 2, side // 2)
