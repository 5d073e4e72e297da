"""Crop, resize, flip and recolour 8-bit images: one fused operator for a whole batch.

The C++ backend has it for the CPU; the reference, which also serves GPUs, computes the same
filter as products with matrices of weights. Boxes and colours are drawn elsewhere
(`fastadv.data.loading.geometry`, `fastadv.data.loading.colour`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.kernels.registry import Operands, select


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
        images: Images, uint8 [M, H, W, 3], contiguous.
        index: Number of the image that each crop is cut from, int64 [N].
        boxes: int32 [N, 5]: top, left, height, width in pixels, and whether to flip
            left and right. A box may reach beyond the image by less than its side: it is
            reflected there without repeating the border.
        side: Side of the squares returned, in pixels.
        colour: float32 [N, 6]: scale, gray_scale, mean_scale and the shift of R, G, B in
            0..255; None leaves colours alone.
        threads: Number of threads on the CPU; None takes torch's.

    Returns:
        uint8 [N, side, side, 3] on the device of `images`.

    Raises:
        ValueError: A box or index reaches further than that.
    """
    _check(images, index, boxes)
    operands = Operands("crops", {"images": images})
    _, backend = select(operands, instead="reference")
    out: Tensor = backend.crops(images, index, boxes, side, colour, threads)
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
