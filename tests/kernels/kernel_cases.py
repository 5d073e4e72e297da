"""Inputs, tolerances and comparisons shared by the kernel tests.

A case is checked by running the reference in float64 on the same numbers; nothing here
chooses a backend (the caller forces one), so the same code runs on CPU, GPU and under
Triton's interpreter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv import kernels
from fastadv.kernels import reference

U8, F32, F16, BF16 = torch.uint8, torch.float32, torch.float16, torch.bfloat16

# dtype -> (relative, absolute). Pixels are at most 1: x goes through 4 float32
# roundings of 2^-24 each, plus 1e-7 of a float32 sum. z multiplies that by 1/std <= 5.
# Half precisions add the final rounding: half of their epsilon (2^-7 and 2^-10).
PIXEL_TOLERANCE = 5e-7
TOLERANCES = {
    F32: (5e-7, 3e-6),
    BF16: (2**-8 * 1.001, 3e-6),
    F16: (2**-11 * 1.001, 3e-6),
    torch.float64: (1e-13, 1e-13),
}

MEAN, STD = (0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.25)
# 3 x 41 x 41 is more than one Triton block, neither a multiple of a tile nor of 16.
SHAPES = (
    (0, 3, 8, 8),
    (1, 3, 8, 8),
    (3, 3, 5, 7),
    (2, 1, 9, 9),
    (2, 4, 6, 5),
    (2, 3, 41, 41),
    (2, 1, 1, 1),
)
LAYOUTS = ("nchw", "channels_last", "slice", "permuted", "mixed")
SEEDS = (0, 1, 2**40 + 3, 2**64 - 1)
NORMS = {"linf": (0.02, 8 / 255), "l2": (0.5, 1.0)}  # norm -> (step size, eps)


@dataclass(frozen=True)
class Dtypes:
    x0: torch.dtype
    grad: torch.dtype
    z: torch.dtype | None

    def __str__(self) -> str:
        names = (str(d).removeprefix("torch.") for d in (self.x0, self.grad, self.z))
        return "-".join(names)


FLOAT_DTYPES = tuple(itertools.starmap(Dtypes, ((U8, F32, F32), (F32, F32, None))))
ALL_DTYPES = (
    *FLOAT_DTYPES,
    *itertools.starmap(
        Dtypes, ((U8, BF16, BF16), (F32, F16, F16), (U8, F16, F32), (F32, BF16, F16))
    ),
)


def as_layout(t: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "slice":  # every second column of a wider tensor
        n, c, h, w = t.shape
        wide = t.new_zeros(n, c, h, 2 * w)
        wide[..., ::2] = t
        return wide[..., ::2]
    if layout == "permuted":  # height and width swapped in memory
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    return t.contiguous()


@dataclass
class Step:
    """Arguments of one step, ready for any backend."""

    x: Tensor  # [N, C, H, W] float
    x0: Tensor
    grad: Tensor
    norm: str
    step_size: Tensor  # [N]
    eps: Tensor  # [N]
    mean: Tensor  # [C]
    std: Tensor  # [C]
    z: Tensor | None
    nonfinite: Tensor

    def run(self) -> Step:
        """Run in place with whatever backend is chosen."""
        kernels.pgd_step_(
            self.x,
            self.x0,
            self.grad,
            norm=self.norm,  # type: ignore[arg-type]
            step_size=self.step_size,
            eps=self.eps,
            mean=self.mean,
            std=self.std,
            z=self.z,
            nonfinite=self.nonfinite,
        )
        return self

    def oracle(self) -> Step:
        """The reference's answer in float64, on copies."""
        wide = Step(
            self.x.double(),
            self.x0 if self.x0.dtype == U8 else self.x0.double(),
            self.grad.double(),
            self.norm,
            self.step_size.double(),
            self.eps.double(),
            self.mean.double(),
            self.std.double(),
            None if self.z is None else self.z.double(),
            torch.zeros_like(self.nonfinite),
        )
        if wide.x.numel():
            reference.pgd_step(**vars(wide))
        return wide


def make_step(
    norm: str,
    shape: tuple[int, ...],
    dtypes: Dtypes = FLOAT_DTYPES[0],
    layout: str = "nchw",
    device: str = "cpu",
    seed: int = 0,
) -> Step:
    """A feasible iterate, a gradient with a few non-finite and zero elements."""
    random = torch.Generator().manual_seed(seed)
    n, c = shape[:2]
    a, e = NORMS[norm]
    step_size, eps = (v * torch.linspace(0.5, 1.5, n) for v in (a, e))
    clean = torch.randint(0, 256, shape, generator=random, dtype=U8)
    x0 = clean if dtypes.x0 == U8 else torch.rand(shape, generator=random)
    pixels = clean / 255 if dtypes.x0 == U8 else x0
    d = 2 * torch.rand(shape, generator=random) - 1
    if norm == "l2":
        d = d / d.flatten(1).norm(dim=1).clamp_min(1e-9).view(-1, 1, 1, 1)
    x = (pixels + d * eps.view(-1, 1, 1, 1)).clamp(0, 1)
    grad = torch.randn(shape, generator=random).to(dtypes.grad)
    if grad.numel() > 40:
        flat = grad.view(-1)
        flat[5], flat[11], flat[17] = float("nan"), float("inf"), -float("inf")
        flat[23:29] = 0
    other = "channels_last" if layout == "mixed" else layout
    z = None
    if dtypes.z is not None:
        z = as_layout(torch.full(shape, 99.0, dtype=dtypes.z, device=device), other)
    return Step(
        as_layout(x.to(device), layout),
        as_layout(x0.to(device), layout),
        as_layout(grad.to(device), other),
        norm,
        step_size.to(device),
        eps.to(device),
        torch.tensor(MEAN[:c], device=device),
        torch.tensor(STD[:c], device=device),
        z,
        torch.zeros(1, dtype=torch.int64, device=device),
    )


def close(got: Tensor, want: Tensor, tolerance: tuple[float, float], what: str) -> None:
    relative, absolute = tolerance
    torch.testing.assert_close(
        got.double(), want.double(), rtol=relative, atol=absolute,
        msg=lambda text: f"{what}\n{text}",
    )  # fmt: skip


def check_step(step: Step, what: str) -> None:
    """Run it and compare everything it writes with the float64 reference."""
    want = step.oracle()
    step.run()
    close(step.x, want.x, (0, PIXEL_TOLERANCE), f"{what}: x")
    assert step.nonfinite.item() == want.nonfinite.item(), what
    if step.z is not None and want.z is not None:
        close(step.z, want.z, TOLERANCES[step.z.dtype], f"{what}: z")


def step_cases(
    norm: str, layout: str, dtypes: tuple[Dtypes, ...], device: str
) -> Iterator[tuple[Step, str]]:
    """Every shape and dtype combination, with a name for the message."""
    for shape, combination in itertools.product(SHAPES, dtypes):
        name = f"{norm} {layout} {list(shape)} {combination}"
        yield make_step(norm, shape, combination, layout, device), name


def check_ball_init(
    norm: str, layout: str, device: str, seeds: tuple[int, ...] = SEEDS
) -> None:
    """Values, memory order and batch offset of the random start."""
    for shape, dtype in itertools.product(SHAPES, (U8, F32)):
        step = make_step(norm, shape, Dtypes(dtype, F32, None), layout, device)
        for seed in seeds:
            offset = 2**33 + 5 if seed else 0
            got = kernels.ball_init(
                step.x0, norm=norm, eps=step.eps, seed=seed, offset=offset
            )
            if not got.numel():
                assert got.shape == step.x0.shape
                continue
            want = reference.ball_init(
                step.x0.contiguous(), step.eps.double(), norm, seed, offset
            )
            what = f"{norm} {layout} {list(shape)} {dtype} seed {seed}"
            close(got, want, (0, PIXEL_TOLERANCE), what)


def check_normalize(layout: str, device: str, dtypes: tuple[torch.dtype, ...]) -> None:
    for shape, dtype, out in itertools.product(SHAPES, (U8, F32), dtypes):
        step = make_step("linf", shape, Dtypes(dtype, F32, None), layout, device)
        got = kernels.normalize(step.x0, mean=step.mean, std=step.std, dtype=out)
        assert got.dtype == out
        wide = step.x0 if dtype == U8 else step.x0.double()
        want = reference.normalize(
            wide, step.mean.double(), step.std.double(), torch.float64
        )
        close(got, want, TOLERANCES[out], f"{layout} {list(shape)} {dtype} to {out}")


def check_philox_words(device: str) -> None:
    """A linf start around 0.5 with radius 0.5 *is* the uniform number, to the bit."""
    from fastadv.kernels import philox

    for shape, layout in itertools.product(
        ((3, 3, 5, 7), (2, 6, 4, 4)), ("nchw", "channels_last")
    ):
        x0 = as_layout(torch.full(shape, 0.5, device=device), layout)
        for seed, offset in ((0, 0), (2**63 + 12345, 2**32 - 1)):
            got = kernels.ball_init(x0, norm="linf", eps=0.5, seed=seed, offset=offset)
            words = philox.pixel_words(*shape, seed, offset, x0.device)
            assert torch.equal(got.double(), philox.to_uniform(words, shape[1]))


def check_exact_pixels(norm: str, device: str) -> None:
    """With eps=0 every one of the 256 byte values comes back as u / 255 exactly."""
    x0 = torch.arange(256, dtype=U8, device=device).view(1, 1, 16, 16)
    want = x0.float() / 255
    got = kernels.ball_init(x0, norm=norm, eps=0.0, seed=3)
    assert torch.equal(got, want)
    x = want.clone()
    ones = torch.ones(1, device=device)
    grad = torch.linspace(-1, 1, 256, device=device).view_as(x)
    kernels.pgd_step_(
        x, x0, grad, norm=norm, step_size=0.1, eps=0.0, mean=ones, std=ones
    )
    assert torch.equal(x, want)
