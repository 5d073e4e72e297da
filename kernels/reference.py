"""The definition of every operator in plain PyTorch, and the oracle of the tests.

A step computes in the dtype of its iterate (float64 gives the oracle), a float16
perturbation in float32, and sums are float64. Tensors arrive checked and in one memory
order; `ops.py` has the contract.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastadv.kernels import philox
from fastadv.kernels.pixels import to_pixels
from fastadv.kernels.registry import Operands
from fastadv.kernels.step import Start, Step

# |g| enters as |g| + TINY, so a gradient far below any meaningful size moves nothing
# instead of being blown up to a full step of rounding noise.
TINY = 1e-30
GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision
_CHUNK = 64  # crops whose float32 copies are held at once: 51 MB at 258 px


def unavailable_reason() -> str | None:
    """Return None: plain PyTorch runs on every machine."""
    return None


def not_supported_reasons(operands: Operands) -> list[str]:
    """Return no reasons: the reference accepts every call."""
    return []


def _per_channel(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).view(1, -1, 1, 1)


def _per_sample(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).view(-1, 1, 1, 1)


def _row_norm(rows: Tensor) -> Tensor:
    return rows.double().square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def _finite_gradient(
    grad: Tensor, std: Tensor, dtype: torch.dtype, nonfinite: Tensor | None
) -> Tensor:
    """Return the gradient by the pixels; non-finite elements are zero and are counted."""
    gx = grad.to(dtype) / _per_channel(std, dtype)
    finite = gx.isfinite()
    if nonfinite is not None:
        nonfinite += (~finite).sum()
    return torch.where(finite, gx, torch.zeros_like(gx))


def _ascent(gx: Tensor, step: Tensor, norm: str) -> Tensor:
    """Return the move of length `step` that raises the objective most."""
    if norm == "linf":
        return step * gx.sign()
    return (step.double() / (_row_norm(gx) + TINY)).to(gx.dtype) * gx


def _project(d: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Return the point of the ball that is nearest to `d`."""
    if norm == "linf":
        return torch.minimum(torch.maximum(d, -radius), radius)
    length = _row_norm(d)
    shrink = torch.where(length > radius, radius / length, torch.ones_like(length))
    return d * shrink.to(d.dtype)


def toward_zero(d: Tensor) -> Tensor:
    """Return the nearest float16 number that is nowhere larger in magnitude than `d`."""
    half = d.to(torch.float16)
    too_long = half.to(d.dtype).abs() > d.abs()
    # One less in the bits is one unit less in magnitude, whatever the sign.
    return (half.view(torch.int16) - too_long.to(torch.int16)).view(torch.float16)


def step(s: Step) -> None:
    """Take one step in place; see `fastadv.kernels.pgd_step_` and `apgd_step_`."""
    dtype = torch.promote_types(s.x.dtype, torch.float32)
    holds_delta = s.x.dtype == torch.float16
    clean = to_pixels(s.x0, dtype)
    step_size, radius = _per_sample(s.step_size, dtype), _per_sample(s.eps, dtype)
    gx = _finite_gradient(s.grad, s.std, dtype, s.nonfinite)
    d = s.x.to(dtype) if holds_delta else s.x - clean
    moved = _project(d + _ascent(gx, step_size, s.norm), radius, s.norm)
    if s.x_prev is not None:
        previous = s.x_prev - clean
        ahead = (clean + moved).clamp_(0, 1) - clean
        moved = d + s.momentum * (ahead - d) + (1 - s.momentum) * (d - previous)
        moved = _project(moved, radius, s.norm)
        s.x_prev.copy_(s.x)
    if holds_delta:
        s.x.copy_(toward_zero(torch.minimum(torch.maximum(moved, -clean), 1 - clean)))
        image = (clean + s.x.to(dtype)).clamp_(0, 1)
    else:
        image = s.x.copy_((clean + moved).clamp_(0, 1))
    if s.z is not None:
        s.z.copy_((image - _per_channel(s.mean, dtype)) / _per_channel(s.std, dtype))


def ball_init(start: Start) -> Tensor:
    """Return a random point of the ball; see `fastadv.kernels.ball_init`."""
    n, c, h, w = start.x0.shape
    device, key = start.x0.device, (start.seed, start.offset)
    words = philox.pixel_words(n, c, h, w, *key, device)
    radius = _per_sample(start.eps, torch.float64)
    if start.norm == "linf":
        delta = (2 * philox.to_uniform(words, c) - 1) * radius
    else:
        normal = philox.to_normal(words, c)
        length = _row_norm(normal)
        # u^(1/d) makes the point uniform in the ball rather than on its surface.
        share = philox.sample_uniform(n, *key, device) ** (1 / (c * h * w))
        delta = normal * (radius * share.view(-1, 1, 1, 1) / length.clamp_min(TINY))
    image = (to_pixels(start.x0, torch.float64) + delta).clamp_(0, 1)
    return image.to(torch.float32)


def normalize(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `(x - mean) / std`; see `fastadv.kernels.normalize`."""
    work = torch.promote_types(dtype, torch.float32)
    pixels = to_pixels(x, work)
    return ((pixels - _per_channel(mean, work)) / _per_channel(std, work)).to(dtype)


def crops(
    images: Tensor,
    index: Tensor,
    boxes: Tensor,
    side: int,
    colour: Tensor | None,
    threads: int | None,
) -> Tensor:
    """Cut, resize and recolour boxes; see `fastadv.kernels.crops.resized_crops`."""
    on = images.device
    # No copy waits for what the device is at: memory of the host is read before it returns.
    boxes, index = (t.to(on, non_blocking=True) for t in (boxes, index))
    colour = None if colour is None else colour.to(on, non_blocking=True)
    out = images.new_empty(len(index), side, side, 3)
    for start in range(0, len(index), _CHUNK):
        part = slice(start, start + _CHUNK)
        cut = _resized(images[index[part]], boxes[part], side)
        out[part] = cut if colour is None else _recoloured(cut, colour[part])
    return out


def _resized(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Return one resized box of each image, by two products with matrices of weights."""
    height, width = images.shape[1:3]
    top, left, tall, wide, flip = boxes.unbind(1)
    down = _weights(top, tall, height, side)
    across = _weights(left, wide, width, side)
    across = torch.where(flip.bool()[:, None, None], across.flip(1), across)
    rows = torch.einsum("nyh,nhwc->nywc", down, images.float())
    cut = torch.einsum("nxw,nywc->nyxc", across, rows)
    return (cut + 0.5).clamp_(0, 255).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """Return the triangle filter's weights along one axis, float32 [N, side, size]."""
    on = start.device
    scale = length.double() / side
    support = scale.clamp(min=1)[:, None, None]
    i = torch.arange(side, device=on, dtype=torch.float64)
    centre = ((i + 0.5)[None, :] * scale[:, None])[:, :, None]
    # These positions reflect into the image; `inside` keeps to the box.
    at = torch.arange(1 - size, 2 * size - 1, device=on)
    p = (at[None, :] - start[:, None])[:, None, :]
    inside = (p >= 0) & (p < length[:, None, None])
    weight = (1 - (p + 0.5 - centre).abs() / support).clamp_(min=0) * inside
    weight /= weight.sum(2, keepdim=True)
    folded = at.abs()
    folded = torch.where(folded < size, folded, 2 * (size - 1) - folded)
    out = weight.new_zeros(len(start), side, size)
    return out.index_add_(2, folded, weight).float()


@functools.cache
def _gray_weights(device: torch.device) -> Tensor:
    """Return the weights of R, G and B in a gray value, made once for each device."""
    return torch.tensor(GRAY, dtype=torch.float32, device=device)


def _recoloured(images: Tensor, colour: Tensor) -> Tensor:
    x = images.float()
    gray = x @ _gray_weights(x.device)
    mean = gray.double().mean((1, 2)).float()
    scale, gray_scale, mean_scale = (c[:, None, None, None] for c in colour[:, :3].T)
    y = x * scale + gray[..., None] * gray_scale + colour[:, None, None, 3:]
    y += mean[:, None, None, None] * mean_scale
    return (y.clamp_(0, 255) + 0.5).to(torch.uint8)
