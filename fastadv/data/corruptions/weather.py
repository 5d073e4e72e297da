"""Weather: snow, frost, fog and brightness.

The functions are like those of `noise`.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from fastadv.data.corruptions.blur import enlarged, moved
from fastadv.data.corruptions.noise import Pixels

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
# Colour of frost, and the least and largest brightness and contrast of it: those of the
# photographs that ImageNet-C adds, as measured on parts of 224 x 224 pixels.
_ICE = np.array([0.88, 1.02, 1.1], np.float32)
_FROST_MEANS, _FROST_DEVIATIONS = (0.3, 0.85), (0.06, 0.15)


def snow(x: Pixels, parameters: tuple[float, ...], draw: Generator) -> Pixels:
    """Whiten the image, and let flakes fall in two opposite directions.

    Args:
        x: The pixels.
        parameters: Mean and standard deviation of the noise that flakes are the peaks of,
            its enlargement, the least height of a peak, radius and standard deviation of
            the motion (see `motion_blur`), and share of the image that is not whitened.
        draw: Draws noise and direction.
    """
    mean, deviation, zoom, least, radius, blur, keep = parameters
    flakes = mean + deviation * draw.standard_normal(x.shape[:2], np.float32)
    flakes = enlarged(flakes[..., None].astype(np.float32), zoom)
    flakes[flakes < least] = 0
    flakes = moved(flakes.clip(0, 1), int(radius), blur, draw.uniform(-135, -45))
    flakes = np.round(flakes * 255) / np.float32(255)
    white = np.maximum(x, (x @ _GREY)[..., None] * 1.5 + 0.5)
    dull = np.float32(keep) * x + np.float32(1 - keep) * white
    return np.asarray(dull + flakes + flakes[::-1, ::-1])


def frost(x: Pixels, parameters: tuple[float, float], draw: Generator) -> Pixels:
    """Add a drawn texture of ice crystals.

    ImageNet-C adds photographs of frost. They are not part of this package: the texture is
    drawn for each image, with their mean and contrast, so that accuracies under frost
    can be compared with each other, but not to the last point with those of ImageNet-C.

    Args:
        x: The pixels.
        parameters: Weights of the image and of the texture.
        draw: Draws the texture.
    """
    weight, share = map(np.float32, parameters)
    ice = _crystals(x.shape[0], x.shape[1], draw)
    return np.asarray(weight * x + share * ice[..., None] * _ICE)


def _crystals(height: int, width: int, draw: Generator) -> Pixels:
    """Draw ice, float32 [height, width] in [0, 1]: ridges of a plasma, and needles."""
    side = max(height, width)
    ridges = 1 - np.abs(2 * plasma(side, 1.4, draw) - 1)
    needles = np.zeros((side, side), np.float32)
    for angle in draw.uniform(0, 180, 5):
        seeds = (draw.random((side, side, 1), np.float32) > 0.994).astype(np.float32)
        reach = max(2, side // 12)
        needles = np.maximum(needles, moved(seeds, reach, reach, angle)[..., 0])
    needles = ndimage.gaussian_filter(needles, 0.5)
    needles /= max(float(needles.max()), 1e-6)
    relief = needles - 0.6 * np.roll(needles, (2, 1), (0, 1))  # A shadow beside each.
    ice = (0.5 * ridges[:side, :side] ** 4 + relief)[:height, :width]
    mean, deviation = draw.uniform(*_FROST_MEANS), draw.uniform(*_FROST_DEVIATIONS)
    ice = (ice - ice.mean()) / max(float(ice.std()), 1e-6)
    return np.asarray((mean + deviation * ice).clip(0, 1), np.float32)


def fog(x: Pixels, parameters: tuple[float, float], draw: Generator) -> Pixels:
    """Add fog and darken the whole to the brightness of the image.

    Args:
        x: The pixels.
        parameters: Thickness of the fog, and the decay of its detail; see `plasma`.
        draw: Draws the fog.
    """
    thickness, decay = parameters
    light = np.float32(x.max() / (x.max() + thickness))
    layer = plasma(max(x.shape[:2]), decay, draw)[: x.shape[0], : x.shape[1]]
    return np.asarray((x + np.float32(thickness) * layer[..., None]) * light)


def plasma(side: int, decay: float, draw: Generator) -> NDArray[np.float32]:
    """Draw a plasma, float32 [n, n] from 0 to 1, whose opposite sides fit together.

    Args:
        side: The least n, which is the next power of two.
        decay: Each octave of detail is weaker than the one before by the square of this.
        draw: Draws it.

    Source:
        The diamond-square algorithm, Fournier, Fussell and Carpenter 1982.
    """
    n = 1 << max(side - 1, 1).bit_length()
    grid = np.zeros((n, n), np.float32)
    step, height = n, 1.0
    while step >= 2:
        half = step // 2
        corners = grid[::step, ::step]
        below = np.roll(corners, -1, 0)
        squares = corners + np.roll(corners, -1, 1) + below + np.roll(below, -1, 1)
        centres = squares / 4 + _wobble(squares.shape, height, draw)
        grid[half::step, half::step] = centres
        # Each point between two corners has a centre on either side.
        beside = corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 0)
        grid[::step, half::step] = beside / 4 + _wobble(beside.shape, height, draw)
        above = corners + below + centres + np.roll(centres, 1, 1)
        grid[half::step, ::step] = above / 4 + _wobble(above.shape, height, draw)
        step, height = half, height / decay**2
    grid -= grid.min()
    return np.asarray(grid / grid.max())


def _wobble(
    shape: tuple[int, ...], height: float, draw: Generator
) -> NDArray[np.float32]:
    return np.float32(height) * (2 * draw.random(shape, np.float32) - 1)


def brightness(x: Pixels, amount: float, draw: Generator) -> Pixels:
    """Add to the value of hue, saturation and value; nothing is drawn."""
    value = x.max(2, keepdims=True)
    bright = np.minimum(value + np.float32(amount), 1)
    # Black has no hue and becomes grey.
    scaled = x * np.divide(bright, value, out=np.ones_like(value), where=value > 0)
    return np.asarray(np.where(value > 0, scaled, bright))
