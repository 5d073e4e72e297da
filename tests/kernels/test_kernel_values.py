"""Every backend, layout, dtype and shape against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    ALL_DTYPES,
    BF16,
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
    make_step,
    step_cases,
)

from fastadv import kernels


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
def test_step(backend, norm, layout):
    dtypes = ALL_DTYPES if backend.half else FLOAT_DTYPES
    for step, name in step_cases(norm, layout, dtypes, backend.device):
        check_step(step, name)
    assert kernels.launch_counts()[backend.name, "pgd_step"] > 0


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


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("norm", NORMS)
def test_step_at_image_size(backend, norm, layout):
    if backend.name == "reference" or backend.isa == "baseline":
        pytest.skip("many tiles only concern the tiled backends")
    # Three samples on two threads: both ways of the C++ backend to share out work.
    dtypes = Dtypes(torch.uint8, F32, F32)
    check_step(make_step(norm, (3, 3, 224, 224), dtypes, layout, backend.device), norm)


@pytest.mark.parametrize("norm", NORMS)
def test_z_is_the_normalised_iterate(backend, norm):
    step = make_step(norm, (3, 3, 5, 7), device=backend.device).run()
    again = kernels.normalize(step.x, mean=step.mean, std=step.std)
    assert torch.equal(step.z, again)


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


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (3, 3, 64, 65), (8, 3, 32, 32)])
@pytest.mark.parametrize("norm", NORMS)
def test_threads_do_not_change_a_bit(backend, norm, shape, threads):
    """Covers both parallel strategies of C++: by samples (1 thread) and by tiles."""
    if backend.name == "reference" or backend.device == "cuda":
        pytest.skip("torch's own threading is not ours")
    results = []
    before = torch.get_num_threads()
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            step = make_step(norm, shape).run()
            start = kernels.ball_init(step.x0, norm=norm, eps=step.eps, seed=9)
            results.append((step.x, step.z, step.nonfinite, start))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
