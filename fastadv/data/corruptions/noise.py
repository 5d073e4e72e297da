"""Noise: Gaussian, shot and impulse noise, of every channel by itself.

Each function takes pixels in [0, 1], float32 [H, W, 3], the parameters of a severity, and
a generator; it returns pixels that may lie outside [0, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Pixels = NDArray[np.float32]


def gaussian_noise(x: Pixels, deviation: float, draw: Generator) -> Pixels:
    """Add normal noise of a standard deviation."""
    return x + np.float32(deviation) * draw.standard_normal(x.shape, np.float32)


def shot_noise(x: Pixels, photons: float, draw: Generator) -> Pixels:
    """Count photons, of which a white pixel receives `photons` on average."""
    # Not float32: a rate that rounding raised would be another distribution.
    counts = draw.poisson(x.astype(np.float64) * photons)
    return (counts / photons).astype(np.float32)


def impulse_noise(x: Pixels, share: float, draw: Generator) -> Pixels:
    """Set a share of the values to 0 or 1, each as often as the other."""
    u = draw.random(x.shape, np.float32)
    hit = u < np.float32(share)
    return np.where(hit, (u < np.float32(share / 2)).astype(np.float32), x)
