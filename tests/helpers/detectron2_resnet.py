"""Detectron2's ResNet by its documented layer names, written anew from its configuration.

Source: detectron2/modeling/backbone/resnet.py (BasicStem, BasicBlock, BottleneckBlock,
build_resnet_backbone) and the defaults of detectron2/config/defaults.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class FrozenBatchNorm(nn.Module):
    """`FrozenBN`, whose statistics and affine values are all buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.full((channels,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight / torch.sqrt(self.running_var + 1e-5)
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class Conv2d(nn.Conv2d):
    """A convolution without bias that holds the `norm` behind it."""

    def __init__(
        self, inside: int, out: int, k: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inside, out, k, stride, k // 2, groups=groups, bias=False)
        self.norm = FrozenBatchNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(super().forward(x))
        return found


class Block(nn.Module):
    """A block with two convolutions, or with three if there is a bottleneck."""

    def __init__(
        self,
        inside: int,
        out: int,
        stride: int,
        bottleneck: int | None,
        groups: int,
        in_1x1: bool,
    ) -> None:
        super().__init__()
        if inside != out:
            self.shortcut = Conv2d(inside, out, 1, stride)
        if bottleneck is None:
            self.conv1 = Conv2d(inside, out, 3, stride)
            self.conv2 = Conv2d(out, out, 3)
        else:
            first, second = (stride, 1) if in_1x1 else (1, stride)
            self.conv1 = Conv2d(inside, bottleneck, 1, first)
            self.conv2 = Conv2d(bottleneck, bottleneck, 3, second, groups)
            self.conv3 = Conv2d(bottleneck, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(torch.relu(self.conv1(x)))
        if hasattr(self, "conv3"):
            y = self.conv3(torch.relu(y))
        before = self.shortcut(x) if hasattr(self, "shortcut") else x
        return torch.relu(y + before)


class ResNet(nn.Module):
    """The backbone that `MODEL.RESNETS` describes, with FREEZE_AT 0 and no FPN."""

    def __init__(self, resnets: Mapping[str, int]) -> None:
        super().__init__()
        depth, groups = resnets["DEPTH"], resnets.get("NUM_GROUPS", 1)
        width = groups * resnets.get("WIDTH_PER_GROUP", 64)
        out, inside = resnets.get("RES2_OUT_CHANNELS", 256), 64
        in_1x1 = bool(resnets.get("STRIDE_IN_1X1", True))
        self.stem = nn.Module()
        self.stem.conv1 = Conv2d(3, inside, 7, 2)
        for stage, count in enumerate(_BLOCKS[depth]):
            blocks = []
            for i in range(count):
                stride = 2 if stage and not i else 1
                bottleneck = None if depth < 50 else width
                blocks.append(Block(inside, out, stride, bottleneck, groups, in_1x1))
                inside = out
            setattr(self, f"res{stage + 2}", nn.Sequential(*blocks))
            out, width = 2 * out, 2 * width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.stem.conv1(x))  # type: ignore[operator]
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        found = {"stem": x}
        for name in ("res2", "res3", "res4", "res5"):
            x = found[name] = getattr(self, name)(x)
        return found
