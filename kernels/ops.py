"""Operator schemas, argument checks, memory order, dispatch. No arithmetic.

Schemas are defined once, here; a backend only fills in values. Backends see tensors
that are checked, on one device, and dense in one memory order (NCHW or channels_last),
so that an implementation walks flat memory; anything else is copied on the way in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.kernels.registry import Operands, select
from fastadv.threat import Norm, parse_norm

_library = torch.library.Library("fastadv", "DEF")
_library.define(
    "pgd_step_(Tensor(a!) x, Tensor x0, Tensor grad, Tensor step_size, Tensor eps, "
    "Tensor mean, Tensor std, str norm, Tensor(b!)? z=None, Tensor(c!)? nonfinite=None"
    ") -> ()"
)
_library.define(
    "ball_init(Tensor x0, Tensor eps, str norm, int seed, int offset) -> Tensor"
)
_library.define(
    "normalize(Tensor x, Tensor mean, Tensor std, ScalarType dtype) -> Tensor"
)

_STATE = (torch.float32, torch.float64)
_CLEAN = (torch.uint8, torch.float32, torch.float64)
_GRAD = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _check_image(name: str, t: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if t.dim() != 4:
        raise ValueError(f"{name} has shape {list(t.shape)}; expected [N, C, H, W]")
    if t.dtype not in dtypes:
        accepted = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} is {t.dtype}; accepted: {accepted}")


def _check_like(name: str, t: Tensor, like: Tensor) -> None:
    if t.shape != like.shape:
        raise ValueError(
            f"{name} has shape {list(t.shape)}; x has {list(like.shape)}: "
            "they must agree"
        )
    if t.device != like.device:
        raise ValueError(
            f"{name} is on {t.device}, x on {like.device}; move one of them"
        )


def _check_vector(name: str, t: Tensor, length: int, like: Tensor) -> None:
    if t.shape != (length,):
        raise ValueError(f"{name} has shape {list(t.shape)}; expected [{length}]")
    if not t.is_floating_point():
        raise TypeError(f"{name} is {t.dtype}; expected a floating-point tensor")
    if t.device != like.device:
        raise ValueError(
            f"{name} is on {t.device}, x on {like.device}; move one of them"
        )


def memory_order(t: Tensor) -> torch.memory_format | None:
    """`contiguous_format` or `channels_last` if `t` is dense in it, else None."""
    for order in (torch.contiguous_format, torch.channels_last):
        if t.is_contiguous(memory_format=order):
            return order
    return None


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
    tensors = {"x": x, "x0": x0, "grad": grad}
    if z is not None:
        tensors["z"] = z
    _, backend = select(Operands("pgd_step", tensors))
    if x.numel() == 0:
        return
    order = memory_order(x) or torch.contiguous_format
    dense_x = x.contiguous(memory_format=order)
    dense_z = z.contiguous(memory_format=order) if z is not None else None
    backend.pgd_step(
        dense_x,
        x0.contiguous(memory_format=order),
        grad.contiguous(memory_format=order),
        step_size,
        eps,
        mean,
        std,
        norm,
        dense_z,
        nonfinite,
    )
    if dense_x is not x:
        x.copy_(dense_x)
    if z is not None and dense_z is not None and dense_z is not z:
        z.copy_(dense_z)


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
    ("ball_init", _ball_init),
    ("normalize", _normalize),
):
    _library.impl(_name, _function, "CompositeExplicitAutograd")


@torch.library.register_fake("fastadv::pgd_step_", lib=_library)
def _pgd_step_fake(*args: object, **kwargs: object) -> None:
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


def per_sample(value: float | Tensor, like: Tensor) -> Tensor:
    """A float, 0-d tensor or [N] tensor as float32 [N] on the device of `like`."""
    if isinstance(value, Tensor) and value.dim() == 1:
        return value
    if isinstance(value, Tensor):
        return value.to(like.device).expand(like.shape[0]).contiguous()
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.full((like.shape[0],), float(value), device=like.device, dtype=dtype)


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

    Args:
        x: the iterate, float32 (float64: reference only) [N, C, H, W] in [0, 1];
            overwritten. Any memory layout; channels_last and NCHW need no copies.
        x0: the clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
        grad: gradient of the objective with respect to the *normalised* input
            `(x - mean) / std`; float32, bfloat16 or float16 [N, C, H, W].
        norm: `"linf"` or `"l2"`; the L2 norm is over a whole sample.
        step_size: `a`, pixel units, a number or one per sample [N].
        eps: radius `e`, pixel units, a number or one per sample [N].
        mean: per channel [C], pixel units.
        std: per channel [C], pixel units, > 0.
        z: where to write the next normalised input (float32, bfloat16 or float16
            [N, C, H, W]); None writes nothing.
        nonfinite: int64 [1] counter the number of ignored elements is added to.

    Returns:
        `x`.

    Raises:
        ValueError: shapes or devices disagree.
        TypeError: a dtype outside those named above.
        BackendError: no backend accepts the call; the message lists why.

    Source:
        Madry et al. 2018 (PGD); Salman et al. 2020, `robustness` steps for L2.
    """
    _check_image("x", x, _STATE)
    _check_image("x0", x0, _CLEAN)
    _check_image("grad", grad, _GRAD)
    step, radius = per_sample(step_size, x), per_sample(eps, x)
    for name, tensor in (("x0", x0), ("grad", grad)):
        _check_like(name, tensor, x)
    for name, vector in (("step_size", step), ("eps", radius)):
        _check_vector(name, vector, x.shape[0], x)
    for name, vector in (("mean", mean), ("std", std)):
        _check_vector(name, vector, x.shape[1], x)
    if z is not None:
        _check_image("z", z, _GRAD)
        _check_like("z", z, x)
    if nonfinite is not None:
        if nonfinite.dtype != torch.int64 or nonfinite.shape != (1,):
            raise TypeError(
                f"nonfinite is {nonfinite.dtype} {list(nonfinite.shape)}; expected "
                "int64 [1]"
            )
        if nonfinite.device != x.device:
            raise ValueError(
                f"nonfinite is on {nonfinite.device}, x on {x.device}; move one of them"
            )
    torch.ops.fastadv.pgd_step_(
        x, x0, grad, step, radius, mean, std, parse_norm(norm), z, nonfinite
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
    _check_image("x0", x0, _CLEAN)
    radius = per_sample(eps, x0)
    _check_vector("eps", radius, x0.shape[0], x0)
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
    _check_image("x", x, _CLEAN)
    for name, vector in (("mean", mean), ("std", std)):
        _check_vector(name, vector, x.shape[1], x)
    out: Tensor = torch.ops.fastadv.normalize(x, mean, std, dtype)
    return out
