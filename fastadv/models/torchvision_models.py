"""torchvision's classifiers, built with random weights, also without memory (meta device)."""

from __future__ import annotations

from typing import Any, Final

import torch
import torchvision
from torch import nn
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck, ResNet

# Depth, first width, slope and factor of widths, width of groups.
_REGNETS: Final[dict[str, tuple[int, int, float, float, int]]] = {
    "y_400mf": (16, 48, 27.89, 2.09, 8),
    "y_800mf": (14, 56, 38.84, 2.4, 16),
    "y_1_6gf": (27, 48, 20.71, 2.65, 24),
    "y_3_2gf": (21, 80, 42.63, 2.66, 24),
    "y_8gf": (17, 192, 76.82, 2.19, 56),
    "y_16gf": (18, 200, 106.23, 2.48, 112),
    "y_32gf": (20, 232, 115.89, 2.53, 232),
    "y_128gf": (27, 456, 160.83, 2.52, 264),
    "x_400mf": (22, 24, 24.48, 2.54, 16),
    "x_800mf": (16, 56, 35.73, 2.28, 16),
    "x_1_6gf": (18, 80, 34.01, 2.25, 24),
    "x_3_2gf": (25, 88, 26.31, 2.25, 48),
    "x_8gf": (23, 80, 49.56, 2.88, 120),
    "x_16gf": (22, 216, 55.59, 2.1, 128),
    "x_32gf": (23, 320, 69.86, 2.0, 168),
}


def build(name: str, num_classes: int) -> nn.Module:
    """Build torchvision's `name` with random weights.

    The auxiliary heads of GoogLeNet and Inception, which only help training, are left out.
    """
    net: nn.Module
    own: dict[str, Any] = {}
    if name == "wide_resnet50_4":  # torchvision has a class for it, but no function
        net = ResNet(Bottleneck, [3, 4, 6, 3], num_classes, width_per_group=256)
        return net
    if name.startswith("regnet_"):
        return _regnet(name.removeprefix("regnet_"), num_classes)
    if name in ("googlenet", "inception_v3"):
        own = {"aux_logits": False, "init_weights": False}
    net = torchvision.models.get_model(name, num_classes=num_classes, **own)
    return net


def _regnet(name: str, num_classes: int) -> nn.Module:
    """Build a RegNet; torchvision's own functions cannot, on the meta device."""
    with torch.device("cpu"):  # widths are computed with tensors
        params = BlockParams.from_init_params(
            *_REGNETS[name], se_ratio=0.25 if name.startswith("y") else None
        )
    net: nn.Module = RegNet(params, num_classes=num_classes)
    return net


def small_stem(name: str, num_classes: int) -> nn.Module:
    """Build torchvision's `name` with a 3x3 stride-1 stem and no max-pooling."""
    net = build(name, num_classes)
    stem = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    net.conv1 = stem
    net.maxpool = nn.Identity()
    return net
