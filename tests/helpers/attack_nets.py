"""Small networks and batches that the attack tests share. No tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastadv.models import NormalizedModel
from fastadv.models.registry import ArchSpec

MEAN, STD = (0.49, 0.45, 0.4), (0.23, 0.31, 0.27)


class SmallNet(nn.Module):
    """Two conv-BN-SiLU layers and a linear head; smooth, so gradients have no ties."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.act = nn.SiLU()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Linear(16 * 16, classes)

    def embed(self, z: Tensor) -> Tensor:
        z = self.act(self.bn1(self.conv1(z)))
        z = self.act(self.bn2(self.conv2(z)))
        return self.pool(z).flatten(1)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.embed(z))


def _embed(net: Any, z: Tensor) -> Tensor:
    return net.embed(z)


SPEC = ArchSpec(
    name="small_net", build=lambda k: SmallNet(classes=k), head="head", features=_embed
)


def randomise_bn(module: nn.Module, seed: int = 0) -> None:
    """Give every BatchNorm statistics and an affine map as training would."""
    draw = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None:
            like = m.running_var
            for tensor, low, high in (
                (m.running_mean, -0.2, 0.2),
                (m.running_var, 0.6, 1.6),
                (m.weight, 0.7, 1.3),
                (m.bias, -0.2, 0.2),
            ):
                values = torch.rand(like.shape, generator=draw) * (high - low) + low
                if tensor is not None:
                    tensor.data.copy_(values)


def small_model(seed: int = 0, net: nn.Module | None = None) -> NormalizedModel:
    """A `NormalizedModel` in eval mode with BatchNorm away from its initial state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if net is None:
            net = SmallNet()
            net.head.weight.data *= 8  # sure of itself, as a trained network is
    randomise_bn(net, seed)
    return NormalizedModel(net, MEAN, STD, "small_net", 10, spec=SPEC).eval()


def batch(n: int = 6, size: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 3, size, size] with values at 0 and 255, and labels [n]."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.randint(-40, 296, (n, 3, size, size), generator=draw)
    labels = torch.randint(0, 10, (n,), generator=draw)
    return wide.clamp(0, 255).to(torch.uint8), labels


@torch.no_grad()
def predicted(model: nn.Module, images: Tensor) -> Tensor:
    """The model's own clean predictions [n], so that every image starts out right."""
    return model(images.float() / 255).argmax(1)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and buffer, to compare bit by bit."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
