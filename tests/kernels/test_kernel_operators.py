"""The operators as PyTorch sees them: schemas, fakes, compilation; and their errors."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import BF16, F32, NORMS, U8, Dtypes, make_step

from fastadv import kernels

OPS = torch.ops.fastadv


def step_arguments(norm: str, layout: str) -> tuple[tuple, dict]:
    step = make_step(norm, (2, 3, 5, 7), Dtypes(U8, BF16, BF16), layout)
    names = ("x", "x0", "grad", "step_size", "eps", "mean", "std", "norm")
    outputs = {"z": step.z, "nonfinite": step.nonfinite}
    return tuple(getattr(step, name) for name in names), outputs


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "slice"])
@pytest.mark.parametrize("norm", NORMS)
def test_opcheck(norm, layout):
    args, outputs = step_arguments(norm, layout)
    x0, eps, mean, std = args[1], args[4], args[5], args[6]
    torch.library.opcheck(OPS.pgd_step_.default, args, outputs)
    torch.library.opcheck(OPS.pgd_step_.default, args)
    torch.library.opcheck(OPS.ball_init.default, (x0, eps, norm, 3, 0))
    for dtype in (F32, BF16, torch.float64):
        torch.library.opcheck(OPS.normalize.default, (x0, mean, std, dtype))


def attack(x0, grad, mean, std):
    """Two steps with everything around them that an attack does."""
    x = kernels.ball_init(x0, norm="l2", eps=0.5, seed=1)
    z = kernels.normalize(x, mean=mean, std=std)
    for _ in range(2):
        kernels.pgd_step_(
            x, x0, grad + z, norm="l2", step_size=0.2, eps=0.5, mean=mean, std=std, z=z
        )
    return x, z * 2


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
    assert sum(n for (_, op), n in counts.items() if op == "pgd_step") == 2
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert a.stride() == b.stride()


def call(**changes):
    step = make_step("linf", (2, 3, 4, 4), Dtypes(F32, F32, F32))
    arguments = {
        name: value for name, value in vars(step).items() if name != "nonfinite"
    }
    return kernels.pgd_step_(**{**arguments, **changes})


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
    ],
)
def test_wrong_arguments_say_what_is_wrong(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


def test_wrong_arguments_of_the_other_operators():
    with pytest.raises(TypeError, match=r"x0 is torch\.int64"):
        kernels.ball_init(IMAGE.long(), norm="l2", eps=1.0, seed=0)
    with pytest.raises(ValueError, match=r"eps has shape \[5\]; expected \[2\]"):
        kernels.ball_init(IMAGE, norm="l2", eps=torch.ones(5), seed=0)
    with pytest.raises(ValueError, match="std has shape"):
        kernels.normalize(IMAGE, mean=torch.ones(3), std=torch.ones(4))


@pytest.mark.parametrize("norm", NORMS)
def test_numbers_and_vectors_are_the_same_argument(norm):
    results = []
    for wrap in (float, torch.tensor, lambda v: torch.full((2,), v)):
        step = make_step(norm, (2, 3, 4, 4))
        step.step_size, step.eps = wrap(0.25), wrap(0.5)
        results.append(step.run().x)
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
