"""The Triton kernels on the CPU, in Triton's interpreter. Not collected by itself.

Triton reads TRITON_INTERPRET when it is imported, so `test_kernel_triton.py` runs this
file in a process of its own. It checks arithmetic and indexing; what a compiler makes
of the kernels is checked there too, and the two together on a GPU by the other tests.
"""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    ALL_DTYPES,
    BF16,
    F16,
    F32,
    NORMS,
    TOLERANCES,
    Dtypes,
    check_ball_init,
    check_exact_pixels,
    check_normalize,
    check_philox_words,
    check_step,
    make_step,
    step_cases,
)

from fastadv import kernels

# The interpreter cuts bfloat16 off where hardware rounds: a whole unit in the last
# place instead of half. That the compiled kernels round is read from their PTX.
TOLERANCES[BF16] = (2**-7, TOLERANCES[BF16][1])


@pytest.fixture(autouse=True)
def forced():
    kernels.reset_launch_counts()
    with kernels.use_backend("triton"):
        yield
    assert {name for name, _ in kernels.launch_counts()} == {"triton"}


# ops.py copies the other layouts into one of these two.
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_step(norm, layout):
    # Each combination in one layout: loading and indexing do not know of each other.
    dtypes = ALL_DTYPES[:3] if layout == "channels_last" else ALL_DTYPES[3:]
    for step, name in step_cases(norm, layout, dtypes, "cpu"):
        check_step(step, name)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_ball_init(norm, layout):
    check_ball_init(norm, layout, "cpu", seeds=(2**64 - 1,))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_normalize(layout):
    check_normalize(layout, "cpu", (F32, BF16, F16))


def test_words():
    check_philox_words("cpu")


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero(norm):
    check_exact_pixels(norm, "cpu")


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_gradient_scale(scale):
    step = make_step("l2", (2, 3, 5, 7), Dtypes(F32, F32, None))
    step.grad.mul_(scale)
    check_step(step, f"gradient times {scale}")


def test_many_channels():
    """More than four channels take the gathering path for the constants."""
    step = make_step("l2", (2, 4, 6, 5), layout="channels_last")
    double = {
        name: torch.cat((t, t), dim=0 if name in ("mean", "std") else 1)
        for name, t in vars(step).items()
        if name in ("x", "x0", "grad", "z", "mean", "std")
    }
    for name, t in double.items():
        last = t.dim() == 4
        setattr(
            step, name, t.contiguous(memory_format=torch.channels_last) if last else t
        )
    check_step(step, "eight channels")


def test_huge_images_get_wider_parts():
    """A sample has at most max_parts partial sums."""
    from fastadv.kernels._triton import CONFIG

    for row in (1, 3072, 150528, 50_000_000, 2**31 - 1024):
        width = CONFIG.width(row)
        assert width >= CONFIG.sum_width
        assert width % CONFIG.block == 0
        assert -(-row // width) <= CONFIG.max_parts
    check_step(make_step("linf", (1, 1, 2, 2)), "forced")
