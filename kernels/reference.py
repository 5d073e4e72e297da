"""The definition of every operator in plain PyTorch, and the oracle of the tests.

Works in the dtype of the iterate (float64 gives the oracle), reduces in float64.
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
    dtype = x.dtype
    clean = to_pixels(x0, dtype)
    gx = grad.to(dtype) / _per_channel(std, dtype)
    finite = gx.isfinite()
    if nonfinite is not None:
        nonfinite += (~finite).sum()
    gx = torch.where(finite, gx, torch.zeros_like(gx))
    step = _per_sample(step_size, dtype)
    radius = _per_sample(eps, dtype)
    if norm == "linf":
        delta = x + step * gx.sign() - clean
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    else:
        scale = step.double() / (_row_norm(gx) + TINY)
        delta = x - clean + scale.to(dtype) * gx
        length = _row_norm(delta)
        shrink = torch.where(length > radius, radius / length, torch.ones_like(length))
        delta = delta * shrink.to(dtype)
    x.copy_((clean + delta).clamp_(0, 1))
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
