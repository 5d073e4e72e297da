"""The rounding errors that docs/numerics.md quotes, as Markdown tables.

    python bench/numerics.py

Everything is compared with float64 on the same numbers. Nothing is timed, so other
programs may run at the same time.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tables import markdown
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from kernel_cases import (
    BF16,
    F16,
    F32,
    FLOAT_DTYPES,
    U8,
    Dtypes,
    make_apgd,
    make_step,
)

from fastadv import kernels
from fastadv.kernels.conv import conv3x3

SHAPE = (4, 3, 224, 224)
# Batch, channels and side of 3x3 layers of a ResNet-18, at 224 px and its last at 64 px.
CONVOLUTIONS = (
    (8, 64, 56), (8, 128, 28), (8, 256, 14), (8, 512, 7), (64, 512, 2),
)  # fmt: skip


def backends() -> Iterator[str]:
    """Yield every backend that runs here, which is forced until the next one."""
    for name, info in kernels.BACKENDS.items():
        if info.unavailable_reason() is None:
            with kernels.use_backend(name):
                yield name


def largest(error: Tensor) -> str:
    """Format the largest magnitude as docs/numerics.md does."""
    return f"{error.abs().max().item():.1e}"


def steps() -> str:
    """Largest error of the iterate and of the network input, images of 224 px."""
    rows = []
    for backend in backends():
        for make, norm in (
            (make_step, "linf"), (make_step, "l2"), (make_apgd, "linf"), (make_apgd, "l2"),
        ):  # fmt: skip
            step = make(norm, SHAPE, FLOAT_DTYPES[0])
            want = step.oracle()
            step.run()
            op = f"{step.op}_"
            errors = largest(step.x - want.x), largest(step.z - want.z)
            rows.append([f"{op} {norm}", backend, *errors])
    return markdown(["operator", "backend", "x", "z, float32"], sorted(rows))


def formats() -> str:
    """Largest relative error of a rounded output, in units of the format's epsilon."""
    rows = []
    for dtype, name in ((BF16, "bfloat16"), (F16, "float16")):
        step = make_step("linf", SHAPE, Dtypes(U8, F32, dtype)).run()
        mean, std = (v.double().view(1, -1, 1, 1) for v in (step.mean, step.std))
        want = (step.x.double() - mean) / std
        away = want.abs() > 0.1  # relative errors mean nothing where z crosses zero
        share = ((step.z - want) / want)[away].abs().max().item()
        unit = torch.finfo(dtype).eps
        rows.append([f"z, {name}", f"{share:.2e}", f"{share / unit:.3f}"])
    for norm in ("linf", "l2"):
        step = make_step(norm, SHAPE, Dtypes(U8, F32, None, F16))
        exact = step.oracle()
        step.run()
        delta = exact.x - step.pixels()
        away = delta.abs() > 2**-14
        short = ((delta - step.x.double()) / delta)[away]
        lengths = [d.flatten(1).norm(dim=1) for d in (step.x.double(), delta)]
        loss = (1 - lengths[0] / lengths[1]).max().item()
        unit = torch.finfo(F16).eps
        rows.append(
            [f"state, {norm}", f"{short.max():.2e}", f"{short.max() / unit:.3f}"]
        )
        rows.append([f"its length, {norm}", f"{loss:.2e}", f"{loss / unit:.3f}"])
    return markdown(["what", "relative error", "in epsilons"], rows)


def sums() -> str:
    """Relative error of an L2 step's length: x0 = 0, so that nothing else rounds much."""
    rows = []
    for backend in backends():
        for scale in (1.0, 1e-22, 1e22):
            step = make_step("l2", SHAPE, Dtypes(F32, F32, None))
            random = torch.Generator().manual_seed(0)
            gradient = torch.rand(SHAPE, generator=random) + 0.1
            step.x.zero_()
            step.x0.zero_()
            step.grad.copy_(gradient * scale)
            step.step_size.fill_(5.0)
            step.eps.fill_(100.0)
            step.run()
            error = step.x.double().flatten(1).norm(dim=1) / 5 - 1
            rows.append([backend, f"{scale:g}", largest(error)])
    return markdown(["backend", "gradient about", "relative error"], rows)


def cook_toom(points: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A^T [4, 6], G [6, 3] and B^T [6, 6] of F(4, 3) on five points and infinity."""
    a, g, b = np.zeros((4, 6)), np.zeros((6, 3)), np.zeros((6, 6))
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        a[:, i] = p ** np.arange(4)
        g[i] = p ** np.arange(3) / np.prod([p - q for q in others])
        b[i, :5] = np.poly(others)[::-1]
    a[3, 5] = g[5, 2] = 1
    b[5] = np.poly(points)[::-1]
    return a, g, b


def winograd_error(points: tuple[float, ...], channels: int = 64) -> float:
    """Return the relative L2 error of one float32 tile per image [64, channels, 6, 6]."""
    random = np.random.default_rng(0)
    x = random.standard_normal((64, channels, 6, 6))
    w = random.standard_normal((channels, channels, 3, 3))
    a, g, b = cook_toom(points)

    def convolve(dtype: type) -> np.ndarray:
        at, gm, bt = (m.astype(dtype) for m in (a, g, b))
        v = bt @ x.astype(dtype) @ bt.T
        u = gm @ w.astype(dtype) @ gm.T
        return at @ np.einsum("ncij,ocij->noij", v, u) @ at.T

    exact = convolve(np.float64)
    return float(np.linalg.norm(convolve(np.float32) - exact) / np.linalg.norm(exact))


def values(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, g: Tensor
) -> tuple[Tensor, ...]:
    """Return the output, and the gradients of images and weights for its gradient `g`."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = function(x, w)
    return (y.detach(), *torch.autograd.grad(y, (x, w), g))


def convolutions() -> str:
    """Relative L2 error of our 3x3 convolutions and their gradients, and of other points."""
    rows = []
    for n, channels, side in CONVOLUTIONS:
        random = torch.Generator().manual_seed(0)
        x = torch.randn(n, channels, side, side, generator=random)
        w = torch.randn(channels, channels, 3, 3, generator=random)
        g = torch.randn(n, channels, side, side, generator=random)
        x, w, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, w, g))
        direct = functools.partial(torch.nn.functional.conv2d, padding=1)
        exact = values(direct, x.double(), w.double(), g.double())
        row = [f"{channels} channels, {side} px, batch {n}"]
        for function in (direct, conv3x3):
            errors = (
                ((one - other).norm() / other.norm()).item()
                for one, other in zip(values(function, x, w, g), exact, strict=True)
            )
            row.append(", ".join(f"{error:.1e}" for error in errors))
        rows.append(row)
    table = markdown(
        ["output, gradients of images and weights", "direct", "ours"], rows
    )
    points = {
        "0, +-5/8, +-3/2": (0.0, 0.625, -0.625, 1.5, -1.5),
        "0, +-1, +-2": (0.0, 1.0, -1.0, 2.0, -2.0),
        "0, +-1/2, +-1": (0.0, 0.5, -0.5, 1.0, -1.0),
    }
    compared = [[name, f"{winograd_error(p):.1e}"] for name, p in points.items()]
    return f"{table}\n{markdown(['points and infinity', 'relative error'], compared)}"


def main() -> None:
    for part in (steps, formats, sums, convolutions):
        print(f"{part.__doc__}\n\n{part()}")


if __name__ == "__main__":
    main()
