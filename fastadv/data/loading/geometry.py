"""Resizing and cropping of 8-bit images, and the random boxes of augmentation.

The draws are given, so every loader takes the same crop of an image in an epoch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastadv.data.sets.image_set import Augment
from fastadv.preparation import Preparation

RRC_SCALE = (0.08, 1.0)  # torchvision's defaults, which the published runs used
RRC_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10

# Columns of the draws, float64 [n, DRAWS] in [0, 1).
_FLIP, _TOP, _LEFT = range(3)
_AREA = slice(3, 3 + _ATTEMPTS)
_RATIO = slice(3 + _ATTEMPTS, 3 + 2 * _ATTEMPTS)
DRAWS = 3 + 2 * _ATTEMPTS


class Boxes(NamedTuple):
    """Crops of n images, int64 [n] each, in pixels; `flip` is bool [n].

    They may reach beyond the image, which is then reflected there.
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]


def usual_preparation(augment: Augment, resolution: int) -> Preparation:
    """Return how images are judged by a network that was trained with an augmentation.

    With random resized crops, objects look larger in training than in the
    file; 256/224 is the usual zoom that makes up for it. Otherwise none.
    """
    zoomed = round(resolution * 256 / 224) if augment == "rrc" else resolution
    return Preparation(resize=zoomed, crop=resolution)


def resize_center_crop(image: NDArray[np.uint8], how: Preparation) -> NDArray[np.uint8]:
    """Resize an image (antialiased), then crop the centre.

    Args:
        image: Pixels, uint8 [H, W, 3].
        how: The sizes and the filter; smaller images are enlarged.

    Returns:
        uint8 [crop, crop, 3]; `image` itself where nothing is to do.
    """
    size = scaled_size(image.shape[0], image.shape[1], how)
    image, crop = _resize(image, *size, how.interpolation), how.crop
    top, left = central(image.shape[0], crop), central(image.shape[1], crop)
    return image[top : top + crop, left : left + crop]


def central(size: int, crop: int) -> int:
    """Return where a central crop of a side begins."""
    return round((size - crop) / 2)


def scaled_size(height: int, width: int, how: Preparation) -> tuple[int, int]:
    """Return the height and width of a resized image, in pixels, before it is cropped."""
    if how.squash:
        return how.resize, how.resize
    short, long = sorted((height, width))
    # Rounded down as by torchvision's Resize, so that crops land on the same pixels.
    longer = how.resize * long // short
    return (longer, how.resize) if width <= height else (how.resize, longer)


def resized_crop(
    image: NDArray[np.uint8], boxes: Boxes, resolution: int
) -> NDArray[np.uint8]:
    """Cut the first of `boxes` out of `image` and resize it (antialiased).

    The operator is that of images in memory, so that both give the same pixels.

    Returns:
        uint8 [resolution, resolution, 3], flipped if the box has `flip`.
    """
    import torch

    from fastadv.kernels.crops import resized_crops

    table = torch.from_numpy(np.stack([v[:1] for v in boxes], axis=1).astype(np.int32))
    whole = torch.from_numpy(np.array(image, order="C", copy=None))[None]
    first = torch.zeros(1, dtype=torch.int64)
    # In one thread: this runs in forked processes, which share no others.
    cut = resized_crops(whole, first, table, resolution, threads=1)
    out: NDArray[np.uint8] = cut[0].numpy()
    return out


def crop_flip_boxes(draws: NDArray[np.float64], resolution: int) -> Boxes:
    """Return random crops of the reflect-padded image, of its unpadded size."""
    pad = resolution // 8  # 4 at 32, as in the CIFAR recipes
    side = np.full(len(draws), resolution, dtype=np.int64)
    top = (draws[:, _TOP] * (2 * pad + 1)).astype(np.int64) - pad
    left = (draws[:, _LEFT] * (2 * pad + 1)).astype(np.int64) - pad
    return Boxes(top, left, side, side, draws[:, _FLIP] < 0.5)


def resized_crop_boxes(
    draws: NDArray[np.float64], heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> Boxes:
    """Return boxes distributed as torchvision's RandomResizedCrop takes them.

    Args:
        draws: Random numbers, float64 [n, DRAWS] in [0, 1).
        heights: Heights of the images in pixels, int64 [n].
        widths: Widths of the images in pixels, int64 [n].

    Returns:
        The first of ten attempts that fits, else the largest central box of
        admissible aspect ratio.
    """
    area = (heights * widths)[:, None] * (
        RRC_SCALE[0] + (RRC_SCALE[1] - RRC_SCALE[0]) * draws[:, _AREA]
    )
    low, high = (math.log(r) for r in RRC_RATIO)
    ratio = np.exp(low + (high - low) * draws[:, _RATIO])
    wide = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    tall = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (wide > 0) & (tall > 0)
    fits &= (wide <= widths[:, None]) & (tall <= heights[:, None])
    first = fits.argmax(axis=1)[:, None]
    none = ~fits.any(axis=1)
    width = np.take_along_axis(wide, first, axis=1)[:, 0]
    height = np.take_along_axis(tall, first, axis=1)[:, 0]
    top = (draws[:, _TOP] * (heights - height + 1)).astype(np.int64)
    left = (draws[:, _LEFT] * (widths - width + 1)).astype(np.int64)
    if none.any():
        most_wide = np.rint(np.minimum(widths, heights * RRC_RATIO[1]))
        most_tall = np.rint(np.minimum(heights, widths / RRC_RATIO[0]))
        width = np.where(none, most_wide.astype(np.int64), width)
        height = np.where(none, most_tall.astype(np.int64), height)
        top = np.where(none, (heights - height) // 2, top)
        left = np.where(none, (widths - width) // 2, left)
    return Boxes(top, left, height, width, draws[:, _FLIP] < 0.5)


def _resize(
    image: NDArray[np.uint8], height: int, width: int, interpolation: str = "bilinear"
) -> NDArray[np.uint8]:
    import torch
    from torchvision.transforms.v2 import InterpolationMode, functional

    if image.shape[:2] == (height, width):
        return image
    mode = InterpolationMode(interpolation)
    if mode != InterpolationMode.BILINEAR:
        # By Pillow, as torchvision's and timm's evaluation does; torchvision rounds
        # bicubic tensors otherwise, and does not know lanczos.
        from PIL import Image

        pillow = functional.resize(Image.fromarray(image), [height, width], mode)
        return np.array(pillow, dtype=np.uint8)
    # A copy where the array is read-only or strided: torch accepts neither.
    if not image.flags.c_contiguous or not image.flags.writeable:
        image = image.copy()
    chw = torch.from_numpy(image).permute(2, 0, 1)
    resized = functional.resize(chw, [height, width], antialias=True)
    out: NDArray[np.uint8] = resized.permute(1, 2, 0).contiguous().numpy()
    return out
