"""Faster and Mask R-CNNs that run in milliseconds, and images with objects for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

CHANNELS = 32
CLASSES = 3

# Every proposal counts, so that nothing is drawn and no choice hangs on rounding.
EXHAUSTIVE: dict[str, Any] = {
    "rpn_anchor_generator": AnchorGenerator(((24,),), ((1.0,),)),
    "rpn_nms_thresh": 1.0,
    "rpn_batch_size_per_image": 10_000,
    "box_batch_size_per_image": 10_000,
    "rpn_pre_nms_top_n_train": 10_000,
    "rpn_post_nms_top_n_train": 10_000,
}

Images = tuple[list[Tensor], list[dict[str, Any]]]


def tiny_detector(
    masks: bool = False,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """A detector of three classes; BatchNorm has statistics unlike those it begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 7, 2, 3, bias=False),
            norm(CHANNELS),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1, bias=False),
            norm(CHANNELS),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1),
        )
        for module in backbone.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.3, 2)
        backbone.out_channels = CHANNELS  # type: ignore[assignment]
        shared: dict[str, Any] = {
            "min_size": 64,
            "max_size": 112,
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.25, 0.3],
            "rpn_anchor_generator": AnchorGenerator(
                ((12, 24, 48),), ((0.5, 1.0, 2.0),)
            ),
            "box_roi_pool": MultiScaleRoIAlign(["0"], 4, 2),
            "box_head": TwoMLPHead(CHANNELS * 16, 24),
            "box_predictor": FastRCNNPredictor(24, CLASSES + 1),
            "rpn_batch_size_per_image": 24,
            "box_batch_size_per_image": 16,
            "rpn_pre_nms_top_n_train": 100,
            "rpn_pre_nms_top_n_test": 100,
            "rpn_post_nms_top_n_train": 40,
            "rpn_post_nms_top_n_test": 40,
        } | options
        if not masks:
            return FasterRCNN(backbone, **shared)  # type: ignore[no-any-return]
        return MaskRCNN(  # type: ignore[no-any-return]
            backbone,
            mask_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
            mask_head=MaskRCNNHeads(CHANNELS, (16,), 1),
            mask_predictor=MaskRCNNPredictor(16, 16, CLASSES + 1),
            **shared,
        )


def objects(seed: int = 0, dtype: torch.dtype = torch.uint8) -> Images:
    """Three images of different sizes, the second of which has no objects."""
    draw = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for i, (height, width, number) in enumerate(
        ((60, 80, 3), (72, 64, 0), (50, 50, 1))
    ):
        image = torch.rand(3, height, width, generator=draw)
        # Pixels at both ends of the range, where the box binds.
        image = (image * 1.4 - 0.2).clamp(0, 1)
        images.append(
            (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
        )
        corner = torch.rand(number, 2, generator=draw) * 20
        side = 8 + torch.rand(number, 2, generator=draw) * 20
        boxes = torch.cat([corner, corner + side], 1)
        masks = torch.zeros(number, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(1, CLASSES + 1, (number,), generator=draw)
        targets.append(
            {
                "boxes": boxes,
                "labels": labels,
                "masks": masks,
                "iscrowd": torch.zeros(number, dtype=torch.uint8),
                "area": (side[:, 0] * side[:, 1]),
                "image_id": 7 * i + 2,
            }
        )
    return images, targets
