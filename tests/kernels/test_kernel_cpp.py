"""What only the C++ backend has: stores past the caches, and the benchmarks' yardstick."""

from __future__ import annotations

import itertools

import pytest
import torch
from kernel_backends import CPU, use_isa
from kernel_cases import BF16, F16, F32, U8, Dtypes, make_apgd, make_step

from fastadv import kernels
from fastadv.kernels import _cpp

pytestmark = pytest.mark.skipif(not _cpp.LIBRARY.exists(), reason="not built")


def outputs_with_cache(size: int, isa: str, directory, patch) -> list[torch.Tensor]:
    """What steps write when the last-level cache is said to have `size` bytes."""
    patch.setenv("FASTADV_CPU_LLC", str(size))
    use_isa(isa, directory, patch, f"{isa}-{size}")
    assert _cpp.last_level_cache() == size
    written = []
    # Planes of 41 x 41 begin at any address, those of 40 x 40 at whole vectors.
    for make, z, side, layout in itertools.product(
        (make_step, make_apgd), (F32, BF16, F16), (40, 41), ("nchw", "channels_last")
    ):
        step = make("l2", (2, 3, side, side), Dtypes(U8, F32, z), layout).run()
        written += [step.x, step.z]
    return written


@pytest.mark.parametrize("isa", [b.isa for b in CPU if b.isa])
def test_stores_past_the_caches_change_nothing(isa, tmp_path, monkeypatch):
    try:
        with kernels.use_backend("cpp"):
            past = outputs_with_cache(0, isa, tmp_path, monkeypatch)
            cached = outputs_with_cache(2**40, isa, tmp_path, monkeypatch)
    finally:
        _cpp._load.cache_clear()
    for got, want in zip(past, cached, strict=True):
        assert torch.equal(got, want)


def test_the_last_level_cache_is_plausible():
    assert 2**18 <= _cpp.last_level_cache() <= 2**31


def test_the_yardstick_of_the_benchmark_moves_what_it_says():
    random = torch.Generator().manual_seed(0)
    for size in (1, 16, 6144, 20001):
        x, a, b = (torch.rand(size, generator=random) for _ in range(3))
        for stream in (False, True):
            got, z = x.clone(), torch.empty_like(x)
            _cpp.triad(got, a, b, z, stream=stream)
            torch.testing.assert_close(got, x + (a - b) / 2, rtol=0, atol=2e-7)
            assert torch.equal(z, got)
