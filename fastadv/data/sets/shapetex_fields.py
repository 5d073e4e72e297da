"""The shapes and the textures of the procedural set, as functions of the plane.

A shape is a signed distance function within the unit circle, a texture a function into
[0, 1]. The image is [-1, 1] x [-1, 1], x right, y down; pixels are float32 [b, R, R].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.data.counter import mix64

Field = NDArray[Any]  # float32, [b, R, R] unless said
TEXTURE_DRAWS = 15  # uniform numbers a texture may use


def clip01(values: Field) -> Field:
    """Clip every value to [0, 1]."""
    out: Field = np.clip(values, 0, 1)
    return out


def _regular(n: int, radius: float = 1.0, turn: float = -math.pi / 2) -> NDArray[Any]:
    angle = turn + 2 * math.pi * np.arange(n) / n
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star(points: int, inner: float) -> NDArray[Any]:
    vertices = _regular(2 * points)
    vertices[1::2] *= inner
    return vertices


def _polygon(
    vertices: Sequence[Sequence[float]] | NDArray[Any],
) -> Callable[..., Field]:
    """Return the exact signed distance to a simple polygon.

    Source: I. Quilez, "2D distance functions", sdPolygon.
    """
    corners = np.asarray(vertices, dtype=np.float32)

    def distance(x: Field, y: Field) -> Field:
        nearest = np.full(x.shape, np.inf, dtype=np.float32)
        inside = np.zeros(x.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(
            corners, np.roll(corners, 1, axis=0), strict=True
        ):
            ex, ey = bx - ax, by - ay
            wx, wy = x - ax, y - ay
            along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
            dx, dy = wx - ex * along, wy - ey * along
            np.minimum(nearest, dx * dx + dy * dy, out=nearest)
            inside ^= ((ay > y) != (by > y)) & ((ex * wy > ey * wx) == (ey > 0))
        result: Field = np.sqrt(nearest)
        np.negative(result, where=inside, out=result)
        return result

    return distance


def _disc(x: Field, y: Field, r: float, cx: float = 0.0, cy: float = 0.0) -> Field:
    out: Field = np.hypot(x - np.float32(cx), y - np.float32(cy)) - np.float32(r)
    return out


def _ring(x: Field, y: Field) -> Field:
    out: Field = np.abs(_disc(x, y, 0.70)) - np.float32(0.24)
    return out


def _crescent(x: Field, y: Field) -> Field:
    return np.maximum(_disc(x, y, 0.95), -_disc(x, y, 0.80, 0.48))


_HEART_POINT = _polygon([(0, 0.95), (-0.79, 0.16), (0, -0.63), (0.79, 0.16)])


def _heart(x: Field, y: Field) -> Field:
    # A square on its corner with a half disc on each upper side.
    lobes = np.minimum(
        _disc(x, y, 0.5586, -0.395, -0.235), _disc(x, y, 0.5586, 0.395, -0.235)
    )
    return np.minimum(lobes, _HEART_POINT(x, y))


def _pacman(x: Field, y: Field) -> Field:
    half = math.radians(38)
    mouth = np.abs(y) * np.float32(math.cos(half)) - x * np.float32(math.sin(half))
    return np.maximum(_disc(x, y, 0.95), -mouth)


def _tangent_tip(tip: float, cy: float, r: float) -> NDArray[Any]:
    # Where the lines from (0, tip) touch the disc (0, cy, r).
    rise = r * r / (cy - tip)
    half = math.sqrt(r * r - rise * rise)
    return np.array([(0, tip), (half, cy - rise), (-half, cy - rise)])


_DROP_TIP = _polygon(_tangent_tip(-1.0, 0.36, 0.60))


def _drop(x: Field, y: Field) -> Field:
    return np.minimum(_disc(x, y, 0.60, 0, 0.36), _DROP_TIP(x, y))


_A = 0.30  # half width of the cross's arms
_CROSS = [
    *((-_A, -0.95), (_A, -0.95), (_A, -_A), (0.95, -_A), (0.95, _A), (_A, _A)),
    *((_A, 0.95), (-_A, 0.95), (-_A, _A), (-0.95, _A), (-0.95, -_A), (-_A, -_A)),
]
_ARROW = [
    *((0, -1), (0.80, -0.12), (0.32, -0.12), (0.32, 0.92)),
    *((-0.32, 0.92), (-0.32, -0.12), (-0.80, -0.12)),
]

SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": lambda x, y: _disc(x, y, 0.88),
    "square": _polygon(_regular(4, 1.0, math.pi / 4)),
    "triangle": _polygon(_regular(3)),
    "star": _polygon(_star(5, 0.42)),
    "cross": _polygon(_CROSS),
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
    "hexagon": _polygon(_regular(6, 0.95)),
    "arrow": _polygon(_ARROW),
    "pacman": _pacman,
    "drop": _drop,
}


# Textures are f(x, y, u, px) in [0, 1]; u [b, 1, 1, k] are draws, px is the pixel size.
def _edge(distance: Field, px: float) -> Field:
    """Return the coverage of the region where `distance` (image units) is positive."""
    return clip01(distance * np.float32(1 / px) + np.float32(0.5))


def _triangle_wave(t: Field) -> Field:
    """Return the distance of `t` to the nearest integer, in [0, 0.5]."""
    out: Field = np.abs(t - np.rint(t))
    return out


def _stripes(t: Field, period: Field, px: float) -> Field:
    return _edge((_triangle_wave(t / period) - np.float32(0.25)) * period, px)


def _period(u: Field, low: float, high: float) -> Field:
    out: Field = low + (high - low) * u[..., 0]
    return out


def _phased(x: Field, y: Field, u: Field) -> tuple[Field, Field]:
    return x + u[..., 1], y + u[..., 2]


def _h_stripes(x: Field, y: Field, u: Field, px: float) -> Field:
    return _stripes(_phased(x, y, u)[1], _period(u, 0.24, 0.34), px)


def _v_stripes(x: Field, y: Field, u: Field, px: float) -> Field:
    return _stripes(_phased(x, y, u)[0], _period(u, 0.24, 0.34), px)


def _diagonal(x: Field, y: Field, u: Field, px: float) -> Field:
    x, y = _phased(x, y, u)
    return _stripes((x + y) * np.float32(math.sqrt(0.5)), _period(u, 0.24, 0.34), px)


def _checker(x: Field, y: Field, u: Field, px: float) -> Field:
    x, y = _phased(x, y, u)
    period = _period(u, 0.34, 0.48)
    a = 2 * _stripes(x, period, px) - 1
    b = 2 * _stripes(y, period, px) - 1
    out: Field = np.float32(0.5) + np.float32(0.5) * a * b
    return out


def _dots(x: Field, y: Field, u: Field, px: float) -> Field:
    x, y = _phased(x, y, u)
    period = _period(u, 0.26, 0.36)
    r = np.hypot(_triangle_wave(x / period), _triangle_wave(y / period))
    return _edge((np.float32(0.31) - r) * period, px)


def _grid(x: Field, y: Field, u: Field, px: float) -> Field:
    x, y = _phased(x, y, u)
    period = _period(u, 0.26, 0.36)
    line = np.minimum(_triangle_wave(x / period), _triangle_wave(y / period))
    return _edge((np.float32(0.13) - line) * period, px)


def _rings(x: Field, y: Field, u: Field, px: float) -> Field:
    # Off centre enough to cross the band of a ring instead of following it.
    r = np.hypot(x - (u[..., 1] - 0.5) * 0.8, y - (u[..., 2] - 0.5) * 0.8)
    return _stripes(r, _period(u, 0.22, 0.30), px)


def _spokes(x: Field, y: Field, u: Field, px: float) -> Field:
    x, y = x - (u[..., 1] - 0.5) * 0.3, y - (u[..., 2] - 0.5) * 0.3
    turn = np.arctan2(y, x) * np.float32(9 / (2 * math.pi)) + u[..., 0]
    width = np.hypot(x, y) * np.float32(2 * math.pi / 9)
    return _edge((_triangle_wave(turn) - np.float32(0.25)) * width, px)


def _zigzag(x: Field, y: Field, u: Field, px: float) -> Field:
    x, y = _phased(x, y, u)
    period = _period(u, 0.28, 0.36)
    # Slope 1.4: clearly neither horizontal nor the diagonal stripes.
    folded = y + np.float32(1.4) * period * _triangle_wave(x / (1.25 * period))
    return _stripes(folded, period, px)


def _bricks(x: Field, y: Field, u: Field, px: float) -> Field:
    x, y = _phased(x, y, u)
    height = _period(u, 0.22, 0.30)
    row = y / height
    across = x / (2 * height) + np.float32(0.5) * np.mod(np.floor(row), 2)
    mortar = np.minimum(_triangle_wave(row), 2 * _triangle_wave(across))
    return _edge((mortar - np.float32(0.12)) * height, px)


def _blobs(x: Field, y: Field, u: Field, px: float) -> Field:
    total = np.zeros_like(x)
    waves = 6
    for k in range(waves):
        angle = math.pi * (k + u[..., 3 + k]) / waves
        rate = 2 * math.pi / (0.42 + 0.16 * u[..., 0])
        phase = 2 * math.pi * u[..., 3 + waves + k]
        total += np.cos(rate * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    # Gradient of the sum: rms 22 per image unit, so 1/22 makes it a distance.
    return _edge(total * np.float32(1 / 22), px)


def _speckle(x: Field, y: Field, u: Field, px: float) -> Field:
    noise = value_noise(x, y, u, cell=0.055)
    return clip01((noise - np.float32(0.5)) * np.float32(2.4) + np.float32(0.5))


_DRAWN_BY: tuple[Callable[[Field, Field, Field, float], Field], ...] = (
    *(_h_stripes, _v_stripes, _diagonal, _checker, _dots, _grid),
    *(_rings, _spokes, _zigzag, _bricks, _blobs, _speckle),
)
TEXTURES = {draw.__name__.removeprefix("_"): draw for draw in _DRAWN_BY}


def value_noise(x: Field, y: Field, u: Field, cell: float) -> Field:
    """Return bilinear lattice noise in [0, 1] with the given cell size."""
    gx, gy = x / np.float32(cell), y / np.float32(cell)
    ix, iy = np.floor(gx), np.floor(gy)
    fx, fy = gx - ix, gy - iy
    salt = (u[..., 1] * 2**24).astype(np.uint64) << np.uint64(32)
    # Offset keeps lattice indices positive before they become unsigned.
    jx, jy = (ix + 4096).astype(np.uint64), (iy + 4096).astype(np.uint64)

    def corner(dx: int, dy: int) -> Field:
        word = salt + (jx + np.uint64(dx)) * np.uint64(8192) + (jy + np.uint64(dy))
        bits = mix64(word * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        return bits.astype(np.float32) * np.float32(2.0**-24)

    top = corner(0, 0) * (1 - fx) + corner(1, 0) * fx
    bottom = corner(0, 1) * (1 - fx) + corner(1, 1) * fx
    out: Field = top * (1 - fy) + bottom * fy
    return out
