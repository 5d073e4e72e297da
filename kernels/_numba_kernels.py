"""The compiled loops of the Numba backend. Plain arrays only: no torch, no policy.

Importing this imports Numba, so `_numba.py` does it at the first call. Image arrays are
[rows, plane]: one row per (sample, channel) for NCHW, one per sample for channels_last.
A row is cut into tiles; `mean` and `inv` ([planes, tile], `inv = 1 / std`) hold each
element's channel constants, which is how both layouts share every loop.

Sums go tile by tile in float64 in a fixed order: results do not depend on threads.
"""
# Numba infers the types of compiled functions from their arguments.
# mypy: allow-untyped-defs, allow-untyped-calls

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


def _jit(**options: Any) -> Callable[[Any], Any]:
    """`numba.njit` without zero-division checks, cached on disk where that works."""

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
    """`step * sign(gx)`, nothing for an element that is not finite."""
    move = step if gx > _ZERO else _ZERO
    move = -step if gx < _ZERO else move
    return move if abs(gx) <= _LARGEST else _ZERO


@_inline
def _linf_tile(x, x0, unit, grad, step, eps, inv):
    bad = 0
    for j in range(x.size):
        gx = grad[j] * inv[j]
        bad += not abs(gx) <= _LARGEST
        clean = np.float32(x0[j]) / unit
        d = _clip((x[j] - clean) + _ascend(gx, step), -eps, eps)
        x[j] = _clip(clean + d, _ZERO, _ONE)
    return bad


@_inline
def _blend(x, x_prev, clean, ahead, momentum):
    """The point less `clean` that momentum makes of the plain step to `clean + ahead`."""
    d = x - clean
    u = _clip(clean + ahead, _ZERO, _ONE) - clean
    return d + momentum * (u - d) + (_ONE - momentum) * (d - (x_prev - clean))


@_inline
def _apgd_linf_tile(x, x_prev, x0, unit, grad, step, eps, momentum, inv):
    bad = 0
    for j in range(x.size):
        gx = grad[j] * inv[j]
        bad += not abs(gx) <= _LARGEST
        clean, old = np.float32(x0[j]) / unit, x[j]
        ahead = _clip((old - clean) + _ascend(gx, step), -eps, eps)
        w = _blend(old, x_prev[j], clean, ahead, momentum)
        x_prev[j] = old
        x[j] = _clip(clean + _clip(w, -eps, eps), _ZERO, _ONE)
    return bad


@_summing
def _sum_tile(x, x0, unit, grad, inv, out):
    """Write |gx|^2, <d, gx>, |d|^2 of a tile to `out`; return the non-finite count."""
    gg, dg, dd, bad = 0.0, 0.0, 0.0, 0
    for j in range(x.size):
        gx = grad[j] * inv[j]
        finite = abs(gx) <= _LARGEST
        bad += not finite
        g = np.float64(gx if finite else _ZERO)
        d = np.float64(x[j] - np.float32(x0[j]) / unit)
        gg += g * g
        dg += d * g
        dd += d * d
    out[0], out[1], out[2] = gg, dg, dd
    return bad


@_inline
def _move_tile(x, x0, unit, grad, scale, shrink, inv):
    for j in range(x.size):
        gx = grad[j] * inv[j]
        gx = gx if abs(gx) <= _LARGEST else _ZERO
        clean = np.float32(x0[j]) / unit
        x[j] = _clip(clean + ((x[j] - clean) + scale * gx) * shrink, _ZERO, _ONE)


@_summing
def _blend_tile(x, x_prev, x0, unit, grad, scale, shrink, momentum, inv):
    """Leave `clean + w` in x and the old x in x_prev; return |w|^2."""
    ww = 0.0
    for j in range(x.size):
        gx = grad[j] * inv[j]
        gx = gx if abs(gx) <= _LARGEST else _ZERO
        clean, old = np.float32(x0[j]) / unit, x[j]
        ahead = ((old - clean) + scale * gx) * shrink
        w = _blend(old, x_prev[j], clean, ahead, momentum)
        x_prev[j] = old
        x[j] = clean + w
        ww += np.float64(w) * np.float64(w)
    return ww


@_inline
def _shrink_tile(x, x0, unit, shrink):
    for j in range(x.size):
        clean = np.float32(x0[j]) / unit
        x[j] = _clip(clean + (x[j] - clean) * shrink, _ZERO, _ONE)


@_inline
def _normalize_tile(x, unit, mean, inv, z):
    for j in range(x.size):
        z[j] = (np.float32(x[j]) / unit - mean[j]) * inv[j]


@_inline
def _tile(k, tiles, shape, width):
    """Tile number `k` of [rows, plane] as (row, first, end)."""
    row, first = k // tiles, k % tiles * width
    return row, first, min(first + width, shape[1])


@_parallel
def step_linf(x, x0, unit, grad, z, write_z, step, eps, mean, inv):
    """One linf step in place; returns the number of non-finite gradient elements."""
    planes, width = inv.shape
    tiles = (x.shape[1] + width - 1) // width
    bad = 0
    for k in prange(x.shape[0] * tiles):
        r, a, b = _tile(k, tiles, x.shape, width)
        n, p = r // planes, r % planes
        bad += _linf_tile(
            x[r, a:b], x0[r, a:b], unit, grad[r, a:b], step[n], eps[n], inv[p]
        )
        if write_z:
            _normalize_tile(x[r, a:b], _ONE, mean[p], inv[p], z[r, a:b])
    return bad


@_inline
def _shrink_to(eps, length):
    return eps / length if length > eps else 1.0


@_parallel
def _plan_moves(x, x0, unit, grad, step, eps, inv, scale, shrink):
    """Write each sample's move, d <- shrink * (d + scale * g); return the bad elements."""
    planes, width = inv.shape
    tiles = (x.shape[1] + width - 1) // width
    parts = np.empty((x.shape[0] * tiles, 3))
    bad = 0
    for k in prange(x.shape[0] * tiles):
        r, a, b = _tile(k, tiles, x.shape, width)
        bad += _sum_tile(
            x[r, a:b], x0[r, a:b], unit, grad[r, a:b], inv[r % planes], parts[k]
        )
    for n in range(step.size):
        gg, dg, dd = 0.0, 0.0, 0.0
        for k in range(n * planes * tiles, (n + 1) * planes * tiles):
            gg, dg, dd = gg + parts[k, 0], dg + parts[k, 1], dd + parts[k, 2]
        s = step[n] / (np.sqrt(gg) + TINY)
        scale[n] = s
        shrink[n] = _shrink_to(eps[n], np.sqrt(max(0.0, dd + 2 * s * dg + s * s * gg)))
    return bad


@_parallel
def step_l2(x, x0, unit, grad, z, write_z, step, eps, mean, inv):
    """One L2 step in place; returns the number of non-finite gradient elements."""
    planes, width = inv.shape
    tiles = (x.shape[1] + width - 1) // width
    scale, shrink = np.empty_like(step), np.empty_like(step)
    bad = _plan_moves(x, x0, unit, grad, step, eps, inv, scale, shrink)
    for k in prange(x.shape[0] * tiles):
        r, a, b = _tile(k, tiles, x.shape, width)
        n, p = r // planes, r % planes
        _move_tile(
            x[r, a:b], x0[r, a:b], unit, grad[r, a:b], scale[n], shrink[n], inv[p]
        )
        if write_z:
            _normalize_tile(x[r, a:b], _ONE, mean[p], inv[p], z[r, a:b])
    return bad


@_parallel
def apgd_linf(x, x_prev, x0, unit, grad, z, write_z, step, eps, momentum, mean, inv):
    """One linf APGD step in place; returns the number of non-finite elements."""
    planes, width = inv.shape
    tiles = (x.shape[1] + width - 1) // width
    bad = 0
    for k in prange(x.shape[0] * tiles):
        r, a, b = _tile(k, tiles, x.shape, width)
        n, p = r // planes, r % planes
        bad += _apgd_linf_tile(
            x[r, a:b], x_prev[r, a:b], x0[r, a:b], unit, grad[r, a:b],
            step[n], eps[n], momentum, inv[p],
        )  # fmt: skip
        if write_z:
            _normalize_tile(x[r, a:b], _ONE, mean[p], inv[p], z[r, a:b])
    return bad


@_parallel
def apgd_l2(x, x_prev, x0, unit, grad, z, write_z, step, eps, momentum, mean, inv):
    """One L2 APGD step in place; returns the number of non-finite elements."""
    planes, width = inv.shape
    tiles = (x.shape[1] + width - 1) // width
    scale, shrink = np.empty_like(step), np.empty_like(step)
    bad = _plan_moves(x, x0, unit, grad, step, eps, inv, scale, shrink)
    parts = np.empty(x.shape[0] * tiles)
    for k in prange(x.shape[0] * tiles):
        r, a, b = _tile(k, tiles, x.shape, width)
        n, p = r // planes, r % planes
        parts[k] = _blend_tile(
            x[r, a:b], x_prev[r, a:b], x0[r, a:b], unit, grad[r, a:b],
            scale[n], shrink[n], momentum, inv[p],
        )  # fmt: skip
    for n in range(step.size):
        ww = 0.0
        for k in range(n * planes * tiles, (n + 1) * planes * tiles):
            ww += parts[k]
        shrink[n] = _shrink_to(eps[n], np.sqrt(ww))
    for k in prange(x.shape[0] * tiles):
        r, a, b = _tile(k, tiles, x.shape, width)
        n, p = r // planes, r % planes
        _shrink_tile(x[r, a:b], x0[r, a:b], unit, shrink[n])
        if write_z:
            _normalize_tile(x[r, a:b], _ONE, mean[p], inv[p], z[r, a:b])
    return bad


@_parallel
def normalize(x, unit, mean, inv, z):
    """Write `(x / unit - mean) * inv` to `z`."""
    width = inv.shape[1]
    tiles = (x.shape[1] + width - 1) // width
    for k in prange(x.shape[0] * tiles):
        r, a, b = _tile(k, tiles, x.shape, width)
        p = r % inv.shape[0]
        _normalize_tile(x[r, a:b], unit, mean[p], inv[p], z[r, a:b])


@_inline
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on 32-bit words held in uint64; the layout is in philox.py."""
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
def ball_init(out, x0, unit, channels_last, l2, eps, seed, offset):
    """Fill out[n, a, b] (pixels, channels or channels, pixels) around x0[n, a * b]."""
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
