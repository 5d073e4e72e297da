"""The compiled loops of the Numba backend, on plain arrays without torch.

Importing this imports Numba, so `_numba.py` does it at the first call. Image arrays are
[rows, plane]: one row per (sample, channel) for NCHW, one per sample for channels_last.
A row is cut into tiles; `mean` and `inv` ([planes, tile], `inv = 1 / std`) hold each
element's channel constants, which is how both layouts share every loop.

Sums go tile by tile in float64 in a fixed order: results do not depend on threads.
"""
# Numba infers the types of compiled functions from their arguments.
# mypy: allow-untyped-defs, allow-untyped-calls

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import prange

TINY = 1e-30  # as in reference.py
_LARGEST = np.finfo(np.float32).max
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_UNIT = np.float32(2.0**-24)
_TURN = np.float32(2 * np.pi)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_SAMPLE_PIXEL = np.uint64(0xFFFFFFFF)


# The operands of a step. `unit` divides a clean pixel (255 for uint8, else 1), `write_z`
# says whether `z` is wanted, `step` and `eps` have one value per sample, and PGD ignores
# `x_prev` and `momentum`. A tile has the parts of the same arrays, without the numbers.
Arrays = namedtuple(
    "Arrays", "x x_prev x0 unit grad z write_z step eps momentum mean inv"
)
Tile = namedtuple("Tile", "x x_prev x0 unit grad z mean inv")


def _jit(**options: Any) -> Callable[[Any], Any]:
    """Return `numba.njit` without checks of division, cached on disk where that works."""

    def decorate(function: Any) -> Any:
        common = {"nogil": True, "error_model": "numpy", **options}
        try:
            return numba.njit(cache=True, **common)(function)
        except RuntimeError:  # no writable place for the cache
            return numba.njit(**common)(function)

    return decorate


# "contract" allows fused multiply-add. "reassoc", which vectorises a sum, is kept to
# the one function that sums. Never "nnan" or "ninf": they delete the non-finite check.
_inline = _jit(fastmath={"contract"})
_summing = _jit(fastmath={"contract", "reassoc"})
_parallel = _jit(parallel=True)


@_inline
def _clip(value, low, high):
    value = low if value < low else value
    return high if value > high else value


@_inline
def _ascend(gx, step):
    """Return `step * sign(gx)`, or zero for an element that is not finite."""
    move = step if gx > _ZERO else _ZERO
    move = -step if gx < _ZERO else move
    return move if abs(gx) <= _LARGEST else _ZERO


@_inline
def _linf_tile(t, step, eps):
    bad = 0
    for j in range(t.x.size):
        gx = t.grad[j] * t.inv[j]
        bad += not abs(gx) <= _LARGEST
        clean = np.float32(t.x0[j]) / t.unit
        d = _clip((t.x[j] - clean) + _ascend(gx, step), -eps, eps)
        t.x[j] = _clip(clean + d, _ZERO, _ONE)
    return bad


@_inline
def _blend(x, x_prev, clean, ahead, momentum):
    """Return the point, less `clean`, that momentum makes of a step to `clean + ahead`."""
    d = x - clean
    u = _clip(clean + ahead, _ZERO, _ONE) - clean
    return d + momentum * (u - d) + (_ONE - momentum) * (d - (x_prev - clean))


@_inline
def _apgd_linf_tile(t, step, eps, momentum):
    bad = 0
    for j in range(t.x.size):
        gx = t.grad[j] * t.inv[j]
        bad += not abs(gx) <= _LARGEST
        clean, old = np.float32(t.x0[j]) / t.unit, t.x[j]
        ahead = _clip((old - clean) + _ascend(gx, step), -eps, eps)
        w = _blend(old, t.x_prev[j], clean, ahead, momentum)
        t.x_prev[j] = old
        t.x[j] = _clip(clean + _clip(w, -eps, eps), _ZERO, _ONE)
    return bad


@_summing
def _sum_tile(t, out):
    """Write |gx|^2, <d, gx>, |d|^2 of a tile to `out`; return the non-finite count."""
    gg, dg, dd, bad = 0.0, 0.0, 0.0, 0
    for j in range(t.x.size):
        gx = t.grad[j] * t.inv[j]
        finite = abs(gx) <= _LARGEST
        bad += not finite
        g = np.float64(gx if finite else _ZERO)
        d = np.float64(t.x[j] - np.float32(t.x0[j]) / t.unit)
        gg += g * g
        dg += d * g
        dd += d * d
    out[0], out[1], out[2] = gg, dg, dd
    return bad


@_inline
def _move_tile(t, scale, shrink):
    for j in range(t.x.size):
        gx = t.grad[j] * t.inv[j]
        gx = gx if abs(gx) <= _LARGEST else _ZERO
        clean = np.float32(t.x0[j]) / t.unit
        t.x[j] = _clip(clean + ((t.x[j] - clean) + scale * gx) * shrink, _ZERO, _ONE)


@_summing
def _blend_tile(t, scale, shrink, momentum):
    """Leave `clean + w` in x and the old x in x_prev; return |w|^2."""
    ww = 0.0
    for j in range(t.x.size):
        gx = t.grad[j] * t.inv[j]
        gx = gx if abs(gx) <= _LARGEST else _ZERO
        clean, old = np.float32(t.x0[j]) / t.unit, t.x[j]
        ahead = ((old - clean) + scale * gx) * shrink
        w = _blend(old, t.x_prev[j], clean, ahead, momentum)
        t.x_prev[j] = old
        t.x[j] = clean + w
        ww += np.float64(w) * np.float64(w)
    return ww


@_inline
def _shrink_tile(t, shrink):
    for j in range(t.x.size):
        clean = np.float32(t.x0[j]) / t.unit
        t.x[j] = _clip(clean + (t.x[j] - clean) * shrink, _ZERO, _ONE)


@_inline
def _normalize_tile(x, unit, mean, inv, z):
    for j in range(x.size):
        z[j] = (np.float32(x[j]) / unit - mean[j]) * inv[j]


@_inline
def _place(k, planes, plane, width):
    """Return sample, row, first and end of tile `k` of [rows, plane]."""
    tiles = (plane + width - 1) // width
    row, first = k // tiles, k % tiles * width
    return row // planes, row, first, min(first + width, plane)


@_inline
def _tile(s, k):
    """Return the sample that tile `k` belongs to, and the tile."""
    planes, width = s.inv.shape
    n, r, a, b = _place(k, planes, s.x.shape[1], width)
    p = r % planes
    return n, Tile(
        s.x[r, a:b], s.x_prev[r, a:b], s.x0[r, a:b], s.unit, s.grad[r, a:b],
        s.z[r, a:b], s.mean[p], s.inv[p],
    )  # fmt: skip


@_inline
def _tiles(s):
    """Return the number of tiles of one sample."""
    planes, width = s.inv.shape
    return planes * ((s.x.shape[1] + width - 1) // width)


@_inline
def _finish(s, t):
    """Write the next normalised input of a tile, if it is wanted."""
    if s.write_z:
        _normalize_tile(t.x, _ONE, t.mean, t.inv, t.z)


@_parallel
def step_linf(s, apgd):
    """Take one linf step in place, of APGD if `apgd`; return the non-finite elements."""
    bad = 0
    for k in prange(s.step.size * _tiles(s)):
        n, t = _tile(s, k)
        if apgd:
            bad += _apgd_linf_tile(t, s.step[n], s.eps[n], s.momentum)
        else:
            bad += _linf_tile(t, s.step[n], s.eps[n])
        _finish(s, t)
    return bad


@_inline
def _shrink_to(eps, length):
    return eps / length if length > eps else 1.0


@_parallel
def _plan_moves(s, scale, shrink):
    """Write each sample's move, d <- shrink * (d + scale * g); return the bad elements."""
    tiles = _tiles(s)
    parts = np.empty((s.step.size * tiles, 3))
    bad = 0
    for k in prange(s.step.size * tiles):
        _, t = _tile(s, k)
        bad += _sum_tile(t, parts[k])
    for n in range(s.step.size):
        gg, dg, dd = 0.0, 0.0, 0.0
        for k in range(n * tiles, (n + 1) * tiles):
            gg, dg, dd = gg + parts[k, 0], dg + parts[k, 1], dd + parts[k, 2]
        a = s.step[n] / (np.sqrt(gg) + TINY)
        scale[n] = a
        squared = dd + 2 * a * dg + a * a * gg
        shrink[n] = _shrink_to(s.eps[n], np.sqrt(max(0.0, squared)))
    return bad


@_parallel
def step_l2(s, apgd):
    """Take one L2 step in place, of APGD if `apgd`; return the non-finite elements."""
    tiles = _tiles(s)
    scale, shrink = np.empty_like(s.step), np.empty_like(s.step)
    bad = _plan_moves(s, scale, shrink)
    if apgd:
        parts = np.empty(s.step.size * tiles)
        for k in prange(s.step.size * tiles):
            n, t = _tile(s, k)
            parts[k] = _blend_tile(t, scale[n], shrink[n], s.momentum)
        for n in range(s.step.size):
            ww = 0.0
            for k in range(n * tiles, (n + 1) * tiles):
                ww += parts[k]
            shrink[n] = _shrink_to(s.eps[n], np.sqrt(ww))
    for k in prange(s.step.size * tiles):
        n, t = _tile(s, k)
        if apgd:
            _shrink_tile(t, shrink[n])
        else:
            _move_tile(t, scale[n], shrink[n])
        _finish(s, t)
    return bad


@_parallel
def normalize(x, unit, mean, inv, z):
    """Write `(x / unit - mean) * inv` to `z`."""
    planes, width = inv.shape
    tiles = (x.shape[1] + width - 1) // width
    for k in prange(x.shape[0] * tiles):
        _, r, a, b = _place(k, planes, x.shape[1], width)
        p = r % planes
        _normalize_tile(x[r, a:b], unit, mean[p], inv[p], z[r, a:b])


@_inline
def philox(c0, c1, c2, c3, k0, k1):
    """Compute Philox4x32-10 on 32-bit words held in uint64; philox.py has the layout."""
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (p1 >> _HALF) ^ c1 ^ k0,
            p1 & _MASK,
            (p0 >> _HALF) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@_inline
def _uniform(word):
    return np.float32(word >> np.uint64(8)) * _UNIT


@_inline
def _normal_pair(w0, w1):
    radius = np.sqrt(-_TWO * np.log(_uniform(w0) + _UNIT))
    angle = _TURN * _uniform(w1)
    return radius * np.cos(angle), radius * np.sin(angle)


@_inline
def _random_sample(out, channels_last, l2, low, high, k0, k1):
    """Fill out[planes, plane] with unscaled numbers; return their squared length."""
    channels = out.shape[1] if channels_last else out.shape[0]
    pixels = out.shape[0] if channels_last else out.shape[1]
    squared = 0.0
    for group in range((channels + 3) // 4):
        for pixel in range(pixels):
            w0, w1, w2, w3 = philox(
                np.uint64(pixel), np.uint64(group), low, high, k0, k1
            )
            if l2:
                v0, v1 = _normal_pair(w0, w1)
                v2, v3 = _normal_pair(w2, w3)
            else:
                v0, v1 = _TWO * _uniform(w0) - _ONE, _TWO * _uniform(w1) - _ONE
                v2, v3 = _TWO * _uniform(w2) - _ONE, _TWO * _uniform(w3) - _ONE
            values = (v0, v1, v2, v3)
            for lane in range(min(4, channels - 4 * group)):
                channel, v = 4 * group + lane, values[lane]
                if channels_last:
                    out[pixel, channel] = v
                else:
                    out[channel, pixel] = v
                squared += np.float64(v) * np.float64(v)
    return squared


@_parallel
def ball_init(out, x0, unit, channels_last, l2, eps, key):
    """Fill out[n, a, b] (pixels, channels or channels, pixels) around x0[n, a * b]."""
    seed, offset = key
    k0, k1 = seed & _MASK, seed >> _HALF
    size = x0.shape[1]
    for n in prange(out.shape[0]):
        sample = offset + np.uint64(n)
        low, high = sample & _MASK, sample >> _HALF
        squared = _random_sample(out[n], channels_last, l2, low, high, k0, k1)
        scale = np.float64(eps[n])
        if l2:
            word = philox(_SAMPLE_PIXEL, np.uint64(0), low, high, k0, k1)[0]
            share = (np.float64(_uniform(word)) + np.float64(_UNIT)) ** (1.0 / size)
            scale *= share / max(np.sqrt(squared), TINY)
        row, clean = out[n].reshape(size), x0[n]
        for j in range(size):
            value = np.float64(np.float32(clean[j]) / unit) + scale * row[j]
            row[j] = _clip(value, 0.0, 1.0)
