"""Augmentation of images together with their boxes and masks, by torchvision's v2."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from fastadv.data.counter import derive_key
from fastadv.detection.sets import Target

_PER_OBJECT = ("boxes", "labels", "iscrowd", "area", "masks")
_GREY = 124  # of the border that zooming out adds: near the mean of ImageNet


@functools.cache
def _transform(name: str) -> v2.Transform:
    flip = v2.RandomHorizontalFlip(0.5)
    if name == "flip":
        return flip
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(
                fill=dict.fromkeys((tv_tensors.Image,), _GREY) | {"others": 0}
            ),
            v2.RandomIoUCrop(),
            flip,
        ]
    )


def augment(
    image: Tensor, target: Target, name: str, seed: int, epoch: int, index: int
) -> tuple[Tensor, Target]:
    """Augment a training image with its objects.

    Random numbers depend on seed, epoch and index alone, and the global random state stays
    as it was. Objects of which less than a pixel is left are left out.

    Args:
        image: Image, uint8 [3, H, W].
        target: Its objects; see `DetectionSet.target`.
        name: `flip`, `ssd` (Liu et al. 2016) or `none`.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        index: Position of the image in its set.

    Returns:
        The image, uint8 [3, H', W'], and its objects.
    """
    if name == "none":
        return image, target
    size: Any = tuple(image.shape[1:])
    values: dict[str, Any] = dict(target)
    values["boxes"] = tv_tensors.BoundingBoxes(
        target["boxes"], format="XYXY", canvas_size=size
    )
    if "masks" in target:
        values["masks"] = tv_tensors.Mask(target["masks"])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_key(seed, "objects", epoch, index))
        moved, found = _transform(name)(tv_tensors.Image(image), values)
    boxes = found["boxes"].as_subclass(Tensor)
    stays = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    result = {
        key: value.as_subclass(Tensor)[stays] if key in _PER_OBJECT else value
        for key, value in found.items()
    }
    return moved.as_subclass(Tensor).contiguous(), result


def without_crowds(target: Target) -> Target:
    """Return a target without the regions that are ignored in training."""
    stays = target["iscrowd"] == 0
    return {
        key: value[stays] if key in _PER_OBJECT else value
        for key, value in target.items()
    }
