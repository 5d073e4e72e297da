"""Inputs, tolerances and comparisons shared by the kernel tests.

A case is checked by running the reference in float64 on the same numbers; nothing here
chooses a backend (the caller forces one), so the same code runs on CPU, GPU and under
Triton's interpreter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastadv import kernels
from fastadv.kernels import reference
from fastadv.kernels.step import Start, Step

U8, F32, F16, BF16 = torch.uint8, torch.float32, torch.float16, torch.bfloat16

# dtype -> (relative, absolute); docs/numerics.md derives them. Pixels are at most 1: x goes
# through 4 float32 roundings of 2^-24 each, plus 1e-7 of a float32 sum. z multiplies that
# by 1/std <= 5. Half precisions add the final rounding: half of their epsilon (2^-7 and
# 2^-10). A float16 state is rounded toward zero: a whole unit.
PIXEL_TOLERANCE = 5e-7
DELTA_TOLERANCE = (2**-10 * 1.001, PIXEL_TOLERANCE + 2**-24)
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
    state: torch.dtype = F32

    def __str__(self) -> str:
        dtypes = (self.x0, self.grad, self.z, self.state)
        return "-".join(str(d).removeprefix("torch.") for d in dtypes)


FLOAT_DTYPES = tuple(itertools.starmap(Dtypes, ((U8, F32, F32), (F32, F32, None))))
ALL_DTYPES = (
    *FLOAT_DTYPES,
    *itertools.starmap(
        Dtypes, ((U8, BF16, BF16), (F32, F16, F16), (U8, F16, F32), (F32, BF16, F16))
    ),
)
# float16 perturbations instead of float32 iterates.
DELTA_DTYPES = tuple(
    itertools.starmap(
        Dtypes,
        ((U8, BF16, BF16, F16), (F32, F32, F32, F16), (U8, F16, None, F16)),
    )
)


def as_layout(t: Tensor, layout: str) -> Tensor:
    """Return the same values in another memory layout."""
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


@dataclass(frozen=True)
class StepCase(Step):
    """A step that runs through the public operators and knows its oracle."""

    def run(self) -> StepCase:
        """Run in place with whatever backend is chosen."""
        arguments = vars(self).copy()
        if self.x_prev is None:
            del arguments["x_prev"], arguments["momentum"]
        getattr(kernels, f"{self.op}_")(**arguments)
        return self

    def image(self) -> Tensor:
        """Return the iterate in float64, whatever the state holds."""
        if self.x.dtype == F16:
            return (self.pixels() + self.x.double()).clamp(0, 1)
        return self.x.double()

    def pixels(self) -> Tensor:
        """Return the clean images in float64."""
        clean = self.x0 / 255 if self.x0.dtype == U8 else self.x0
        return clean.double()

    def oracle(self) -> StepCase:
        """Return the reference's answer in float64, on copies; its `x` is an image."""
        wide: dict[str, Any] = {
            name: value.double()
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        wide["x"] = self.image().clone()
        step = replace(self, **wide, nonfinite=torch.zeros_like(self.nonfinite))
        if step.x.numel():
            reference.step(step)
        return step


def feasible(
    clean: Tensor, norm: str, eps: Tensor, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a point of box and ball around `clean` [N, C, H, W]: image, perturbation."""
    d = 2 * torch.rand(clean.shape, generator=random) - 1
    if norm == "l2":
        d = d / d.flatten(1).norm(dim=1).clamp_min(1e-9).view(-1, 1, 1, 1)
    image = (clean + d * eps.view(-1, 1, 1, 1)).clamp(0, 1)
    return image, image - clean


def make_step(
    norm: str,
    shape: tuple[int, ...],
    dtypes: Dtypes = FLOAT_DTYPES[0],
    layout: str = "nchw",
    device: str = "cpu",
    seed: int = 0,
) -> StepCase:
    """Make a feasible iterate and a gradient with a few non-finite and zero elements."""
    random = torch.Generator().manual_seed(seed)
    n, c = shape[:2]
    a, e = NORMS[norm]
    step_size, eps = (v * torch.linspace(0.5, 1.5, n) for v in (a, e))
    clean = torch.randint(0, 256, shape, generator=random, dtype=U8)
    x0 = clean if dtypes.x0 == U8 else torch.rand(shape, generator=random)
    pixels = clean / 255 if dtypes.x0 == U8 else x0
    image, delta = feasible(pixels, norm, eps, random)
    x = image if dtypes.state == F32 else reference.toward_zero(delta)
    grad = torch.randn(shape, generator=random).to(dtypes.grad)
    if grad.numel() > 40:
        flat = grad.view(-1)
        flat[5], flat[11], flat[17] = float("nan"), float("inf"), -float("inf")
        flat[23:29] = 0
    other = "channels_last" if layout == "mixed" else layout
    z = None
    if dtypes.z is not None:
        z = as_layout(torch.full(shape, 99.0, dtype=dtypes.z, device=device), other)
    return StepCase(
        as_layout(x.to(device), layout),
        as_layout(x0.to(device), layout),
        as_layout(grad.to(device), other),
        step_size.to(device),
        eps.to(device),
        torch.tensor(MEAN[:c], device=device),
        torch.tensor(STD[:c], device=device),
        norm,
        z,
        torch.zeros(1, dtype=torch.int64, device=device),
    )


def close(got: Tensor, want: Tensor, tolerance: tuple[float, float], what: str) -> None:
    relative, absolute = tolerance
    torch.testing.assert_close(
        got.double(), want.double(), rtol=relative, atol=absolute,
        msg=lambda text: f"{what}\n{text}",
    )  # fmt: skip


def make_apgd(
    norm: str,
    shape: tuple[int, ...],
    dtypes: Dtypes = FLOAT_DTYPES[0],
    layout: str = "nchw",
    device: str = "cpu",
    seed: int = 0,
    momentum: float = 0.75,
) -> StepCase:
    """Make a step of APGD, with another point of the ball for the iterate before."""
    step = make_step(norm, shape, dtypes, layout, device, seed)
    random = torch.Generator().manual_seed(seed + 1)
    clean = step.pixels().float().cpu().contiguous()
    before, _ = feasible(clean, norm, step.eps.cpu(), random)
    x_prev = as_layout(before.to(device), layout)
    return replace(step, x_prev=x_prev, momentum=momentum)


def check_step(step: StepCase, what: str) -> None:
    """Run a step and compare everything it writes with the float64 reference."""
    want = step.oracle()
    before = step.x.clone()
    step.run()
    if step.x.dtype == F16:
        delta = step.x.double()
        close(delta, want.x - step.pixels(), DELTA_TOLERANCE, f"{what}: delta")
        if step.norm == "linf":
            assert (delta.abs() <= step.eps.double().view(-1, 1, 1, 1)).all(), what
    else:
        close(step.x, want.x, (0, PIXEL_TOLERANCE), f"{what}: x")
    assert step.nonfinite.item() == want.nonfinite.item(), what
    if step.z is not None:
        # Of a float16 state: z belongs to what was stored, not to what was rounded.
        image = step.image() if step.x.dtype == F16 else want.x
        mean, std = (v.double().view(1, -1, 1, 1) for v in (step.mean, step.std))
        close(step.z, (image - mean) / std, TOLERANCES[step.z.dtype], f"{what}: z")
    if step.x_prev is not None:
        assert torch.equal(step.x_prev, before), what


def step_cases(
    norm: str,
    layout: str,
    dtypes: tuple[Dtypes, ...],
    device: str,
    make: Callable[..., StepCase] = make_step,
) -> Iterator[tuple[StepCase, str]]:
    """Yield every combination of shape and dtypes, with a name for the message."""
    for shape, combination in itertools.product(SHAPES, dtypes):
        name = f"{make.__name__} {norm} {layout} {list(shape)} {combination}"
        yield make(norm, shape, combination, layout, device), name


def check_ball_init(
    norm: str, layout: str, device: str, seeds: tuple[int, ...] = SEEDS
) -> None:
    """Check values, memory order and batch offset of the random start."""
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
            start = Start(step.x0.contiguous(), step.eps.double(), norm, seed, offset)
            want = reference.ball_init(start)
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
    """Check the bits: a linf start around 0.5 of radius 0.5 *is* the uniform number."""
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
    """Check that with eps=0 each of the 256 byte values u comes back as u / 255 exactly."""
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


def check_rounds(
    shape: tuple[int, ...],
    dtypes: Dtypes,
    layout: str,
    device: str,
    *,
    repeats: int = 30,
) -> None:
    """Check an L2 step on more samples than clusters run at once, and repeat it to the bit.

    Every other time another kernel runs beside it on the device.
    """
    what = f"{list(shape)} {dtypes} {layout}"
    step = make_step("l2", shape, dtypes, layout, device)
    start = step.x.clone()
    check_step(step, what)
    assert step.z is not None
    want = step.x.clone(), step.z.clone()
    side = torch.cuda.Stream() if device == "cuda" else None
    noise = torch.randn(2048, 2048, device=device) if side else None
    for turn in range(repeats):
        step.x.copy_(start)
        step.z.fill_(float("nan"))
        if side is not None and noise is not None and turn % 2:
            with torch.cuda.stream(side):
                noise @ noise
        step.run()
        for got, first, name in zip((step.x, step.z), want, "xz", strict=True):
            assert torch.equal(got, first), f"{what}, turn {turn}: {name} differs"


# More samples than clusters that run at once on any GPU: each makes several rounds. Sizes
# of the cluster are those of `HALF_TRAINING` on compute capability 9.0.
ROUNDS = (
    ((300, 3, 32, 32), 1),
    ((600, 3, 16, 16), 1),
    ((70, 3, 224, 224), 8),
    ((5, 3, 384, 384), 16),
)
HALF_TRAINING = Dtypes(U8, BF16, BF16)  # what training in bfloat16 has
ROUNDS_DTYPES = (HALF_TRAINING, Dtypes(F32, F32, F32), Dtypes(U8, BF16, BF16, F16))
