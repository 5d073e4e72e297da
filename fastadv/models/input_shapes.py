"""Images of another size or another number of channels than a network was built for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import (
    VisionTransformer,
    interpolate_embeddings,
)

from fastadv.errors import ConfigError


def first_convolution(net: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the path of the first convolution of a network, and the layer."""
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            return path, module
    return None


@torch.no_grad()
def set_channels(net: nn.Module, channels: int) -> None:
    """Have a network read images of one channel, in place; with three nothing changes.

    The kernels of the first convolution are added up over their channels: the network then
    gives for a grey image what it gave for the same in red, green and blue.

    Raises:
        ConfigError: The network does not begin with a convolution of three channels.
    """
    found = first_convolution(net)
    if found is not None and found[1].in_channels == channels:
        return
    if (
        found is None
        or found[1].in_channels != 3
        or found[1].groups != 1
        or channels != 1
    ):
        reads = f"{found[1].in_channels} channels" if found else "no convolution"
        raise ConfigError(
            f"{type(net).__name__} cannot read images of {channels} channel(s): its first "
            f"layer reads {reads}; it must be a convolution of three"
        )
    conv = found[1]
    conv.weight = nn.Parameter(conv.weight.sum(1, keepdim=True))
    conv.in_channels = 1


def channels_in(net: nn.Module, tensors: Mapping[str, Tensor]) -> int:
    """Return the channels that the weights of a file read: 1 where they are grey, else 3."""
    found = first_convolution(net)
    if found is None:
        return 3
    path, conv = found
    grey = (conv.out_channels, 1, *conv.kernel_size)
    return (
        1
        if any(
            key.endswith(f"{path}.weight") and tuple(value.shape) == grey
            for key, value in tensors.items()
        )
        else conv.in_channels
    )


def set_side(net: nn.Module, side: int) -> bool:
    """Have a network of fixed size take images of another side, in place.

    Position embeddings are interpolated, by timm's `set_input_size` and by torchvision's
    `interpolate_embeddings`. Any other network stays as it is.

    Returns:
        Whether the network was of a fixed size.

    Raises:
        ConfigError: The size cannot be met.
    """
    resize: Any = getattr(net, "set_input_size", None)
    try:
        if resize is not None:
            resize(img_size=(side, side))
        elif isinstance(net, VisionTransformer) and net.image_size != side:
            if side % net.patch_size:
                raise ValueError(f"the side must be a multiple of {net.patch_size}")
            state = copy.copy(net.state_dict())
            state = interpolate_embeddings(side, net.patch_size, state)
            embedding = state["encoder.pos_embedding"]
            net.encoder.pos_embedding = nn.Parameter(embedding)
            net.image_size, net.seq_length = side, embedding.shape[1]
        else:
            return False
        return True
    except Exception as error:  # whatever the library raises
        raise _cannot(net, side, error) from error


def check_side(net: nn.Module, channels: int, side: int) -> None:
    """Raise ConfigError unless a network runs on images of a side."""
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
    if like.is_meta:
        return
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            net(torch.zeros(1, channels, side, side).to(like))
    except Exception as error:  # whatever the code of the network raises
        raise _cannot(net, side, error) from error
    finally:
        for module, mode in modes:
            module.training = mode


def _cannot(net: nn.Module, side: int, error: Exception) -> ConfigError:
    reason = (str(error).splitlines() or [""])[0][:120]
    return ConfigError(
        f"{type(net).__name__} cannot take images of {side} px "
        f"({type(error).__name__}: {reason}); choose another `resolution`, or another "
        "network"
    )
