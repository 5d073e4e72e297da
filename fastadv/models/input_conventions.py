"""Input conventions: what a network expects, where its weights file does not say it.

Every model of fastadv takes RGB images in [0, 1]; mean and standard deviation express any
scale (a network of 0..255 images has a std of 1/255), and channels in the order BGR are
a matter of the first convolution's weights. So no convention needs code when the model
runs, nor when it is attacked or exported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from fastadv.errors import ConfigError, unknown_name
from fastadv.models.architecture_names import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, slots=True)
class InputConvention:
    """The mean, the standard deviation and the channel order that a network expects.

    Attributes:
        mean: Mean of each channel, in the order RGB, of images in [0, 1].
        std: Standard deviation of each channel, in the same order and unit.
        bgr: Whether the first convolution expects blue first.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False


_CAFFE_BGR = (104, 117, 123)  # of 255; Caffe's mean image, blue first

CONVENTIONS: Final = {
    "imagenet": InputConvention(IMAGENET_MEAN, IMAGENET_STD),
    "half": InputConvention((0.5,) * 3, (0.5,) * 3),
    "unit": InputConvention((0.0,) * 3, (1.0,) * 3),
    "caffe": InputConvention(
        tuple(value / 255 for value in reversed(_CAFFE_BGR)), (1 / 255,) * 3, bgr=True
    ),
    "cifar10": InputConvention((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10-kuangliu": InputConvention(
        (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    ),
    "cifar100": InputConvention((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": InputConvention((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "clip": InputConvention(
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ),
}
"""imagenet: RGB with the statistics of ImageNet, as torchvision's and most of timm's.
half: mean and std 0.5, so [-1, 1], as networks trained in TensorFlow.
unit: [0, 1] as it is. caffe: BGR, 0..255, minus (104, 117, 123).
cifar10, cifar100, svhn: the mean and std over all pixels of the training images.
cifar10-kuangliu: the mean of the deviations of single images instead, which many programs
took over from kuangliu/pytorch-cifar. clip: as OpenAI's CLIP."""


def get_convention(name: str) -> InputConvention:
    """Look up an input convention by name.

    Raises:
        ConfigError: The name is unknown; the message names near misses.
    """
    try:
        return CONVENTIONS[name]
    except KeyError:
        raise ConfigError(unknown_name("input convention", name, CONVENTIONS)) from None


def parse_statistic(text: str) -> tuple[float, ...]:
    """Read one number for all channels, or one for each: `0.49,0.48,0.45` or with slashes.

    Raises:
        ValueError: They are no one, three or four numbers in [0, 1] pixel units.
    """
    try:
        values = tuple(float(part) for part in re.split(r"[,/;:]", text))
    except ValueError:
        values = ()
    if len(values) not in (1, 3, 4) or not all(0 <= value <= 1 for value in values):
        raise ValueError(
            f"{text!r} is no mean or std: give one number for all channels or one for each, "
            "such as 0.49,0.48,0.45, for images in [0, 1] (divide those for 0..255 by 255)"
        )
    return values


@torch.no_grad()
def make_rgb(net: nn.Module) -> None:
    """Turn a network of BGR images into the same network of RGB images, in place.

    Raises:
        ConfigError: The first convolution does not read three channels.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != 3 or module.groups != 1:
                break
            module.weight.copy_(module.weight.flip(1))
            return
    raise ConfigError(
        f"{type(net).__name__} has no first convolution of three channels, so the input "
        "convention caffe (BGR) means nothing to it; use imagenet, half or unit"
    )
