"""The operators' schemas, memory order and dispatch; checks are in arguments.py.

Schemas are defined once, here; a backend only fills in values. Backends see tensors
that are checked, on one device, and dense in one memory order (NCHW or channels_last),
so that an implementation walks flat memory; anything else is copied on the way in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

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
from fastadv.kernels.step import Start, Step
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


def _run_step(step: Step) -> None:
    """Check the memory of a step's images, make them dense, run, copy back."""
    images = step.images()
    _, backend = select(Operands(step.op, images))
    if step.x.numel() == 0:
        return
    check_memory(images)
    order = memory_order(step.x) or torch.contiguous_format
    dense = {name: t.contiguous(memory_format=order) for name, t in images.items()}
    copied = [name for name, t in images.items() if dense[name] is not t]
    if not copied:
        backend.step(step)
        return
    backend.step(replace(step, **dense))
    for name in set(copied).intersection(WRITTEN):
        images[name].copy_(dense[name])


def _step_operator(name: str) -> Callable[..., None]:
    """Implement an operator whose schema names fields of `Step`."""
    schema = getattr(torch.ops.fastadv, name).default._schema
    names = [argument.name for argument in schema.arguments]

    def run(*operands: Any, **options: Any) -> None:
        _run_step(Step(**dict(zip(names, operands, strict=False)), **options))

    return run


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an unwritten result in the memory order of `like`."""
    order = memory_order(like) or torch.contiguous_format
    return torch.empty_like(like, dtype=dtype, memory_format=order)


def _ball_init(x0: Tensor, eps: Tensor, norm: str, seed: int, offset: int) -> Tensor:
    order = memory_order(x0) or torch.contiguous_format
    _, backend = select(Operands("ball_init", {"x0": x0}))
    if x0.numel() == 0:
        return _empty(x0, torch.float32)
    dense = x0.contiguous(memory_format=order)
    out: Tensor = backend.ball_init(Start(dense, eps, norm, seed, offset))
    return out.contiguous(memory_format=order)


def _normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    order = memory_order(x) or torch.contiguous_format
    _, backend = select(Operands("normalize", {"x": x}, dtype))
    if x.numel() == 0:
        return _empty(x, dtype)
    z: Tensor = backend.normalize(x.contiguous(memory_format=order), mean, std, dtype)
    return z.contiguous(memory_format=order)


for _name, _function in (
    ("pgd_step_", _step_operator("pgd_step_")),
    ("apgd_step_", _step_operator("apgd_step_")),
    ("ball_init", _ball_init),
    ("normalize", _normalize),
):
    _library.impl(_name, _function, "CompositeExplicitAutograd")


@torch.library.register_fake("fastadv::pgd_step_", lib=_library)
@torch.library.register_fake("fastadv::apgd_step_", lib=_library)
def _step_fake(*args: object, **kwargs: object) -> None:
    return None


@torch.library.register_fake("fastadv::ball_init", lib=_library)
def _ball_init_fake(x0: Tensor, *args: object) -> Tensor:
    return _empty(x0, torch.float32)


@torch.library.register_fake("fastadv::normalize", lib=_library)
def _normalize_fake(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    return _empty(x, dtype)


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
    """Take one projected ascent step in place and write the next network input.

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
        x: State [N, C, H, W], which is overwritten: the iterate in [0, 1] as float32
            (float64 on the reference only), or the perturbation as float16. Any memory
            layout will do; channels_last and NCHW need no copies.
        x0: Clean images [N, C, H, W], uint8 in 0..255 or float in [0, 1].
        grad: Gradient [N, C, H, W] of the objective with respect to the *normalised*
            input `(x - mean) / std`; float32, bfloat16 or float16.
        norm: `"linf"` or `"l2"`; the L2 norm is over a whole sample.
        step_size: Step size `a` in pixel units, one number or one per sample [N], finite
            and >= 0.
        eps: Radius `e` in pixel units, one number or one per sample [N], finite and >= 0.
        mean: Mean of each channel [C] in pixel units.
        std: Standard deviation of each channel [C] in pixel units, > 0.
        z: Tensor [N, C, H, W] that the next normalised input is written to; float32,
            bfloat16 or float16. None writes nothing.
        nonfinite: int64 [1] counter that the number of ignored elements is added to.

    Returns:
        `x`.

    Raises:
        ValueError: Shapes or devices disagree, a number is out of its range (tensors are
            not read), or a tensor that is written shares memory with another operand or
            with itself.
        TypeError: A dtype is not among the ones named above.
        BackendError: No backend accepts the call; the message lists the reasons.

    Source: Madry et al. 2018 (PGD); Salman et al. 2020, `robustness` steps for L2.
    """
    images = {"x": x, "x0": x0, "grad": grad, "z": z}
    check_step(images, STATE, mean, std, nonfinite)
    sizes = per_sample("step_size", step_size, x), per_sample("eps", eps, x)
    rest = mean, std, parse_norm(norm), z, nonfinite
    torch.ops.fastadv.pgd_step_(x, x0, grad, *sizes, *rest)
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
    """Take one step of Auto-PGD in place: a projected ascent step with momentum.

        gx    = grad / std
        P(d)  = clip(d, -e, e) for linf;  d * min(1, e / |d|) for l2
        s     = sign(gx) for linf;  gx / |gx| for l2
        u     = clip(x0 + P(x + a * s - x0), 0, 1)
        w     = x + momentum * (u - x) + (1 - momentum) * (x - x_prev)
        x_prev, x = x, clip(x0 + P(w - x0), 0, 1)
        z     = (x - mean) / std

    An element whose `gx` is not finite takes part in the momentum only.

    The other operands, the result and the errors are as in `pgd_step_`.

    Args:
        x: Iterate [N, C, H, W] in [0, 1], float32 (float64 on the reference only), which
            is overwritten.
        x_prev: Iterate before it, of the same shape and dtype, finite; it is overwritten
            with the old `x`. Any values will do in the first step, where `momentum` is 1.
        x0: Clean images.
        grad: Gradient with respect to the *normalised* input.
        norm: `"linf"` or `"l2"`.
        step_size: Step size `a`.
        eps: Radius `e`.
        momentum: Weight of the new step in [0, 1]: 1 in the first step, 0.75 after it.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        z: Tensor that the next normalised input is written to, or None.
        nonfinite: Counter of ignored elements, or None.

    Source:
        Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an
        ensemble of diverse parameter-free attacks", equation 3.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum} must be a number in [0, 1]")
    images = {"x": x, "x_prev": x_prev, "x0": x0, "grad": grad, "z": z}
    check_step(images, ITERATE, mean, std, nonfinite)
    if x_prev.dtype != x.dtype:
        raise TypeError(f"x_prev is {x_prev.dtype}, x is {x.dtype}: they must agree")
    sizes = per_sample("step_size", step_size, x), per_sample("eps", eps, x)
    rest = mean, std, parse_norm(norm), z, nonfinite
    torch.ops.fastadv.apgd_step_(x, x_prev, x0, grad, *sizes, float(momentum), *rest)
    return x


def ball_init(
    x0: Tensor, *, norm: Norm, eps: float | Tensor, seed: int, offset: int = 0
) -> Tensor:
    """Draw a random start, uniform in the ball around `x0` and clipped to [0, 1].

    Args:
        x0: Clean images [N, C, H, W], uint8 in 0..255 or float32 in [0, 1].
        norm: `"linf"` (uniform in the box) or `"l2"` (uniform in the ball).
        eps: Radius in pixel units, one number or one per sample [N].
        seed: Key of the Philox generator, 64 bits, counted modulo 2^64.
        offset: Number of the first sample: row n uses sample `offset + n`, so that ranks
            or batches that share a seed draw different numbers.

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
    """Return `(x - mean) / std`; a uint8 image counts in units of 1/255.

    Args:
        x: Images [N, C, H, W], uint8 in 0..255 or float in [0, 1].
        mean: Mean of each channel [C] in pixel units.
        std: Standard deviation of each channel [C] in pixel units, > 0.
        dtype: Dtype of the result: float32, bfloat16 or float16 (float64 on the reference
            only).

    Returns:
        [N, C, H, W] in the memory layout of `x`.
    """
    check_image("x", x, CLEAN)
    for name, vector in (("mean", mean), ("std", std)):
        check_vector(name, vector, x.shape[1], x)
    out: Tensor = torch.ops.fastadv.normalize(x, mean, std, dtype)
    return out
