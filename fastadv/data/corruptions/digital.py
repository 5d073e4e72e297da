"""What processing does: contrast, elastic distortion, pixels and JPEG.

The functions are like those of `noise`.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

from fastadv.data.corruptions.noise import Pixels

_PUBLISHED = 244 / 224  # ImageNet-C took its images for larger than they are.


def contrast(x: Pixels, share: float, draw: Generator) -> Pixels:
    """Reduce the distance of each channel from its mean to a share; nothing is drawn."""
    mean = x.mean((0, 1), keepdims=True, dtype=np.float64).astype(np.float32)
    return np.asarray((x - mean) * np.float32(share) + mean)


def elastic_transform(
    x: Pixels, parameters: tuple[float, float, float], draw: Generator
) -> Pixels:
    """Distort the image by an affine map, and then every pixel by a smooth field.

    Args:
        x: The pixels.
        parameters: Largest displacement of the field before it is smoothed, standard
            deviation of its smoothing, and largest displacement of the three points that
            define the affine map. They are shares of the side.
        draw: Draws both maps.
    """
    height, width = x.shape[:2]
    side = min(height, width) * (_PUBLISHED if min(height, width) > 120 else 1)
    amount, smooth, affine = (each * side for each in parameters)
    matrix, shift = _affine(height, width, affine, draw)
    places = np.indices((height, width), np.float32)
    turned = np.tensordot(matrix, places, 1) + shift[:, None, None]
    x = _at(x, turned, "mirror")
    field = _smoothed(draw.uniform(-1, 1, (2, height, width)), smooth)
    return _at(x, places + np.float32(amount) * field, "reflect")


def _smoothed(field: NDArray[np.float64], deviation: float) -> Pixels:
    """Smooth the last two axes by a Gaussian, which may be wider than they are.

    The border is reflected, of which the cosine transform knows.
    """
    for axis in (1, 2):
        n = field.shape[axis]
        damping = np.exp(-0.5 * (np.pi * deviation / n * np.arange(n)) ** 2)
        waves = fft.dct(field, axis=axis)
        waves *= damping[:, None] if axis == 1 else damping
        field = fft.idct(waves, axis=axis)
    return field.astype(np.float32)


def _affine(
    height: int, width: int, amount: float, draw: Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the matrix and shift from places in the result to those in the image."""
    centre = np.array([height // 2, width // 2], np.float64)
    reach = min(height, width) // 3
    before = centre + reach * np.array([[1, 1], [-1, 1], [-1, -1]])
    after = before + draw.uniform(-amount, amount, (3, 2))
    # before = after @ matrix.T + shift, at each of the three points.
    found = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
    return found[:2].T, found[2]


def _at(x: Pixels, places: NDArray[np.floating], mode: str) -> Pixels:
    """Return the pixels at places [2, H, W], interpolated linearly."""
    channels = [
        ndimage.map_coordinates(x[..., c], places, order=1, mode=mode)
        for c in range(x.shape[2])
    ]
    return np.stack(channels, 2)


def pixelate(x: Pixels, share: float, draw: Generator) -> Pixels:
    """Reduce both sides to a share and enlarge them again; nothing is drawn."""
    image = _image(x)
    width, height = (max(1, int(side * share)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BOX)
    return _pixels(small.resize(image.size, Image.Resampling.BOX))


def jpeg_compression(x: Pixels, quality: int, draw: Generator) -> Pixels:
    """Compress the image with a quality from 1 to 100; nothing is drawn."""
    file = io.BytesIO()
    _image(x).save(file, "JPEG", quality=quality)
    return _pixels(Image.open(file))


def _image(x: Pixels) -> Image.Image:
    return Image.fromarray((x * 255).round().astype(np.uint8))


def _pixels(image: Image.Image) -> Pixels:
    # Half a step more, so that conversion to bytes, which rounds down, is exact.
    return np.asarray((np.asarray(image, np.float32) + 0.5) / 255, np.float32)
