"""Operator schemas, memory order, dispatch. No arithmetic; checks are in arguments.py.

Schemas are defined once, here; a backend only fills in values. Backends see tensors
that are checked, on one device, and dense in one memory order (NCHW or channels_last),
so that an implementation walks flat memory; anything else is copied on the way in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.kernels.arguments import (
    CLEAN,
    ITERATE,
    STATE,
    WRITTEN,
    check_image,
    check_memory,
    check_step,
    check_vector,
    memory_order,
    per_sample,
)
from fastadv.kernels.registry import Operands, select
from fastadv.threat import Norm, parse_norm

_library = torch.library.Library("fastadv", "DEF")
_library.define(
    "pgd_step_(Tensor(a!) x, Tensor x0, Tensor grad, Tensor step_size, Tensor eps, "
    "Tensor mean, Tensor std, str norm, Tensor(b!)? z=None, Tensor(c!)? nonfinite=None"
    ") -> ()"
)
_library.define(
    "apgd_step_(Tensor(a!) x, Tensor(b!) x_prev, Tensor x0, Tensor grad, "
    "Tensor step_size, Tensor eps, float momentum, Tensor mean, Tensor std, str norm, "
    "Tensor(c!)? z=None, Tensor(d!)? nonfinite=None) -> ()"
)
_library.define(
    "ball_init(Tensor x0, Tensor eps, str norm, int seed, int offset) -> Tensor"
)
_library.define(
    "normalize(Tensor x, Tensor mean, Tensor std, ScalarType dtype) -> Tensor"
)


def _run_step(op: str, images: dict[str, Tensor | None], **options: object) -> None:
    """Check the memory of a step's images, make them dense, run, copy back."""
    present = {name: t for name, t in images.items() if t is not None}
    _, backend = select(Operands(op, present))
    x = present["x"]
    if x.numel() == 0:
        return
    check_memory(present)
    order = memory_order(x) or torch.contiguous_format
    dense = {name: t.contiguous(memory_format=order) for name, t in present.items()}
    getattr(backend, op)(**{**images, **dense}, **options)
    for name in filter(present.__contains__, WRITTEN):
        if dense[name] is not present[name]:
            present[name].copy_(dense[name])


def _pgd_step(
    x: Tensor,
    x0: Tensor,
    grad: Tensor,
    step_size: Tensor,
    eps: Tensor,
    mean: Tensor,
    std: Tensor,
    norm: str,
    z: Tensor | None = None,
    nonfinite: Tensor | None = None,
) -> None:
    _run_step(
        "pgd_step",
        {"x": x, "x0": x0, "grad": grad, "z": z},
        step_size=step_size,
        eps=eps,
        mean=mean,
        std=std,
        norm=norm,
        nonfinite=nonfinite,
    )


def _apgd_step(
    x: Tensor,
    x_prev: Tensor,
    x0: Tensor,
    grad: Tensor,
    step_size: Tensor,
    eps: Tensor,
    momentum: float,
    mean: Tensor,
    std: Tensor,
    norm: str,
    z: Tensor | None = None,
    nonfinite: Tensor | None = None,
) -> None:
    _run_step(
        "apgd_step",
        {"x": x, "x_prev": x_prev, "x0": x0, "grad": grad, "z": z},
        step_size=step_size,
        eps=eps,
        momentum=momentum,
        mean=mean,
        std=std,
        norm=norm,
        nonfinite=nonfinite,
    )


def _ball_init(x0: Tensor, eps: Tensor, norm: str, seed: int, offset: int) -> Tensor:
    order = memory_order(x0) or torch.contiguous_format
    _, backend = select(Operands("ball_init", {"x0": x0}))
    if x0.numel() == 0:
        return torch.empty_like(x0, dtype=torch.float32, memory_format=order)
    start: Tensor = backend.ball_init(
        x0.contiguous(memory_format=order), eps, norm, seed, offset
    )
    return start.contiguous(memory_format=order)


def _normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    order = memory_order(x) or torch.contiguous_format
    _, backend = select(Operands("normalize", {"x": x}, dtype))
    if x.numel() == 0:
        return torch.empty_like(x, dtype=dtype, memory_format=order)
    z: Tensor = backend.normalize(x.contiguous(memory_format=order), mean, std, dtype)
    return z.contiguous(memory_format=order)


for _name, _function in (
    ("pgd_step_", _pgd_step),
    ("apgd_step_", _apgd_step),
    ("ball_init", _ball_init),
    ("normalize", _normalize),
):
    _library.impl(_name, _function, "CompositeExplicitAutograd")


@torch.library.register_fake("fastadv::pgd_step_", lib=_library)
@torch.library.register_fake("fastadv::apgd_step_", lib=_library)
def _step_fake(*args: object, **kwargs: object) -> None:
    return None


@torch.library.register_fake("fastadv::ball_init", lib=_library)
def _ball_init_fake(
    x0: Tensor, eps: Tensor, norm: str, seed: int, offset: int
) -> Tensor:
    order = memory_order(x0) or torch.contiguous_format
    return torch.empty_like(x0, dtype=torch.float32, memory_format=order)


@torch.library.register_fake("fastadv::normalize", lib=_library)
def _normalize_fake(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    order = memory_order(x) or torch.contiguous_format
    return torch.empty_like(x, dtype=dtype, memory_format=order)


def pgd_step_(
    x: Tensor,
    x0: Tensor,
    grad: Tensor,
    *,
    norm: Norm,
    step_size: float | Tensor,
    eps: float | Tensor,
    mean: Tensor,
    std: Tensor,
    z: Tensor | None = None,
    nonfinite: Tensor | None = None,
) -> Tensor:
    """One projected ascent step, in place, with the next network input on the side.

        gx    = grad / std                       chain rule through the normalisation
        linf: d = clip(x + a * sign(gx) - x0, -e, e)
        l2:   d = x + a * gx / |gx| - x0;  d = d * min(1, e / |d|)
        x     = clip(x0 + d, 0, 1)
        z     = (x - mean) / std

    An element whose `gx` is not finite moves nothing; a zero gradient moves nothing.

    A float16 state holds the perturbation instead, since float16 is coarse near 1: `x`
    is `delta` in [-1, 1], the image is `x0 + delta`, and

        delta = clip(d, -x0, 1 - x0)             rounded toward zero: stays in the ball
        z     = (clip(x0 + delta, 0, 1) - mean) / std

    Args:
        x: the state, [N, C, H, W]; overwritten. float32 (float64: reference only): the
            iterate in [0, 1]. float16: the perturbation. Any memory layout;
            channels_last and NCHW need no copies.
        x0: the clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
        grad: gradient of the objective with respect to the *normalised* input
            `(x - mean) / std`; float32, bfloat16 or float16 [N, C, H, W].
        norm: `"linf"` or `"l2"`; the L2 norm is over a whole sample.
        step_size: `a`, pixel units, a number or one per sample [N], finite and >= 0.
        eps: radius `e`, pixel units, a number or one per sample [N], finite and >= 0.
        mean: per channel [C], pixel units.
        std: per channel [C], pixel units, > 0.
        z: where to write the next normalised input (float32, bfloat16 or float16
            [N, C, H, W]); None writes nothing.
        nonfinite: int64 [1] counter the number of ignored elements is added to.

    Returns:
        `x`.

    Raises:
        ValueError: shapes or devices disagree, `step_size` or `eps` is a negative or
            non-finite number (tensors are not read), or `x` or `z` shares memory with
            another operand or with itself.
        TypeError: a dtype outside those named above.
        BackendError: no backend accepts the call; the message lists why.

    Source:
        Madry et al. 2018 (PGD); Salman et al. 2020, `robustness` steps for L2.
    """
    check_step({"x": x, "x0": x0, "grad": grad}, STATE, mean, std, z, nonfinite)
    torch.ops.fastadv.pgd_step_(
        x,
        x0,
        grad,
        per_sample("step_size", step_size, x),
        per_sample("eps", eps, x),
        mean,
        std,
        parse_norm(norm),
        z,
        nonfinite,
    )
    return x


def apgd_step_(
    x: Tensor,
    x_prev: Tensor,
    x0: Tensor,
    grad: Tensor,
    *,
    norm: Norm,
    step_size: float | Tensor,
    eps: float | Tensor,
    momentum: float,
    mean: Tensor,
    std: Tensor,
    z: Tensor | None = None,
    nonfinite: Tensor | None = None,
) -> Tensor:
    """One step of Auto-PGD, in place: a projected ascent step with momentum.

        gx    = grad / std
        P(d)  = clip(d, -e, e) for linf;  d * min(1, e / |d|) for l2
        s     = sign(gx) for linf;  gx / |gx| for l2
        u     = clip(x0 + P(x + a * s - x0), 0, 1)
        w     = x + momentum * (u - x) + (1 - momentum) * (x - x_prev)
        x_prev, x = x, clip(x0 + P(w - x0), 0, 1)
        z     = (x - mean) / std

    An element whose `gx` is not finite takes part in the momentum only.

    Args:
        x: the iterate, float32 (float64: reference only) [N, C, H, W] in [0, 1];
            overwritten.
        x_prev: the iterate before it, same shape and dtype, finite; overwritten with
            the old `x`. Anything will do in the first step, where `momentum` is 1.
        x0: the clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
        grad: gradient of the objective with respect to the *normalised* input
            `(x - mean) / std`; float32, bfloat16 or float16 [N, C, H, W].
        norm: `"linf"` or `"l2"`; the L2 norm is over a whole sample.
        step_size: `a`, pixel units, a number or one per sample [N], finite and >= 0.
        eps: radius `e`, pixel units, a number or one per sample [N], finite and >= 0.
        momentum: weight of the new step in [0, 1]: 1 in the first step, 0.75 after.
        mean: per channel [C], pixel units.
        std: per channel [C], pixel units, > 0.
        z: where to write the next normalised input (float32, bfloat16 or float16
            [N, C, H, W]); None writes nothing.
        nonfinite: int64 [1] counter the number of ignored elements is added to.

    Returns:
        `x`.

    Raises:
        ValueError: shapes or devices disagree, a number is out of its range (tensors
            are not read), or `x`, `x_prev` or `z` shares memory with another operand
            or with itself.
        TypeError: a dtype outside those named above.
        BackendError: no backend accepts the call; the message lists why.

    Source:
        Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an
        ensemble of diverse parameter-free attacks", equation 3.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum} must be a number in [0, 1]")
    images = {"x": x, "x_prev": x_prev, "x0": x0, "grad": grad}
    check_step(images, ITERATE, mean, std, z, nonfinite)
    if x_prev.dtype != x.dtype:
        raise TypeError(f"x_prev is {x_prev.dtype}, x is {x.dtype}: they must agree")
    torch.ops.fastadv.apgd_step_(
        x,
        x_prev,
        x0,
        grad,
        per_sample("step_size", step_size, x),
        per_sample("eps", eps, x),
        float(momentum),
        mean,
        std,
        parse_norm(norm),
        z,
        nonfinite,
    )
    return x


def ball_init(
    x0: Tensor, *, norm: Norm, eps: float | Tensor, seed: int, offset: int = 0
) -> Tensor:
    """A random start: uniform in the ball around `x0`, clipped to [0, 1].

    Args:
        x0: clean images, uint8 in 0..255 or float32 in [0, 1], [N, C, H, W].
        norm: `"linf"` (uniform in the box) or `"l2"` (uniform in the ball).
        eps: radius in pixel units, a number or one per sample [N].
        seed: 64-bit key of the Philox generator (counted modulo 2^64).
        offset: number of the first sample, so that ranks or batches that share a seed
            draw different numbers: row n uses sample `offset + n`.

    Returns:
        float32 [N, C, H, W] in the memory layout of `x0`. Every backend draws the same
        numbers (see `philox.py`); values agree to float32 rounding.
    """
    check_image("x0", x0, CLEAN)
    radius = per_sample("eps", eps, x0)
    signed_seed = (int(seed) + 2**63) % 2**64 - 2**63  # the schema's int is signed
    out: Tensor = torch.ops.fastadv.ball_init(
        x0, radius, parse_norm(norm), signed_seed, int(offset)
    )
    return out


def normalize(
    x: Tensor, *, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`(x - mean) / std`; uint8 images count in units of 1/255.

    Args:
        x: images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
        mean: per channel [C], pixel units.
        std: per channel [C], pixel units, > 0.
        dtype: of the result: float32, bfloat16, float16 (float64: reference only).

    Returns:
        [N, C, H, W] in the memory layout of `x`.
    """
    check_image("x", x, CLEAN)
    for name, vector in (("mean", mean), ("std", std)):
        check_vector(name, vector, x.shape[1], x)
    out: Tensor = torch.ops.fastadv.normalize(x, mean, std, dtype)
    return out
