"""Properties that hold for any input, on every CPU backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import F32, U8, Dtypes, Step, make_step

# A pixel is at most 1 and takes 4 roundings of 2^-24, as in kernel_cases. Lengths in L2
# add such errors over a sample: at most 3e-7 * sqrt(elements), and 1e-6 of the length
# for the float32 sums.
ROUNDING = 3e-7

COMMON = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

NORMS = st.sampled_from(["linf", "l2"])
SIZES = st.tuples(
    st.integers(1, 5), st.sampled_from([1, 3, 4]), st.integers(1, 9), st.integers(1, 9)
)
LAYOUTS = st.sampled_from(["nchw", "channels_last", "mixed", "slice"])


@st.composite
def steps(draw: st.DrawFn, x0: torch.dtype | None = None) -> tuple[Step, int]:
    """A step from a feasible point with its own length and radius per sample."""
    norm, size, layout = draw(NORMS), draw(SIZES), draw(LAYOUTS)
    clean = x0 or draw(st.sampled_from([U8, F32]))
    seed = draw(st.integers(0, 2**20))
    step = make_step(norm, size, Dtypes(clean, F32, F32), layout, seed=seed)
    radius = 0.3 if norm == "linf" else 4.0
    random = torch.Generator().manual_seed(seed)
    step.eps.copy_(torch.rand(size[0], generator=random) * radius)
    step.step_size.copy_(torch.rand(size[0], generator=random) * radius)
    pixels = step.x0 / 255 if clean == U8 else step.x0
    spread = step.eps / (1 if norm == "linf" else pixels[0].numel() ** 0.5)
    noise = 2 * torch.rand(size, generator=random) - 1
    step.x.copy_((pixels + noise * spread.view(-1, 1, 1, 1)).clamp(0, 1))
    return step, seed


def pixels(step: Step) -> torch.Tensor:
    return (step.x0 / 255 if step.x0.dtype == U8 else step.x0).double()


def distance(step: Step) -> torch.Tensor:
    delta = (step.x.double() - pixels(step)).flatten(1)
    return delta.abs().amax(1) if step.norm == "linf" else delta.norm(dim=1)


def slack(step: Step) -> torch.Tensor:
    if step.norm == "linf":
        return torch.full_like(step.eps, ROUNDING)
    return ROUNDING * step.x[0].numel() ** 0.5 + 1e-6 * step.eps


def copy(step: Step, **changes: object) -> Step:
    """An independent step with the same memory layouts."""
    fields = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in vars(step).items()
    }
    return Step(**{**fields, **changes})


@pytest.fixture(autouse=True)
def on_the_cpu(backend):
    if backend.device != "cpu":
        pytest.skip("test_kernel_values.py covers the GPU")


@COMMON
@given(case=steps())
def test_stays_in_box_and_ball(backend, case):
    step, _ = case
    step.run()
    assert step.x.min() >= 0
    assert step.x.max() <= 1
    assert (distance(step) <= step.eps + slack(step)).all()


@COMMON
@given(case=steps())
def test_agrees_with_the_definition(backend, case):
    step, _ = case
    want = step.oracle()
    step.run()
    # d scales with the radius (at most 4), so its rounding does too.
    torch.testing.assert_close(step.x.double(), want.x, rtol=0, atol=4 * ROUNDING)
    assert step.nonfinite.item() == want.nonfinite.item()


@COMMON
@given(case=steps())
def test_projection_is_idempotent(backend, case):
    step, _ = case
    step.run()
    once = step.x.clone()
    again = copy(step, step_size=torch.zeros_like(step.step_size))
    again.run()
    torch.testing.assert_close(again.x, once, rtol=0, atol=ROUNDING)


@COMMON
@given(case=steps(x0=F32))
def test_opposite_gradients_mirror(backend, case):
    step, _ = case
    step.x0.fill_(0.5)
    step.x.sub_(pixels(step).float()).clamp_(-0.5, 0.5)
    step.x.mul_(0.1).add_(0.5)
    mirror = copy(step, x=1 - step.x, grad=-step.grad)
    step.run()
    mirror.run()
    torch.testing.assert_close(mirror.x, 1 - step.x, rtol=0, atol=ROUNDING)


@COMMON
@given(case=steps(), seed=st.integers(0, 99))
def test_samples_are_independent(backend, case, seed):
    """Permuting the batch permutes the result, bit by bit."""
    step, _ = case
    n = step.x.shape[0]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    per_sample = ("x", "x0", "grad", "z", "step_size", "eps")
    moved = copy(step, **{name: getattr(step, name)[order] for name in per_sample})
    step.run()
    moved.run()
    assert torch.equal(moved.x, step.x[order])
    assert torch.equal(moved.z, step.z[order])


@COMMON
@given(case=steps())
def test_radius_zero_returns_the_clean_image(backend, case):
    step, _ = case
    step.eps.zero_()
    start = step.x0 / 255 if step.x0.dtype == U8 else step.x0.clone()
    step.x.copy_(start)
    step.run()
    assert torch.equal(step.x, start)


@COMMON
@given(case=steps())
def test_zero_gradient_is_a_fixed_point(backend, case):
    step, _ = case
    step.grad.zero_()
    before = step.x.clone()
    step.run()
    torch.testing.assert_close(step.x, before, rtol=0, atol=ROUNDING)
    assert step.nonfinite.item() == 0


@COMMON
@given(
    case=steps(),
    bad=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    share=st.sampled_from([0.2, 1.0]),
)
def test_non_finite_elements_move_nothing_and_are_counted(backend, case, bad, share):
    step, seed = case
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(step.grad.shape, generator=generator) < share
    step.grad.nan_to_num_(1.0, 1.0, 1.0)
    clean = copy(step, grad=step.grad.masked_fill(hit, 0.0))
    step.grad.masked_fill_(hit, bad)
    step.nonfinite.fill_(7)
    step.run()
    clean.run()
    assert torch.equal(step.x, clean.x)
    assert step.nonfinite.item() == 7 + int(hit.sum())
