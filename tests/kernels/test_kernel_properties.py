"""Properties that hold for any input, on every CPU backend and kind of step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from kernel_backends import CPU, params
from kernel_cases import (
    F16,
    F32,
    U8,
    Dtypes,
    StepCase,
    make_apgd,
    make_step,
)

pytestmark = pytest.mark.parametrize(
    "backend", params(CPU), indirect=True, scope="module"
)

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
PGD, DELTA, APGD = "pgd", "delta", "apgd"


@st.composite
def steps(
    draw: st.DrawFn,
    kinds: tuple[str, ...] = (PGD, DELTA, APGD),
    x0: torch.dtype | None = None,
) -> tuple[StepCase, int]:
    """A step from a feasible point with its own length and radius per sample.

    `kinds`: `pgd` on iterates, on float16 perturbations (`delta`), or `apgd`.
    """
    norm, size, layout = draw(NORMS), draw(SIZES), draw(LAYOUTS)
    kind = draw(st.sampled_from(kinds))
    clean = x0 or draw(st.sampled_from([U8, F32]))
    seed = draw(st.integers(0, 2**20))
    make = make_apgd if kind == APGD else make_step
    state = F16 if kind == DELTA else F32
    step = make(norm, size, Dtypes(clean, F32, F32, state), layout, seed=seed)
    radius = 0.3 if norm == "linf" else 4.0
    random = torch.Generator().manual_seed(seed)
    step.eps.copy_(torch.rand(size[0], generator=random) * radius)
    step.step_size.copy_(torch.rand(size[0], generator=random) * radius)
    spread = step.eps / (1 if norm == "linf" else step.x[0].numel() ** 0.5)

    def feasible() -> torch.Tensor:
        noise = 2 * torch.rand(size, generator=random) - 1
        pixels = step.pixels().float()
        return (pixels + noise * spread.view(-1, 1, 1, 1)).clamp(0, 1)

    x = feasible()
    step.x.copy_(x - step.pixels() if kind == DELTA else x)
    if step.x_prev is not None:
        step.x_prev.copy_(feasible())
        step = replace(step, momentum=draw(st.sampled_from([1.0, 0.75, 0.0])))
    return step, seed


def distance(step: StepCase) -> torch.Tensor:
    delta = (step.image() - step.pixels()).flatten(1)
    return delta.abs().amax(1) if step.norm == "linf" else delta.norm(dim=1)


def slack(step: StepCase) -> torch.Tensor:
    if step.norm == "linf":
        return torch.full_like(step.eps, ROUNDING)
    return ROUNDING * step.x[0].numel() ** 0.5 + 1e-6 * step.eps


def copy(step: StepCase, **changes: object) -> StepCase:
    """An independent step with the same memory layouts."""
    fields = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in vars(step).items()
    }
    return replace(step, **{**fields, **changes})


def run(backend, step: StepCase) -> StepCase:
    """Run the step, unless this backend keeps no float16 states."""
    assume(backend.half or step.x.dtype == F32)
    return step.run()


@COMMON
@given(case=steps())
def test_stays_in_box_and_ball(backend, case):
    step, _ = case
    run(backend, step)
    assert step.image().min() >= 0
    assert step.image().max() <= 1
    assert (distance(step) <= step.eps + slack(step)).all()
    if step.x.dtype == F16 and step.norm == "linf":
        limit = step.eps.double().view(-1, 1, 1, 1)
        assert (step.x.double().abs() <= limit).all()


@COMMON
@given(case=steps(kinds=(PGD, APGD)))
def test_agrees_with_the_definition(backend, case):
    step, _ = case
    want = step.oracle()
    step.run()
    # d scales with the radius (at most 4), so its rounding does too.
    torch.testing.assert_close(step.x.double(), want.x, rtol=0, atol=4 * ROUNDING)
    assert step.nonfinite.item() == want.nonfinite.item()


@COMMON
@given(case=steps(kinds=(PGD,)))
def test_projection_is_idempotent(backend, case):
    step, _ = case
    step.run()
    once = step.x.clone()
    again = copy(step, step_size=torch.zeros_like(step.step_size))
    again.run()
    torch.testing.assert_close(again.x, once, rtol=0, atol=ROUNDING)


@COMMON
@given(case=steps(kinds=(PGD, APGD), x0=F32))
def test_opposite_gradients_mirror(backend, case):
    step, _ = case

    def near_the_middle(x: torch.Tensor) -> torch.Tensor:
        return (x - step.pixels().float()).clamp(-0.5, 0.5) * 0.1 + 0.5

    names = ("x", "x_prev") if step.x_prev is not None else ("x",)
    iterates = {name: near_the_middle(getattr(step, name)) for name in names}
    step = copy(step, x0=torch.full_like(step.x0, 0.5), **iterates)
    flipped = {name: 1 - x for name, x in iterates.items()}
    mirror = copy(step, **flipped, grad=-step.grad)
    step.run()
    mirror.run()
    torch.testing.assert_close(mirror.x, 1 - step.x, rtol=0, atol=ROUNDING)


@COMMON
@given(case=steps(), seed=st.integers(0, 99))
def test_samples_are_independent(backend, case, seed):
    """Permuting the batch permutes the result, bit by bit."""
    step, _ = case
    order = torch.randperm(len(step.x), generator=torch.Generator().manual_seed(seed))
    per_sample = ["x", "x0", "grad", "z", "step_size", "eps"]
    if step.x_prev is not None:
        per_sample.append("x_prev")
    moved = copy(step, **{name: getattr(step, name)[order] for name in per_sample})
    run(backend, step)
    run(backend, moved)
    assert torch.equal(moved.x, step.x[order])
    assert torch.equal(moved.z, step.z[order])


@COMMON
@given(case=steps())
def test_radius_zero_returns_the_clean_image(backend, case):
    step, _ = case
    step.eps.zero_()
    run(backend, step)
    clean = step.x0 / 255 if step.x0.dtype == U8 else step.x0
    want = torch.zeros_like(step.x) if step.x.dtype == F16 else clean
    assert torch.equal(step.x, want)


@COMMON
@given(case=steps())
def test_zero_gradient_is_a_fixed_point(backend, case):
    step, _ = case
    step.grad.zero_()
    before = step.image().clone()
    if step.x_prev is not None:
        step.x_prev.copy_(step.x)
    run(backend, step)
    # The projection may shrink a float16 perturbation by one unit of at most 2^-10.
    unit = 2**-10 * (before - step.pixels()).abs() if step.x.dtype == F16 else 0
    assert ((step.image() - before).abs() <= ROUNDING + unit).all()
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
    run(backend, step)
    run(backend, clean)
    assert torch.equal(step.x, clean.x)
    assert step.nonfinite.item() == 7 + int(hit.sum())


@COMMON
@given(case=steps(kinds=(APGD,)))
def test_apgd_without_momentum_is_a_pgd_step(backend, case):
    """Whatever the iterate before was; and it is replaced by the present one."""
    step, _ = case
    pgd = copy(step, x_prev=None).run()
    before = step.x.clone()
    replace(step, momentum=1.0).run()
    torch.testing.assert_close(step.x, pgd.x, rtol=0, atol=4 * ROUNDING)
    assert torch.equal(step.x_prev, before)


def autoattack_step(x_adv, x_adv_old, x, grad, step_size, eps, a, norm):
    """The update of the `autoattack` package, line by line (autopgd_base.py)."""

    def lp_norm(t):
        return (t**2).view(t.shape[0], -1).sum(-1).sqrt().view(-1, 1, 1, 1)

    def normalize(t):
        return t / (lp_norm(t) + 1e-12)

    grad2 = x_adv - x_adv_old
    if norm == "linf":
        x_adv_1 = x_adv + step_size * torch.sign(grad)
        x_adv_1 = torch.clamp(torch.min(torch.max(x_adv_1, x - eps), x + eps), 0.0, 1.0)
        return torch.clamp(
            torch.min(
                torch.max(x_adv + (x_adv_1 - x_adv) * a + grad2 * (1 - a), x - eps),
                x + eps,
            ),
            0.0,
            1.0,
        )
    x_adv_1 = x_adv + step_size * normalize(grad)
    x_adv_1 = torch.clamp(
        x
        + normalize(x_adv_1 - x) * torch.min(eps * torch.ones_like(x), lp_norm(x_adv_1 - x)),
        0.0,
        1.0,
    )  # fmt: skip
    x_adv_1 = x_adv + (x_adv_1 - x_adv) * a + grad2 * (1 - a)
    return torch.clamp(
        x
        + normalize(x_adv_1 - x) * torch.min(eps * torch.ones_like(x), lp_norm(x_adv_1 - x)),
        0.0,
        1.0,
    )  # fmt: skip


@COMMON
@given(case=steps(kinds=(APGD,)))
def test_agrees_with_the_update_of_autoattack(backend, case):
    step, _ = case
    step.grad.nan_to_num_(0.0, 0.0, 0.0)  # its update knows no non-finite elements
    size, eps = (
        v.double().view(-1, 1, 1, 1).contiguous() for v in (step.step_size, step.eps)
    )
    std = step.std.double().view(1, -1, 1, 1)
    images = (step.x, step.x_prev, step.pixels(), step.grad / std)
    want = autoattack_step(
        *(image.double().contiguous() for image in images),
        size,
        eps,
        step.momentum,
        step.norm,
    )
    step.run()
    torch.testing.assert_close(step.x.double(), want, rtol=0, atol=4 * ROUNDING)
