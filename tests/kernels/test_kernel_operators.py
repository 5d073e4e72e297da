"""The operators as PyTorch sees them: schemas, fakes, compilation; and their errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import (
    BF16,
    F16,
    F32,
    NORMS,
    U8,
    Dtypes,
    make_apgd,
    make_step,
)

from fastadv import kernels

OPS = torch.ops.fastadv


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "slice"])
@pytest.mark.parametrize("norm", NORMS)
def test_opcheck(norm, layout):
    for make, state, operator in (
        (make_step, F32, OPS.pgd_step_.default),
        (make_step, F16, OPS.pgd_step_.default),
        (make_apgd, F32, OPS.apgd_step_.default),
    ):
        step = make(norm, (2, 3, 5, 7), Dtypes(U8, BF16, BF16, state), layout)
        arguments = vars(step)
        names = [a.name for a in operator._schema.arguments]
        args = tuple(arguments[name] for name in names[:-2])
        torch.library.opcheck(operator, args, {n: arguments[n] for n in names[-2:]})
        torch.library.opcheck(operator, args)
    torch.library.opcheck(OPS.ball_init.default, (step.x0, step.eps, norm, 3, 0))
    for dtype in (F32, BF16, torch.float64):
        arguments = (step.x0, step.mean, step.std, dtype)
        torch.library.opcheck(OPS.normalize.default, arguments)


def attack(x0, grad, mean, std):
    """Three steps with everything around them that an attack does."""
    x = kernels.ball_init(x0, norm="l2", eps=0.5, seed=1)
    x_prev = x.clone()
    z = kernels.normalize(x, mean=mean, std=std)
    kernels.apgd_step_(
        x, x_prev, x0, grad + z, norm="l2", step_size=0.2, eps=0.5, momentum=1.0,
        mean=mean, std=std, z=z,
    )  # fmt: skip
    for _ in range(2):
        kernels.pgd_step_(
            x, x0, grad + z, norm="l2", step_size=0.2, eps=0.5, mean=mean, std=std, z=z
        )
    return x, z * 2, x_prev


@pytest.mark.parametrize(
    ("compiler", "layout"),
    [
        ("aot_eager", "nchw"),
        ("aot_eager", "channels_last"),
        pytest.param("inductor", "channels_last", marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager(compiler, layout):
    step = make_step("l2", (2, 3, 5, 7), Dtypes(U8, F32, F32), layout)
    args = (step.x0, step.grad.nan_to_num(0, 0, 0), step.mean, step.std)
    want = attack(*args)
    torch._dynamo.reset()
    kernels.reset_launch_counts()
    got = torch.compile(attack, fullgraph=True, backend=compiler)(*args)
    counts = kernels.launch_counts()
    ran = {op: n for (_, op), n in counts.items()}
    assert (ran["pgd_step"], ran["apgd_step"]) == (2, 1)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert a.stride() == b.stride()


def call(make=make_step, **changes):
    step = make("linf", (2, 3, 4, 4), Dtypes(F32, F32, F32))
    absent = {"nonfinite"} if make is make_apgd else {"nonfinite", "x_prev", "momentum"}
    arguments = {k: v for k, v in vars(step).items() if k not in absent}
    return getattr(kernels, f"{step.op}_")(**{**arguments, **changes})


IMAGE = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(3, 4, 4)}, ValueError, r"x has shape \[3, 4, 4\]"),
        ({"x": IMAGE.to(U8)}, TypeError, "x is torch.uint8; accepted"),
        ({"x0": IMAGE.to(BF16)}, TypeError, "x0 is torch.bfloat16; accepted: uint8"),
        ({"grad": IMAGE.to(U8)}, TypeError, "grad is torch.uint8"),
        ({"z": IMAGE.to(torch.int32)}, TypeError, "z is torch.int32"),
        ({"grad": IMAGE[:1]}, ValueError, r"grad has shape \[1, 3, 4, 4\]; x has"),
        ({"z": IMAGE[:, :1]}, ValueError, "z has shape"),
        ({"x0": IMAGE.to("meta")}, ValueError, "x0 is on meta, x on cpu"),
        ({"eps": torch.ones(3)}, ValueError, r"eps has shape \[3\]; expected \[2\]"),
        ({"step_size": torch.ones(2).int()}, TypeError, "step_size is torch.int32"),
        ({"mean": torch.ones(1)}, ValueError, r"mean has shape \[1\]; expected \[3\]"),
        ({"std": torch.ones(3).to("meta")}, ValueError, "std is on meta"),
        ({"norm": "l1"}, ValueError, "'l1' is unknown; accepted: l2"),
        ({"eps": -0.5}, ValueError, "eps=-0.5 must be a finite number >= 0"),
        ({"eps": float("nan")}, ValueError, "eps=nan must be a finite number"),
        ({"step_size": float("inf")}, ValueError, "step_size=inf must be a finite"),
        ({"step_size": -1}, ValueError, "step_size=-1 must be a finite number >= 0"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"momentum": 1.5}, ValueError, r"momentum=1.5 must be a number in \[0, 1\]"),
        ({"momentum": float("nan")}, ValueError, "momentum=nan must be a number"),
        ({"x_prev": IMAGE[:1]}, ValueError, r"x_prev has shape \[1, 3, 4, 4\]; x has"),
        (
            {"x_prev": IMAGE.double()},
            TypeError,
            "x_prev is torch.float64, x is torch.f",
        ),
        (
            {"x": IMAGE.half()},
            TypeError,
            "x is torch.float16; accepted: float32, float",
        ),
        ({"eps": -0.5}, ValueError, "eps=-0.5 must be a finite number >= 0"),
    ],
)
def test_wrong_arguments_of_apgd_say_what_is_wrong(changes, error, message):
    with pytest.raises(error, match=message):
        call(make_apgd, **changes)


def buffers(n: int) -> torch.Tensor:
    """n images in one buffer, one after the other: [n, 2, 3, 4, 4]."""
    return torch.rand(n, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


SHARED = buffers(1)[0]
ROWS = buffers(2).flatten(0, 1)  # rows 0:2 and 1:3 overlap in one image


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (make_step, {"x": SHARED, "x0": SHARED}, "x is written in place and shares"),
        (make_step, {"x": SHARED, "grad": SHARED}, "shares memory with grad; pass a"),
        (make_step, {"x": SHARED, "z": SHARED}, "x is written .* memory with z"),
        (make_step, {"z": SHARED, "grad": SHARED}, "z is written .* memory with grad"),
        (make_step, {"x": ROWS[:2], "x0": ROWS[1:3]}, "shares memory with x0"),
        (make_step, {"x": SHARED, "x0": SHARED.mT}, "shares memory with x0"),
        (make_step, {"x": IMAGE[:, :1].expand(2, 3, 4, 4)}, "x .* strides"),
        (
            make_step,
            {"z": torch.zeros(1, 3, 4, 4).expand(2, -1, -1, -1)},
            "z .*strides",
        ),
        (make_apgd, {"x": SHARED, "x_prev": SHARED}, "x is .* memory with x_prev"),
        (make_apgd, {"x_prev": SHARED, "grad": SHARED}, "x_prev is .* with grad"),
        (make_apgd, {"x_prev": SHARED, "z": SHARED}, "x_prev is .* memory with z"),
    ],
)
def test_overlapping_operands_are_refused(make, changes, message):
    before = {name: value.clone() for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        call(make, **changes)
    for name, value in changes.items():
        assert torch.equal(value, before[name]), "written although refused"


def test_operands_that_only_interleave_are_accepted():
    """Two slices of one buffer, as a pair of images per sample is kept."""
    want = call(x=SHARED.clone(), x0=ROWS[:2].clone())
    pairs = torch.stack((SHARED, ROWS[:2]), dim=1)
    got = call(x=pairs[:, 0], x0=pairs[:, 1])
    assert torch.equal(got, want)
    assert torch.equal(pairs[:, 1], ROWS[:2])
    # Reading one image twice is nobody's loss.
    call(x0=SHARED, grad=SHARED)


def test_wrong_arguments_of_the_other_operators():
    with pytest.raises(TypeError, match=r"x0 is torch\.int64"):
        kernels.ball_init(IMAGE.long(), norm="l2", eps=1.0, seed=0)
    with pytest.raises(ValueError, match=r"eps has shape \[5\]; expected \[2\]"):
        kernels.ball_init(IMAGE, norm="l2", eps=torch.ones(5), seed=0)
    with pytest.raises(ValueError, match="eps=-1 must be a finite number >= 0"):
        kernels.ball_init(IMAGE, norm="l2", eps=-1, seed=0)
    with pytest.raises(ValueError, match="std has shape"):
        kernels.normalize(IMAGE, mean=torch.ones(3), std=torch.ones(4))


@pytest.mark.parametrize("norm", NORMS)
def test_numbers_and_vectors_are_the_same_argument(norm):
    results = []
    for wrap in (float, torch.tensor, lambda v: torch.full((2,), v)):
        step = make_step(norm, (2, 3, 4, 4))
        results.append(replace(step, step_size=wrap(0.25), eps=wrap(0.5)).run().x)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_writes_in_place_and_returns_x():
    x = torch.full((1, 3, 4, 4), 0.5)
    before = x.data_ptr()
    got = call(
        x=x, x0=x.clone(), grad=torch.ones_like(x), z=None,
        step_size=0.1, eps=0.05,
    )  # fmt: skip
    assert got is x
    assert x.data_ptr() == before
    torch.testing.assert_close(x, torch.full_like(x, 0.55), rtol=0, atol=1e-7)
