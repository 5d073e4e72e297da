"""Placing, colouring and compositing shapes and textures into 8-bit images.

Background and the two colours of the texture take three luminances in random order: the
outline is always visible, and no luminance or hue tells the shape or the texture.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.data.sets.shapetex_fields import (
    SHAPES,
    TEXTURE_DRAWS,
    TEXTURES,
    Field,
    clip01,
    value_noise,
)

COLORS = ("red", "yellow", "green", "cyan", "blue", "magenta")
BACKGROUNDS = ("plain", "gradient", "vignette", "noise")

# Columns of the draws, float [n, DRAWS] in [0, 1).
_SIZE, _X, _Y, _TURN, _TILT, _ORDER, _BACK_HUE, _BACK_TURN, _BACK_SIGN = range(9)
_LEVELS = slice(9, 12)
_HUES = slice(12, 14)
_SATURATION = 14
_TEXTURE = slice(16, 16 + TEXTURE_DRAWS)
DRAWS = 16 + TEXTURE_DRAWS

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_ORDERS = np.array(list(permutations(range(3))))
_LEVEL_LOW = np.array([0.08, 0.43, 0.80], dtype=np.float32)
_LEVEL_SPAN = np.array([0.10, 0.12, 0.14], dtype=np.float32)
# Bold: the background, then the two colours of the texture, which are near each other; or
# one minus all three.
_BOLD_LOW = np.array([0.02, 0.75, 0.90], dtype=np.float32)
_BOLD_SPAN = np.float32(0.08)
_MAX_TURN = math.radians(25)
_MAX_TILT = math.radians(6)
_CHUNK_PIXELS = 1 << 19  # temporaries stay within a few MB each


def hue_ids(draws: NDArray[Any]) -> NDArray[np.int64]:
    """Return the id in `COLORS` of each image's first texture colour, int64 [n]."""
    hue: NDArray[Any] = draws[:, _HUES][:, 0]
    # Sectors are centred on the named hues, not begun by them.
    return (np.floor(hue * 6 + 0.5).astype(np.int64)) % 6


def render(
    shape: NDArray[Any],
    texture: NDArray[Any],
    background: NDArray[Any],
    draws: NDArray[np.float64],
    resolution: int,
    bold: bool = False,
) -> NDArray[np.uint8]:
    """Draw images.

    Args:
        shape: Integers [n], positions in `SHAPES`.
        texture: Integers [n], positions in `TEXTURES`.
        background: Integers [n], positions in `BACKGROUNDS`.
        draws: Everything else that varies, float64 [n, DRAWS] in [0, 1).
        resolution: Side R in pixels.
        bold: Whether shapes stand out from the background far more than the two colours
            of their textures do from each other.

    Returns:
        uint8 [n, R, R, 3] RGB in 0..255. Image i depends on row i alone.
    """
    out = np.empty((len(shape), resolution, resolution, 3), dtype=np.uint8)
    chunk = max(1, _CHUNK_PIXELS // (resolution * resolution))
    for start in range(0, len(shape), chunk):
        part = slice(start, start + chunk)
        u, back = draws[part].astype(np.float32), background[part]
        out[part] = _render_chunk(shape[part], texture[part], back, u, resolution, bold)
    return out


def _render_chunk(
    shape: NDArray[Any],
    texture: NDArray[Any],
    background: NDArray[Any],
    u: Field,
    resolution: int,
    bold: bool,
) -> NDArray[np.uint8]:
    px = 2.0 / resolution
    axis = ((np.arange(resolution) + 0.5) * px - 1).astype(np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    size = (resolution, resolution)
    cover = np.empty((len(u), *size), dtype=np.float32)
    mix = np.empty_like(cover)
    shade = np.empty_like(cover)
    for rows, key in _groups(shape):
        cover[rows] = _coverage(list(SHAPES)[key], x, y, u[rows], px)
    for rows, key in _groups(texture):
        v = u[rows][:, None, None, :]
        tx, ty = _rotated(x, y, (2 * v[..., _TILT] - 1) * _MAX_TILT)
        field = list(TEXTURES.values())[key]
        mix[rows] = field(tx, ty, v[..., _TEXTURE], px)
    for rows, key in _groups(background):
        shade[rows] = _shade(BACKGROUNDS[key], x, y, u[rows][:, None, None, :])

    back, first, second = _colours(u, bold)
    out = np.empty((len(u), *size, 3), dtype=np.uint8)
    for c in range(3):
        inner = second[:, c] + (first[:, c] - second[:, c]) * mix
        outer = back[:, c] + shade
        value = clip01(outer + (inner - outer) * cover)
        out[..., c] = value * np.float32(255) + np.float32(0.5)
    return out


def _groups(ids: NDArray[Any]) -> list[tuple[NDArray[Any], int]]:
    return [(np.flatnonzero(ids == key), int(key)) for key in np.unique(ids)]


def _rotated(x: Field, y: Field, angle: Field) -> tuple[Field, Field]:
    c, s = np.cos(angle), np.sin(angle)
    return c * x + s * y, c * y - s * x


def _coverage(name: str, x: Field, y: Field, u: Field, px: float) -> Field:
    """Return the share of each pixel inside the shape, up to the curvature of its edge."""
    v = u[:, None, None, :]
    size = np.float32(0.62) + np.float32(0.22) * v[..., _SIZE]
    room = np.float32(0.98) - size
    cx, cy = (2 * v[..., _X] - 1) * room, (2 * v[..., _Y] - 1) * room
    lx, ly = _rotated(x - cx, y - cy, (2 * v[..., _TURN] - 1) * _MAX_TURN)
    distance = SHAPES[name](lx / size, ly / size) * size
    return clip01(np.float32(0.5) - distance * np.float32(1 / px))


def _shade(style: str, x: Field, y: Field, v: Field) -> Field:
    """Return the low-contrast luminance added to the background, about [-0.07, 0.07]."""
    sign = np.where(v[..., _BACK_SIGN] < 0.5, np.float32(-1), np.float32(1))
    if style == "plain":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
    if style == "gradient":
        angle = v[..., _BACK_TURN] * np.float32(2 * math.pi)
        slope: Field = np.float32(0.05) * (x * np.cos(angle) + y * np.sin(angle))
        return slope
    if style == "vignette":
        out: Field = sign * np.float32(0.06) * (x * x + y * y - np.float32(0.67))
        return out
    noise = value_noise(x + sign, y + v[..., _BACK_TURN], v[..., _TEXTURE], cell=0.17)
    return np.float32(0.12) * (noise - np.float32(0.5))


def _colours(u: Field, bold: bool) -> tuple[Field, Field, Field]:
    """Return background, first and second texture colour, [b, 3, 1, 1] each."""
    if bold:
        quarter = (u[:, _ORDER] * 4).astype(np.int64)
        levels: Field = _BOLD_LOW + _BOLD_SPAN * u[:, _LEVELS]
        back, one, other = np.where(quarter[:, None] < 2, 1 - levels, levels).T
        swapped = quarter % 2 == 1
        first, second = np.where(swapped, other, one), np.where(swapped, one, other)
    else:
        levels = _LEVEL_LOW + _LEVEL_SPAN * u[:, _LEVELS]
        order = _ORDERS[(u[:, _ORDER] * len(_ORDERS)).astype(np.int64)]
        back, first, second = np.take_along_axis(levels, order, axis=1).T
    hues = u[:, _HUES]
    saturation = np.float32(0.5) + np.float32(0.5) * u[:, _SATURATION]
    colours = (
        _colour(u[:, _BACK_HUE], back, np.float32(0.35) * saturation),
        _colour(hues[:, 0], first, saturation),
        _colour(hues[:, 1], second, saturation),
    )
    a, b, c = (colour[:, :, None, None] for colour in colours)
    return a, b, c


def _colour(hue: Field, level: Field, saturation: Field) -> Field:
    """Return RGB [b, 3] of the hue with exactly the luma `level`."""
    thirds = hue[:, None] + np.array([0, 2 / 3, 1 / 3], dtype=np.float32)
    pure = np.clip(np.abs(np.mod(thirds, 1) * 6 - 3) - 1, 0, 1)
    luma, level = (pure @ _LUMA)[:, None], level[:, None]
    darker = pure * (level / luma)
    lighter = pure + (1 - pure) * ((level - luma) / np.maximum(1 - luma, 1e-6))
    full = np.where(level <= luma, darker, lighter)
    out: Field = level + (full - level) * saturation[:, None]
    return out
