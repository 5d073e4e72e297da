"""Networks for 32-pixel images: CIFAR ResNets, pre-activation ResNets, Wide ResNets.

State-dict keys are those of the usual public checkpoints, so that these load as they
are: `akamaster/pytorch_resnet_cifar10` (conv1, layer1.0.conv1, ..., linear), the
TRADES/RobustBench WideResNet (conv1, block1.layer.0.bn1, ..., fc), and the PreActResNet
of `kuangliu/pytorch-cifar` with the last BatchNorm that robust training gave it (`bn`).
ImageNet networks with a small stem (`resnet18_cifar`) are in `registry.py`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _PadShortcut(nn.Module):
    """Option A: every second pixel, zero channels added on both sides."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.pad = extra_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = (
            _PadShortcut(channels - in_channels) if stride != 1 else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


def _stage(
    block: type[nn.Module], old: int, new: int, n: int, *, stride: int
) -> nn.Sequential:
    rest = (block(new, new, 1) for _ in range(n - 1))
    return nn.Sequential(block(old, new, stride), *rest)


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 with 16, 32 and 64 channels and option-A shortcuts.

    Args:
        depth: 8, 14, 20, 32, 44, 56 or another 6n+2.
        num_classes: Width of `linear`, the classifier.

    Source: He et al. 2016 (arXiv 1512.03385), section 4.2.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(_BasicBlock, 16, 16, blocks, stride=1)
        self.layer2 = _stage(_BasicBlock, 16, 32, blocks, stride=2)
        self.layer3 = _stage(_BasicBlock, 32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, z: Tensor) -> Tensor:
        """Classify normalised images [N,3,H,W]: logits [N,num_classes]."""
        x = F.relu(self.bn1(self.conv1(z)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


class _WideBlock(nn.Module):
    """Pre-activation block; the shortcut of a wider block starts after the ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.widens = in_channels != channels

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = self.convShortcut(active) if self.widens else x
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + shortcut


class WideResNet(nn.Module):
    """Wide ResNet of depth 6n+4 with 16k, 32k and 64k channels.

    Args:
        depth: 28 or another 6n+4.
        width: The widening factor k.
        num_classes: Width of `fc`, the classifier.

    Source: Zagoruyko and Komodakis 2016 (arXiv 1605.07146).
    """

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = self._group(16, 16 * width, blocks, stride=1)
        self.block2 = self._group(16 * width, 32 * width, blocks, stride=2)
        self.block3 = self._group(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.zeros_(self.fc.bias)

    @staticmethod
    def _group(in_channels: int, channels: int, n: int, stride: int) -> nn.Sequential:
        layer = _stage(_WideBlock, in_channels, channels, n, stride=stride)
        return nn.Sequential(OrderedDict(layer=layer))

    def forward(self, z: Tensor) -> Tensor:
        """Classify normalised images [N,3,H,W]: logits [N,num_classes]."""
        x = F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(z))))))
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


class _PreActBlock(nn.Module):
    """Pre-activation block with two 3x3 convolutions, or a bottleneck."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, bottleneck: bool
    ) -> None:
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        shapes = ((1, 1), (3, stride), (1, 1)) if bottleneck else ((3, stride), (3, 1))
        width = in_channels
        for number, (kernel, step) in enumerate(shapes, start=1):
            new = outputs if number == len(shapes) else channels
            setattr(self, f"bn{number}", nn.BatchNorm2d(width))
            conv = nn.Conv2d(width, new, kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{number}", conv)
            width = new
        self.depth = len(shapes)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != outputs:
            # A sequence of one, as the published checkpoints have it.
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, outputs, 1, stride, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        out, shortcut = x, x
        for number in range(1, self.depth + 1):
            active = F.relu(self.get_submodule(f"bn{number}")(out))
            if number == 1 and self.shortcut is not None:
                shortcut = self.shortcut(active)
            out = self.get_submodule(f"conv{number}")(active)
        return out + shortcut


class PreActResNet(nn.Module):
    """Pre-activation ResNet for 32-pixel images with 64 to 512 channels.

    Args:
        depth: 18, 34 or 50 (bottlenecks).
        num_classes: Width of `linear`, the classifier.

    Source: He et al. 2016 (arXiv 1603.05027); the names are those of Rice et al. 2020
    (arXiv 2002.11569), whose network ends in BatchNorm and ReLU.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
        bottleneck = depth == 50
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        width = 64
        for stage, count in enumerate(counts):
            blocks = []
            for number in range(count):
                stride = 2 if stage and number == 0 else 1
                channels = 64 * 2**stage
                blocks.append(
                    _PreActBlock(width, channels, stride, bottleneck=bottleneck)
                )
                width = 4 * channels if bottleneck else channels
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, z: Tensor) -> Tensor:
        """Classify normalised images [N,3,H,W]: logits [N,num_classes]."""
        x = self.conv1(z)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1)
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits
