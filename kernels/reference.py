"""The definition of every operator in plain PyTorch, and the oracle of the tests.

Works in the dtype of the iterate (float64 gives the oracle; float16, a perturbation,
works in float32) and reduces in float64.
Tensors arrive checked and in one memory order; see `ops.py` for the contract.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.kernels import philox
from fastadv.kernels.registry import Operands

# |g| enters as |g| + TINY, so a gradient far below any meaningful size moves nothing
# instead of being blown up to a full step of rounding noise.
TINY = 1e-30


def unavailable_reason() -> str | None:
    """Plain PyTorch runs everywhere."""
    return None


def not_supported_reasons(operands: Operands) -> list[str]:
    """The reference declines nothing."""
    return []


def to_pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 images become [0, 1] by one correctly rounded division; others are cast."""
    if images.dtype == torch.uint8:
        return images.to(dtype) / 255
    return images.to(dtype)


def _per_channel(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).view(1, -1, 1, 1)


def _per_sample(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).view(-1, 1, 1, 1)


def _row_norm(rows: Tensor) -> Tensor:
    return rows.double().square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def _finite_gradient(
    grad: Tensor, std: Tensor, dtype: torch.dtype, nonfinite: Tensor | None
) -> Tensor:
    """The gradient by the pixels; elements that are not finite are zero, counted."""
    gx = grad.to(dtype) / _per_channel(std, dtype)
    finite = gx.isfinite()
    if nonfinite is not None:
        nonfinite += (~finite).sum()
    return torch.where(finite, gx, torch.zeros_like(gx))


def _ascent(gx: Tensor, step: Tensor, norm: str) -> Tensor:
    """The move of length `step` that raises the objective most."""
    if norm == "linf":
        return step * gx.sign()
    return (step.double() / (_row_norm(gx) + TINY)).to(gx.dtype) * gx


def _project(d: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The point of the ball nearest to `d`."""
    if norm == "linf":
        return torch.minimum(torch.maximum(d, -radius), radius)
    length = _row_norm(d)
    shrink = torch.where(length > radius, radius / length, torch.ones_like(length))
    return d * shrink.to(d.dtype)


def toward_zero(d: Tensor) -> Tensor:
    """float16 of the largest magnitude that `d` is not exceeded by."""
    half = d.to(torch.float16)
    too_long = half.to(d.dtype).abs() > d.abs()
    # One less in the bits is one unit less in magnitude, whatever the sign.
    return (half.view(torch.int16) - too_long.to(torch.int16)).view(torch.float16)


def pgd_step(
    x: Tensor,
    x0: Tensor,
    grad: Tensor,
    step_size: Tensor,
    eps: Tensor,
    mean: Tensor,
    std: Tensor,
    norm: str,
    z: Tensor | None,
    nonfinite: Tensor | None,
) -> None:
    """One projected ascent step, in place on `x`; see `fastadv.kernels.pgd_step_`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    holds_delta = x.dtype == torch.float16
    clean = to_pixels(x0, dtype)
    step, radius = _per_sample(step_size, dtype), _per_sample(eps, dtype)
    gx = _finite_gradient(grad, std, dtype, nonfinite)
    delta = x.to(dtype) if holds_delta else x - clean
    delta = _project(delta + _ascent(gx, step, norm), radius, norm)
    if holds_delta:
        x.copy_(toward_zero(torch.minimum(torch.maximum(delta, -clean), 1 - clean)))
        image = (clean + x.to(dtype)).clamp_(0, 1)
    else:
        image = x.copy_((clean + delta).clamp_(0, 1))
    if z is not None:
        z.copy_((image - _per_channel(mean, dtype)) / _per_channel(std, dtype))


def apgd_step(
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
    z: Tensor | None,
    nonfinite: Tensor | None,
) -> None:
    """One APGD step, in place on `x`, `x_prev`; see `fastadv.kernels.apgd_step_`."""
    dtype = x.dtype
    clean = to_pixels(x0, dtype)
    step, radius = _per_sample(step_size, dtype), _per_sample(eps, dtype)
    gx = _finite_gradient(grad, std, dtype, nonfinite)
    d, previous = x - clean, x_prev - clean
    ahead = _project(d + _ascent(gx, step, norm), radius, norm)
    ahead = (clean + ahead).clamp_(0, 1) - clean
    d = d + momentum * (ahead - d) + (1 - momentum) * (d - previous)
    x_prev.copy_(x)
    x.copy_((clean + _project(d, radius, norm)).clamp_(0, 1))
    if z is not None:
        z.copy_((x - _per_channel(mean, dtype)) / _per_channel(std, dtype))


def ball_init(x0: Tensor, eps: Tensor, norm: str, seed: int, offset: int) -> Tensor:
    """A random point of the ball around `x0`; see `fastadv.kernels.ball_init`."""
    n, c, h, w = x0.shape
    words = philox.pixel_words(n, c, h, w, seed, offset, x0.device)
    radius = _per_sample(eps, torch.float64)
    if norm == "linf":
        delta = (2 * philox.to_uniform(words, c) - 1) * radius
    else:
        normal = philox.to_normal(words, c)
        length = _row_norm(normal)
        # u^(1/d) makes the point uniform in the ball rather than on its surface.
        share = philox.sample_uniform(n, seed, offset, x0.device) ** (1 / (c * h * w))
        delta = normal * (radius * share.view(-1, 1, 1, 1) / length.clamp_min(TINY))
    start = (to_pixels(x0, torch.float64) + delta).clamp_(0, 1)
    return start.to(torch.float32)


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """`(x - mean) / std`, uint8 counted in 1/255; see `fastadv.kernels.normalize`."""
    work = torch.promote_types(dtype, torch.float32)
    pixels = to_pixels(x, work)
    return ((pixels - _per_channel(mean, work)) / _per_channel(std, work)).to(dtype)
