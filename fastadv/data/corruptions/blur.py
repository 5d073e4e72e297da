"""Blur: out of focus, through glass, in motion, and while zooming.

The functions are like those of `noise`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage, signal

from fastadv.data.corruptions.noise import Pixels


def defocus_blur(x: Pixels, parameters: tuple[float, float], draw: Generator) -> Pixels:
    """Average over a disk.

    Args:
        x: The pixels.
        parameters: Radius of the disk in pixels, and standard deviation of the Gaussian
            that smooths its edge.
        draw: Nothing is drawn.
    """
    kernel = _disk(*parameters)
    reach = kernel.shape[0] // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    found = signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))
    return np.asarray(found, np.float32)


@functools.cache
def _disk(radius: float, smooth: float) -> Pixels:
    """Return the disk of a defocus, float32 [k, k] with an odd k, which adds up to 1."""
    reach = max(8, math.ceil(radius))
    place = np.arange(-reach, reach + 1)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    # A Gaussian of 3 weights, or 5 for large disks, as OpenCV cuts it off.
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    weights = np.exp(-(taps**2) / (2 * smooth**2))
    weights /= weights.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, weights, axis, mode="mirror")
    used = int(np.abs(place[disk.max(0) > 0]).max())
    return disk[
        reach - used : reach + used + 1, reach - used : reach + used + 1
    ].astype(np.float32)


def glass_blur(
    x: Pixels, parameters: tuple[float, int, int], draw: Generator
) -> Pixels:
    """Smooth, replace each pixel by one nearby several times over, and smooth again.

    ImageNet-C is described as exchanging the two pixels; its code copies one over the
    other, as here.

    Args:
        x: The pixels.
        parameters: Standard deviation of the smoothing in pixels, largest distance of the
            pixel that is copied along each axis, and number of repetitions.
        draw: Draws which pixels are copied.
    """
    deviation, reach, times = parameters
    smooth = _smoothed(x, deviation)
    smooth = np.asarray(np.floor(smooth * np.float32(255)) / 255, np.float32)
    size = (times, x.shape[0] - 2 * reach, x.shape[1] - 2 * reach, 2)
    offsets = draw.integers(-reach, reach, size, np.int8)
    _copier()(smooth, offsets, reach)
    return _smoothed(smooth, deviation)


@functools.cache
def _copier() -> Callable[[Pixels, NDArray[np.int8], int], None]:
    """Return the compiled loop: every copy may read what an earlier one wrote."""
    import numba

    def copy(x: Any, offsets: Any, reach: int) -> None:
        times, height, width, _ = offsets.shape
        for k in range(times):
            for i in range(height - 1, -1, -1):
                for j in range(width - 1, -1, -1):
                    h, w = i + reach + 1, j + reach + 1
                    for c in range(x.shape[2]):
                        x[h, w, c] = x[
                            h + offsets[k, i, j, 1], w + offsets[k, i, j, 0], c
                        ]

    compiled: Callable[..., None]
    try:
        compiled = numba.njit(nogil=True, cache=True)(copy)
    except RuntimeError:  # No writable place for the cache.
        compiled = numba.njit(nogil=True)(copy)
    return compiled


def _smoothed(x: Pixels, deviation: float) -> Pixels:
    found = ndimage.gaussian_filter(x, (deviation, deviation, 0), mode="nearest")
    return np.asarray(found, np.float32)


def motion_blur(x: Pixels, parameters: tuple[int, float], draw: Generator) -> Pixels:
    """Average along a line that begins at each pixel, at -45 to 45 degrees.

    Args:
        x: The pixels.
        parameters: Radius, of which the line is twice as long and one pixel more, and
            standard deviation of the weights along it, in pixels.
        draw: Draws the angle.
    """
    return moved(x, *parameters, angle=draw.uniform(-45, 45))


def moved(x: Pixels, radius: int, deviation: float, angle: float) -> Pixels:
    """Return pixels averaged along a line, with the outermost ones repeated.

    Args:
        x: The pixels, float32 [H, W, C].
        radius: As in `motion_blur`.
        deviation: As in `motion_blur`.
        angle: Direction of the line in degrees.
    """
    length = 2 * radius + 1
    weights = np.exp(-(np.arange(length) ** 2) / (2 * deviation**2))
    weights /= weights.sum()
    turn = math.radians(angle)
    steps = [
        (-math.ceil(i * math.sin(turn) - 0.5), -math.ceil(i * math.cos(turn) - 0.5))
        for i in range(length)
    ]
    reach = max(abs(step) for pair in steps for step in pair)
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = x.shape[:2]
    found = np.zeros_like(x)
    for weight, (down, right) in zip(weights, steps, strict=True):
        top, left = reach - down, reach - right
        part = padded[top : top + height, left : left + width]
        found += np.float32(weight) * part
    return found


def zoom_blur(x: Pixels, parameters: tuple[int, float], draw: Generator) -> Pixels:
    """Average the image and enlargements of it.

    Args:
        x: The pixels.
        parameters: Number of enlargements, the first by a factor of 1, and the step
            between their factors.
        draw: Nothing is drawn.
    """
    count, step = parameters
    found = x.copy()
    for i in range(count):
        found += enlarged(x, 1 + i * step)
    return found / np.float32(count + 1)


def enlarged(x: Pixels, factor: float) -> Pixels:
    """Return the centre of an image, enlarged linearly to the size of the image.

    Args:
        x: The pixels, float32 [H, W, C].
        factor: At least 1.
    """
    for axis in (0, 1):
        side = x.shape[axis]
        part = math.ceil(side / factor)
        size = round(part * factor)
        place = np.linspace(0, part - 1, size)[(size - side) // 2 :][:side]
        low = np.minimum(place.astype(np.int64), max(part - 2, 0))
        share = (place - low).astype(np.float32)
        share = share[:, None, None] if axis == 0 else share[:, None]
        low += (side - part) // 2
        first, second = x.take(low, axis), x.take(np.minimum(low + 1, side - 1), axis)
        x = first + share * (second - first)
    return x
