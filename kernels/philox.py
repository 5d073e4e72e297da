"""Philox4x32-10 in PyTorch: the random numbers that every backend reproduces.

One call per (sample, pixel, group of four channels) gives the four channels of that
pixel, so the numbers do not depend on memory layout, batch split or number of threads:

    counter = (pixel, channel // 4, sample low, sample high), key = (seed low, high)

with `pixel = h * W + w` and `sample = offset + n`. The draw that belongs to a whole
sample (the radius in an L2 ball) uses pixel 0xFFFFFFFF.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
SAMPLE_PIXEL = 0xFFFFFFFF
_UNIT = 2.0**-24


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> Tensor:
    """Return four 32-bit words per counter, as int64 in a new trailing dimension."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # The int64 product wraps modulo 2^64, which leaves both halves right.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _samples(n: int, offset: int, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = torch.arange(n, device=device, dtype=torch.int64) + offset
    return ids & _MASK, (ids >> 32) & _MASK


def pixel_words(
    n: int, c: int, h: int, w: int, seed: int, offset: int, device: torch.device
) -> Tensor:
    """Return the words of every pixel: int64 [N, ceil(C/4), H, W, 4]."""
    low, high = (s.view(n, 1, 1) for s in _samples(n, offset, device))
    pixel = torch.arange(h * w, device=device).view(1, 1, -1)
    group = torch.arange((c + 3) // 4, device=device).view(1, -1, 1)
    words = philox4x32((pixel, group, low, high), seed)
    return words.view(n, -1, h, w, 4)


def _to_channels(lanes: Tensor, c: int) -> Tensor:
    """Rearrange lanes [N, G, H, W, 4] as values [N, C, H, W]."""
    n, groups, h, w, _ = lanes.shape
    return lanes.permute(0, 1, 4, 2, 3).reshape(n, groups * 4, h, w)[:, :c]


def to_uniform(words: Tensor, c: int) -> Tensor:
    """Return uniform numbers in [0, 1) with 24 bits: float64 [N, C, H, W]."""
    return _to_channels((words >> 8).double() * _UNIT, c)


def to_normal(words: Tensor, c: int) -> Tensor:
    """Return normal numbers, by Box-Muller on pairs of lanes: float64 [N, C, H, W]."""
    bits = (words >> 8).double()
    radius = (-2 * ((bits[..., 0::2] + 1) * _UNIT).log()).sqrt()
    angle = 2 * math.pi * _UNIT * bits[..., 1::2]
    lanes = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return _to_channels(lanes.flatten(-2), c)


def sample_uniform(n: int, seed: int, offset: int, device: torch.device) -> Tensor:
    """Return one uniform number in (0, 1] per sample: float64 [N]."""
    low, high = _samples(n, offset, device)
    pixel = torch.full_like(low, SAMPLE_PIXEL)
    words = philox4x32((pixel, torch.zeros_like(low), low, high), seed)
    return ((words[..., 0] >> 8).double() + 1) * _UNIT
