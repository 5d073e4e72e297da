"""The random numbers: Philox's known answers, and what ball_init makes of them."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from kernel_cases import NORMS, U8, as_layout
from scipy import stats

from fastadv import kernels
from fastadv.kernels import philox

ONES = 0xFFFFFFFF
# Random123's kat_vectors: philox4x32, 10 rounds: counter, key, result.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (ONES, ONES, ONES, ONES),
        (ONES, ONES),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN)
def test_philox_known_answers(counter, key, want):
    words = philox.philox4x32(
        tuple(torch.tensor([c]) for c in counter), key[0] | key[1] << 32
    )
    assert tuple(words[0].tolist()) == want


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="no numba")
@pytest.mark.parametrize(("counter", "key", "want"), KNOWN)
def test_philox_known_answers_numba(counter, key, want):
    """The others are tied to the reference's words by `check_philox_words`."""
    import numpy as np

    from fastadv.kernels import _numba

    words = _numba._kernels().philox(*map(np.uint64, counter + key))
    assert tuple(map(int, words)) == want


@pytest.mark.parametrize("norm", NORMS)
def test_numbers_belong_to_the_sample_not_the_batch(backend, norm):
    x0 = torch.full((8, 3, 6, 5), 0.5, device=backend.device)
    whole = kernels.ball_init(x0, norm=norm, eps=0.4, seed=11, offset=2**32 - 4)
    halves = [
        kernels.ball_init(x0[:4], norm=norm, eps=0.4, seed=11, offset=2**32 - 4 + k)
        for k in (0, 4)
    ]
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(halves[0], halves[1])
    other = kernels.ball_init(x0, norm=norm, eps=0.4, seed=12, offset=2**32 - 4)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize("norm", NORMS)
def test_memory_order_does_not_change_the_numbers(backend, norm):
    x0 = torch.randint(0, 256, (3, 3, 9, 7), dtype=U8, device=backend.device)
    nchw = kernels.ball_init(x0, norm=norm, eps=0.3, seed=5)
    last = kernels.ball_init(as_layout(x0, "channels_last"), norm=norm, eps=0.3, seed=5)
    assert last.is_contiguous(memory_format=torch.channels_last)
    # Only the sum of squares of L2 is taken in another order.
    torch.testing.assert_close(last, nchw, rtol=0, atol=0 if norm == "linf" else 1e-7)


@pytest.mark.parametrize("shape", [(3000, 1, 1, 2), (3000, 3, 1, 1), (3000, 1, 2, 3)])
def test_l2_starts_are_uniform_in_the_ball(backend, shape):
    """(r / e)^d is uniform, and so is the direction's angle."""
    eps, d = 0.4, shape[1] * shape[2] * shape[3]
    x0 = torch.full(shape, 0.5, device=backend.device)
    delta = kernels.ball_init(x0, norm="l2", eps=eps, seed=123) - x0
    rows = delta.double().flatten(1).cpu()
    shares = (rows.norm(dim=1) / eps) ** d
    # The seed is fixed: this cannot flake, and 1 % is what a wrong law would fail.
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 0.01
    angle = torch.atan2(rows[:, 0], rows[:, 1]) / (2 * torch.pi) + 0.5
    assert stats.kstest(angle.numpy(), "uniform").pvalue > 0.01


def test_linf_starts_are_uniform_in_the_box(backend):
    x0 = torch.full((50, 3, 8, 8), 0.5, device=backend.device)
    start = kernels.ball_init(x0, norm="linf", eps=0.25, seed=321)
    shares = ((start - 0.25) / 0.5).double().flatten().cpu()
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 0.01
    correlation = torch.corrcoef(start.permute(1, 0, 2, 3).flatten(1).double().cpu())
    assert (correlation - torch.eye(3)).abs().max() < 0.05


@pytest.mark.parametrize("norm", NORMS)
def test_starts_are_inside_box_and_ball(backend, norm):
    x0 = torch.randint(0, 256, (6, 3, 8, 8), dtype=U8, device=backend.device)
    eps = torch.linspace(0, 2, 6, device=backend.device)
    start = kernels.ball_init(x0, norm=norm, eps=eps, seed=77)
    assert start.min() >= 0
    assert start.max() <= 1
    delta = (start.double() - x0.double() / 255).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert (size <= eps + 1e-6).all()
