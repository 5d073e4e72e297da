"""ShapeTex: images whose shape and texture are known and independent.

Every block of 144 images holds each of the 12 x 12 pairs once, so the two are balanced;
position, size, rotation, colours and background vary freely. It is no benchmark.
"""

from __future__ import annotations

import threading
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastadv.data.cache import cached_array, text_key
from fastadv.data.counter import derive_key, uniforms
from fastadv.data.sets.image_set import ImageSet, checked_index
from fastadv.data.sets.shapetex_fields import SHAPES, TEXTURES
from fastadv.data.sets.shapetex_render import (
    BACKGROUNDS,
    COLORS,
    DRAWS,
    hue_ids,
    render,
)
from fastadv.errors import ConfigError
from fastadv.files import fastadv_cache_dir

GENERATOR_VERSION = 1  # raise it when any pixel changes; old cache files then rest
RESOLUTIONS = (32, 96)
_drawing = threading.Lock()
_ATTRIBUTES = ("shape", "texture", "color", "background")


class ShapeTex(ImageSet):
    """One split of the procedural set.

    Image i depends on (seed, split, i) and the drawing options, not on `n`.
    Pixels are drawn on the first `load` and kept in the cache folder.

    Args:
        n: Number of images, at least 1.
        split: Names the random stream; different splits share no image.
        seed: Chooses the images.
        resolution: Side in pixels, 32 to 96.
        label: Which attribute `labels` and `classes` are about.
        correlation: Probability in [0, 1] that an image's texture id is its
            shape id instead of the independent one.
        bold: Draw shapes that stand out far more than their textures do, so that a network
            learns them in minutes and can withstand large radii. The set is then called
            shapetex_bold.
        cache: Keep the pixels in `fastadv_cache_dir()`.

    Attributes:
        attributes: Structured array [n] of int16 fields shape, texture, color
            (hue of the first texture colour) and background; ids into
            `SHAPE_NAMES`, `TEXTURE_NAMES`, `COLOR_NAMES`, `BACKGROUND_NAMES`.

    Raises:
        ConfigError: A parameter is out of its range.

    Example:
        >>> s = ShapeTex(144, resolution=32, cache=False)
        >>> s.load(0).shape, len(s.classes)
        ((32, 32, 3), 12)
    """

    SHAPE_NAMES = tuple(SHAPES)
    TEXTURE_NAMES = tuple(TEXTURES)
    COLOR_NAMES = COLORS
    BACKGROUND_NAMES = BACKGROUNDS
    augment_default = "crop_flip"

    def __init__(
        self,
        n: int,
        *,
        split: str = "train",
        seed: int = 0,
        resolution: int = 64,
        label: Literal["shape", "texture"] = "shape",
        correlation: float = 0.0,
        bold: bool = False,
        cache: bool = True,
    ) -> None:
        _check(n, resolution, label, correlation)
        self.name = "shapetex" if label == "shape" else "shapetex_texture"
        if bold:
            self.name += "_bold"
        self.bold = bold
        self.split, self.seed = split, seed
        self.resolution, self.cache = resolution, cache
        self.correlation = float(correlation)
        self.attributes = _attributes(seed, split, n, self.correlation)
        self.classes = self.SHAPE_NAMES if label == "shape" else self.TEXTURE_NAMES
        self.labels = self.attributes[label].astype(np.int64)
        self._images: NDArray[np.uint8] | None = None

    @property
    def images(self) -> NDArray[np.uint8]:
        """All pixels, uint8 [n, R, R, 3]; drawn or read from the cache once."""
        if self._images is None:
            with _drawing:
                if self._images is None:
                    self._images = self._drawn()
        return self._images

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 [R, R, 3] RGB in 0..255."""
        image: NDArray[np.uint8] = self.images[checked_index(index, len(self))]
        return image

    def prepare(self) -> None:
        """Draw the images, so that forked workers share them."""
        _ = self.images

    @property
    def fingerprint(self) -> str:
        """Key of the parameters, labels included, hex."""
        return text_key(f"{self.name}/{self._pixel_key()}")

    def _pixel_key(self) -> str:
        # Not the label: both labellings are of the same pixels.
        return (
            f"v{GENERATOR_VERSION}/{self.split}/{self.seed}/{len(self)}/"
            f"{self.resolution}/{self.correlation!r}{'/bold' if self.bold else ''}"
        )

    def _drawn(self) -> NDArray[np.uint8]:
        if not self.cache:
            return self._draw()
        path = fastadv_cache_dir() / "shapetex" / f"{text_key(self._pixel_key())}.npy"
        return cached_array(path, self._draw)

    def _draw(self) -> NDArray[np.uint8]:
        a = self.attributes
        draws = _draws(self.seed, self.split, len(self))
        attributes = a["shape"], a["texture"], a["background"]
        return render(*attributes, draws, self.resolution, self.bold)


def _draws(seed: int, split: str, n: int) -> NDArray[np.float64]:
    return uniforms(derive_key(seed, split, "pixels"), np.arange(n), DRAWS)


def _attributes(seed: int, split: str, n: int, correlation: float) -> NDArray[Any]:
    pairs = len(SHAPES) * len(TEXTURES)
    blocks = -(-n // pairs)
    rank = uniforms(derive_key(seed, split, "pairs"), np.arange(blocks * pairs), 1)
    pair = rank.reshape(blocks, pairs).argsort(axis=1, kind="stable").ravel()[:n]
    u = uniforms(derive_key(seed, split, "attributes"), np.arange(n), 2)
    out = np.empty(n, dtype=[(name, np.int16) for name in _ATTRIBUTES])
    out["shape"] = pair // len(TEXTURES)
    out["texture"] = np.where(u[:, 0] < correlation, out["shape"], pair % len(TEXTURES))
    out["color"] = hue_ids(_draws(seed, split, n))
    out["background"] = (u[:, 1] * len(BACKGROUNDS)).astype(np.int16)
    return out


def _check(n: int, resolution: int, label: str, correlation: float) -> None:
    low, high = RESOLUTIONS
    if n < 1:
        raise ConfigError(f"shapetex: n={n} images; use n >= 1")
    if not low <= resolution <= high:
        raise ConfigError(
            f"shapetex: resolution={resolution} is outside [{low}, {high}], the range "
            "in which every texture is recognisable; draw at a resolution inside it "
            "and let the loader resize"
        )
    if label not in ("shape", "texture"):
        raise ConfigError(f"shapetex: label={label!r}; use 'shape' or 'texture'")
    if not 0.0 <= correlation <= 1.0:
        raise ConfigError(
            f"shapetex: correlation={correlation} is outside [0, 1]; 0 makes shape and "
            "texture independent, 1 makes them equal"
        )
