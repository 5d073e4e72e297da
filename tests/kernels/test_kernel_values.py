"""Every backend, layout, dtype and shape against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import CPU, GPU, Backend, params
from kernel_cases import (
    ALL_DTYPES,
    BF16,
    DELTA_DTYPES,
    F16,
    F32,
    FLOAT_DTYPES,
    LAYOUTS,
    NORMS,
    Dtypes,
    check_ball_init,
    check_exact_pixels,
    check_normalize,
    check_philox_words,
    check_step,
    make_apgd,
    make_step,
    step_cases,
)

from fastadv import kernels

# Backends whose work is cut into tiles and shared by threads of our own.
THREADED = [b for b in CPU if b.name != "reference"]
TILED = [b for b in THREADED if b.isa != "baseline"]
TILED += [b for b in GPU if b.name != "reference"] if torch.cuda.is_available() else []


def only(backends: list[Backend]) -> pytest.MarkDecorator:
    """Run a test with these backends instead of all."""
    return pytest.mark.parametrize(
        "backend", params(backends), indirect=True, scope="module"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
def test_step(backend, norm, layout):
    dtypes = (*ALL_DTYPES, *DELTA_DTYPES) if backend.half else FLOAT_DTYPES
    for step, name in step_cases(norm, layout, dtypes, backend.device):
        check_step(step, name)
    assert kernels.launch_counts()[backend.name, "pgd_step"] > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
def test_apgd_step(backend, norm, layout):
    dtypes = ALL_DTYPES if backend.half else FLOAT_DTYPES
    for step, name in step_cases(norm, layout, dtypes, backend.device, make_apgd):
        check_step(step, name)
    assert kernels.launch_counts()[backend.name, "apgd_step"] > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
def test_ball_init(backend, norm, layout):
    check_ball_init(norm, layout, backend.device)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_normalize(backend, layout):
    out = (F32, BF16, F16) if backend.half else (F32,)
    check_normalize(layout, backend.device, out)


def test_every_backend_draws_the_same_words(backend):
    check_philox_words(backend.device)


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_is_the_clean_image_to_the_bit(backend, norm):
    check_exact_pixels(norm, backend.device)


@only(TILED)
@pytest.mark.parametrize("make", [make_step, make_apgd])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_step_at_image_size(backend, norm, layout, make):
    # Three samples on two threads: both ways of the C++ backend to share out work.
    check_step(
        make(norm, (3, 3, 224, 224), FLOAT_DTYPES[0], layout, backend.device), norm
    )


@pytest.mark.parametrize("norm", NORMS)
def test_z_is_the_normalised_iterate(backend, norm):
    step = make_step(norm, (3, 3, 5, 7), device=backend.device).run()
    again = kernels.normalize(step.x, mean=step.mean, std=step.std)
    assert torch.equal(step.z, again)


@pytest.mark.parametrize("make", [make_step, make_apgd])
@pytest.mark.parametrize("norm", NORMS)
def test_memory_order_changes_sums_only(backend, norm, make):
    steps = [
        make(norm, (3, 3, 41, 41), layout=layout, device=backend.device).run()
        for layout in ("nchw", "channels_last")
    ]
    x, other = (step.x for step in steps)
    torch.testing.assert_close(x, other, rtol=0, atol=0 if norm == "linf" else 1e-7)


@pytest.mark.parametrize("scale", [1e-25, 1e-19, 1e19, 1e25])
def test_l2_step_length_does_not_depend_on_the_gradient_scale(backend, scale):
    step = make_step("l2", (2, 3, 9, 11), Dtypes(F32, F32, None), device=backend.device)
    step.x.fill_(0.5)
    step.x0.fill_(0.5)
    step.eps.fill_(9.0)
    step.step_size.copy_(torch.tensor([0.25, 0.5]))
    step.grad.nan_to_num_(1.0, 1.0, 1.0).mul_(scale)
    step.run()
    length = (step.x - 0.5).double().flatten(1).norm(dim=1)
    # 297 elements rounded at 2^-25 of 0.5: 5e-7 if all fell the same way.
    torch.testing.assert_close(length, step.step_size.double(), rtol=0, atol=1e-6)


def test_l2_gradient_below_tiny_moves_nothing(backend):
    """1e-38 is below the TINY of the reference: no full step of rounding noise."""
    step = make_step("l2", (2, 3, 5, 7), Dtypes(F32, F32, None), device=backend.device)
    step.grad.fill_(1e-38)
    before = step.x.clone()
    step.run()
    torch.testing.assert_close(step.x, before, rtol=0, atol=2e-7)


def test_linf_takes_the_sign_of_denormal_gradients(backend):
    step = make_step(
        "linf", (1, 3, 5, 7), Dtypes(F32, F32, None), device=backend.device
    )
    step.grad.fill_(1e-40)
    check_step(step, "denormal gradient")


@only(THREADED)
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (3, 3, 64, 65), (8, 3, 32, 32)])
@pytest.mark.parametrize("norm", NORMS)
def test_threads_do_not_change_a_bit(backend, norm, shape, threads):
    """Covers both parallel strategies of C++: by samples (1 thread) and by tiles."""
    results = []
    before = torch.get_num_threads()
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            step, apgd = make_step(norm, shape).run(), make_apgd(norm, shape).run()
            start = kernels.ball_init(step.x0, norm=norm, eps=step.eps, seed=9)
            written = [(s.x, s.z, s.nonfinite) for s in (step, apgd)]
            results.append((*written[0], *written[1], apgd.x_prev, start))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
