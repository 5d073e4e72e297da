"""Input conventions: what a network expects, where its weights file does not say it.

Every model of fastadv takes RGB images in [0, 1]; mean and standard deviation express any
scale (a network of 0..255 images has a std of 1/255), and channels in the order BGR are
a matter of the first convolution's weights. So no convention needs code when the model
runs, nor when it is attacked or exported.
"""

from __future__ import annotations

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
}
"""imagenet: RGB with the statistics of ImageNet, as torchvision's and most of timm's.
half: mean and std 0.5, so [-1, 1], as networks trained in TensorFlow.
unit: [0, 1] as it is. caffe: BGR, 0..255, minus (104, 117, 123)."""


def get_convention(name: str) -> InputConvention:
    """Look up an input convention by name.

    Raises:
        ConfigError: The name is unknown; the message names near misses.
    """
    try:
        return CONVENTIONS[name]
    except KeyError:
        raise ConfigError(unknown_name("input convention", name, CONVENTIONS)) from None


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
