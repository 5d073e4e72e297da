"""Crop, resize, flip and recolour 8-bit images: one fused operator for a whole batch.

In the C++ library on the CPU; where that was not built, and on a GPU, the same filter as
products with matrices of weights. Not here: where boxes and colours come from
(`fastadv.data.loading.geometry`, `fastadv.data.loading.colour`).
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastadv.kernels import _cpp
from fastadv.kernels.registry import count_launch, forced_backend

GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and torchvision
_CHUNK = 64  # images whose float32 copies are held at once: 51 MB at 258 px


class _Crops(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("out", "images", "index", "boxes", "colour")),
        *((name, c_int64) for name in ("n", "h", "w", "side")),
        ("threads", c_int32),
    ]


def resized_crops(
    images: Tensor,
    index: Tensor,
    boxes: Tensor,
    side: int,
    colour: Tensor | None = None,
    *,
    threads: int | None = None,
) -> Tensor:
    """Cut boxes out of images and resize them by an antialiased bilinear filter.

    With x the resized crop, rounded to 8 bits, gray(x) its ITU-R BT.601 gray value and m the
    mean of that over the crop, colour gives
    `x * scale + gray(x) * gray_scale + m * mean_scale + shift`, rounded and clamped.

    Args:
        images: uint8 [M, H, W, 3], contiguous.
        index: int64 [N], which image each crop is of.
        boxes: int32 [N, 5]: top, left, height, width in pixels, and whether to flip
            left and right. A box may reach beyond the image by less than its side: it is
            reflected there without repeating the border.
        side: Of the squares returned, pixels.
        colour: float32 [N, 6]: scale, gray_scale, mean_scale and the shift of R, G, B in
            0..255; None leaves colours alone.
        threads: On the CPU; torch's number by default.

    Returns:
        uint8 [N, side, side, 3] on the device of `images`.

    Raises:
        ValueError: A box or index reaches further than that.
    """
    _check(images, index, boxes)
    if (
        images.device.type == "cpu"
        and _cpp.unavailable_reason() is None
        and forced_backend() in (None, "cpp")
    ):
        return _native(images, index, boxes, side, colour, threads)
    on = images.device
    boxes, index = boxes.to(on), index.to(on)
    colour = None if colour is None else colour.to(on)
    out = images.new_empty(len(index), side, side, 3)
    for start in range(0, len(index), _CHUNK):
        part = slice(start, start + _CHUNK)
        cut = _resized(images[index[part]], boxes[part], side)
        out[part] = cut if colour is None else _recoloured(cut, colour[part])
    return out


def _check(images: Tensor, index: Tensor, boxes: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; expected uint8 [M, H, W, 3]"
        )
    if not len(index):
        return
    height, width = images.shape[1:3]
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= len(images):
        raise ValueError(f"index spans [{low}, {high}] of {len(images)} images")
    top, left, tall, wide = boxes[:, :4].unbind(1)
    for start, length, size, what in (
        (top, tall, height, "rows"),
        (left, wide, width, "columns"),
    ):
        first, last = int(start.min()), int((start + length).max())
        if first <= -size or last >= 2 * size or int(length.min()) < 1:
            raise ValueError(
                f"boxes span the {what} [{first}, {last}) of an image of {size}; at most "
                f"[{1 - size}, {2 * size - 1}) can be reflected, and none may be empty"
            )


def _native(
    images: Tensor,
    index: Tensor,
    boxes: Tensor,
    side: int,
    colour: Tensor | None,
    threads: int | None,
) -> Tensor:
    out = images.new_empty(len(index), side, side, 3)
    # Kept by name until the call returns: they may be copies.
    images, index = images.contiguous(), index.to(torch.int64).contiguous()
    boxes = boxes.to(torch.int32).contiguous()
    colour = None if colour is None else colour.to(torch.float32).contiguous()
    _cpp.run(
        "fa_crops",
        _Crops(
            out=out.data_ptr(),
            images=images.data_ptr(),
            index=index.data_ptr(),
            boxes=boxes.data_ptr(),
            colour=_cpp.pointer(colour),
            n=len(index),
            h=images.shape[1],
            w=images.shape[2],
            side=side,
            threads=threads or torch.get_num_threads(),
        ),
    )
    count_launch("cpp", "crops")
    return out


def _resized(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """`resized_crops` of one box of each image, by two products with weights."""
    height, width = images.shape[1:3]
    top, left, tall, wide, flip = boxes.unbind(1)
    down = _weights(top, tall, height, side)
    across = _weights(left, wide, width, side)
    across = torch.where(flip.bool()[:, None, None], across.flip(1), across)
    rows = torch.einsum("nyh,nhwc->nywc", down, images.float())
    cut = torch.einsum("nxw,nywc->nyxc", across, rows)
    return (cut + 0.5).clamp_(0, 255).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """Weights of the triangle filter along one axis, float32 [N, side, size]."""
    on = start.device
    scale = length.double() / side
    support = scale.clamp(min=1)[:, None, None]
    i = torch.arange(side, device=on, dtype=torch.float64)
    centre = ((i + 0.5)[None, :] * scale[:, None])[:, :, None]
    # Positions that reflect into the image; `inside` keeps to the box.
    at = torch.arange(1 - size, 2 * size - 1, device=on)
    p = (at[None, :] - start[:, None])[:, None, :]
    inside = (p >= 0) & (p < length[:, None, None])
    weight = (1 - (p + 0.5 - centre).abs() / support).clamp_(min=0) * inside
    weight /= weight.sum(2, keepdim=True)
    folded = at.abs()
    folded = torch.where(folded < size, folded, 2 * (size - 1) - folded)
    out = weight.new_zeros(len(start), side, size)
    return out.index_add_(2, folded, weight).float()


def _recoloured(images: Tensor, colour: Tensor) -> Tensor:
    x = images.float()
    gray = x @ x.new_tensor(GRAY)
    mean = gray.double().mean((1, 2)).float()
    scale, gray_scale, mean_scale = (c[:, None, None, None] for c in colour[:, :3].T)
    y = x * scale + gray[..., None] * gray_scale + colour[:, None, None, 3:]
    y += mean[:, None, None, None] * mean_scale
    return (y.clamp_(0, 255) + 0.5).to(torch.uint8)
