"""A small trained network, and 29 ways in which a model hides its gradients. No tests."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastadv.threat import ThreatModel

# The network below is never right within this radius: patterns are of two thirds of it.
THREAT = ThreatModel("linf", 0.06)
SIDE, CLASSES = 16, 4


class SmallNet(nn.Module):
    """Two convolutions with BatchNorm and a head; it takes images in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(4 * x - 2)))
        return self.head(F.relu(self.bn2(self.conv2(x))).flatten(1))


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise around one faint pattern for each class: images [n, 3, 16, 16] and labels."""
    draw = torch.Generator().manual_seed(7)
    coarse = torch.rand(CLASSES, 3, 4, 4, generator=draw).sub(0.5).sign()
    patterns = 0.04 * F.interpolate(coarse, size=SIDE)
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    noise = 0.08 * torch.randn(n, 3, SIDE, SIDE, generator=draw)
    pixels = (0.5 + patterns[labels] + noise).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8), labels


@functools.cache
def trained() -> SmallNet:
    """The network after a second of training, in evaluation mode; do not change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallNet()
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        pixels, labels = images(512, 1)
        for step in range(48):
            rows = torch.arange(64) + 64 * (step % 8)
            loss = F.cross_entropy(net(pixels[rows] / 255), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


class Masked(nn.Module):
    """The network with something before and after it."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = trained(), before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


class _Custom(torch.autograd.Function):
    """The identity with a backward pass that is chosen by name."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        ctx.kind = kind
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        draw = torch.Generator().manual_seed(3)
        found = {
            "zero": torch.zeros_like(grad),
            "flipped": -grad,
            "random": torch.randn_like(grad),
            "fixed": torch.randn(grad.shape[1:], generator=draw).expand_as(grad),
            "nan": torch.full_like(grad, torch.nan),
        }
        return found[ctx.kind], None


def _custom(kind: str) -> nn.Module:
    return Masked(before=lambda x: _Custom.apply(x, kind))


def _untraceable(kind: str) -> nn.Module:
    """The same in code that torch.fx cannot trace, so that the model itself is attacked."""
    return Masked(before=lambda x: _Custom.apply(x, kind) if bool(x.sum() > -1) else x)


def _levels(n: int) -> nn.Module:
    return Masked(before=lambda x: (x * (n - 1)).round() / (n - 1))


def _jpeg(x: Tensor) -> Tensor:
    def one(image: Tensor) -> Tensor:
        array = image.permute(1, 2, 0).detach().mul(255).byte().numpy()
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=95)
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255

    return torch.stack([one(image) for image in x])


def _seeded_noise(x: Tensor) -> Tensor:
    def one(image: Tensor) -> Tensor:
        seed = int(image.detach().double().sum() * 1e6) % 2**31
        draw = torch.Generator().manual_seed(seed)
        return image + 0.05 * torch.randn(image.shape, generator=draw)

    return torch.stack([one(image) for image in x])


def _resized(x: Tensor) -> Tensor:
    side = int(torch.randint(11, SIDE, ()))
    left, top = (random.randint(0, SIDE - side) for _ in range(2))
    right, bottom = SIDE - side - left, SIDE - side - top
    return F.pad(F.interpolate(x, size=side), (left, right, top, bottom))


def _one_hot(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(1), CLASSES).float()


class _Swapped(Masked):
    """Has dropout in evaluation mode and none in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.3, training=not self.training))


class _Constant(Masked):
    """Classifies in training mode, and always decides for class 0 otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits if self.training else logits * 0 + torch.eye(CLASSES)[0]


def _grad_mode(x: Tensor) -> Tensor:
    return x.round() if torch.is_grad_enabled() else x


HONEST: dict[str, Callable[[], nn.Module]] = {
    "none": Masked,
    "logits 1e-12": lambda: Masked(after=lambda z: 1e-12 * z),
    "log_softmax": lambda: Masked(after=lambda z: z.log_softmax(1)),
}

MASKS: dict[str, Callable[[], nn.Module]] = {
    "jpeg straight-through": lambda: Masked(
        before=lambda x: x + (_jpeg(x) - x).detach()
    ),
    "logits x1000": lambda: Masked(after=lambda z: 1e3 * z),
    "logits x1e6": lambda: Masked(after=lambda z: 1e6 * z),
    "8 grey levels": lambda: _levels(8),
    "2 grey levels": lambda: _levels(2),
    "noise .3": lambda: Masked(before=lambda x: x + 0.3 * torch.randn_like(x)),
    "noise 1e-3": lambda: Masked(before=lambda x: x + 1e-3 * torch.randn_like(x)),
    "dropout at inference": lambda: Masked(before=lambda x: F.dropout(x, 0.1)),
    "noise seeded by the input": lambda: Masked(before=_seeded_noise),
    "softmax": lambda: Masked(after=lambda z: z.softmax(1)),
    "softmax x20 .99": lambda: Masked(after=lambda z: 0.99 * (20 * z).softmax(1)),
    "softmax x1000": lambda: Masked(after=lambda z: (1000 * z).softmax(1)),
    "sigmoid x50": lambda: Masked(after=lambda z: (50 * z).sigmoid()),
    "one-hot + 0 x": lambda: Masked(after=lambda z: _one_hot(z) + 0 * z),
    "one-hot": lambda: Masked(after=_one_hot),
    "one-hot 10/-5": lambda: Masked(after=lambda z: 15 * _one_hot(z) - 5),
    "jpeg": lambda: Masked(before=_jpeg),
    "detached": lambda: Masked(before=lambda x: x.detach()),
    "resize and pad": lambda: Masked(before=_resized),
    "zero gradient": lambda: _custom("zero"),
    "flipped gradient": lambda: _custom("flipped"),
    "random gradient": lambda: _custom("random"),
    "fixed gradient": lambda: _custom("fixed"),
    "NaN gradient": lambda: _custom("nan"),
    "zero gradient, untraceable": lambda: _untraceable("zero"),
    "flipped gradient, untraceable": lambda: _untraceable("flipped"),
    "random gradient, untraceable": lambda: _untraceable("random"),
    "fixed gradient, untraceable": lambda: _untraceable("fixed"),
    "NaN gradient, untraceable": lambda: _untraceable("nan"),
    "modes swapped": _Swapped,
    "constant": _Constant,
    "rounds in grad mode": lambda: Masked(before=_grad_mode),
}
