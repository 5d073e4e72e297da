"""The architectures called `timm/<name>`; nothing else imports timm.

timm is optional; without it every entry point here raises a ConfigError that says
how to get it.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastadv.errors import ConfigError, unknown_name
from fastadv.models.intermediate import Stage
from fastadv.preparation import Preparation

log = logging.getLogger(__name__)

# What timm takes where a configuration is silent; the evaluation transform of
# `timm.data.create_transform` is the source of all of this.
_CROP_SHARE, _FILTER = 0.875, "bicubic"


def is_installed() -> bool:
    """Return whether the package timm can be imported."""
    return importlib.util.find_spec("timm") is not None


def import_timm() -> Any:
    """Return the timm module.

    Raises:
        ConfigError: The package timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "architectures named timm/<name> need the timm package, which is not "
            "installed; run: pip install timm, or pick a name from list_models()"
        ) from error
    return timm


def pretrained_config(name: str) -> dict[str, Any]:
    """Return where the weights of `name` (perhaps with a tag) lie, and their input.

    Raises:
        ConfigError: There are no such weights; the message names near misses.
    """
    timm = import_timm()
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        known = timm.list_pretrained()  # with tags: resnet18.a1_in1k
        raise ConfigError(unknown_name("timm weights", name, known)) from None
    return dict(vars(config))


def preparation(config: dict[str, Any], side: int) -> Preparation | None:
    """Return how timm prepares images of `side` pixels for a pretrained network.

    None for a mode of cropping that is not built here, which is logged.

    Args:
        config: timm's configuration of the weights (`pretrained_cfg`).
        side: Side of the crop in pixels.
    """
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        log.warning(
            "timm crops images of this network by its mode %r, which is not known here; "
            "they are prepared as those of a network of unknown training",
            mode,
        )
        return None
    return Preparation(
        resize=math.floor(side / (config.get("crop_pct") or _CROP_SHARE)),
        crop=side,
        interpolation=config.get("interpolation") or _FILTER,
        squash=mode == "squash",
    )


def preparation_config(how: Preparation) -> dict[str, Any]:
    """Return a preparation as entries of timm's configuration of weights."""
    share = how.crop / how.resize
    if math.floor(how.crop / share) != how.resize:  # timm divides, and rounds down
        share = how.crop / (how.resize + 0.5)
    return {
        "crop_pct": share,
        "interpolation": how.interpolation,
        "crop_mode": "squash" if how.squash else "center",
    }


def check_name(name: str) -> None:
    """Raise ConfigError unless timm knows `name` (a `.tag` suffix is allowed)."""
    timm = import_timm()
    if not timm.is_model(name):
        known = timm.list_models()
        raise ConfigError(unknown_name("timm architecture", name, known))


def build(name: str, num_classes: int) -> nn.Module:
    """Build timm's `name` with random weights.

    Args:
        name: Without the `timm/` prefix.
        num_classes: Number of logits.

    Raises:
        ConfigError: The package timm is missing.
    """
    net: nn.Module = import_timm().create_model(name, num_classes=num_classes)
    return net


def head_paths(net: nn.Module) -> tuple[str, ...]:
    """Return the dotted paths of the last layers of a timm network.

    A classifier of several modules ends in its last linear layer or convolution. Networks
    with a distillation token and those of two branches have two last layers.
    """
    named = dict(net.named_modules())
    stated: Any = (getattr(net, "default_cfg", None) or {}).get("classifier") or ()
    stated = (stated,) if isinstance(stated, str) else stated
    held: Any = [named[path] for path in stated if path in named]
    if not held:
        own: Any = getattr(net, "head", None)
        held = net.get_classifier() if own is not None else ()  # type: ignore[operator]
        held = held if isinstance(held, (tuple, list, nn.ModuleList)) else (held,)
    paths = {id(module): path for path, module in named.items()}
    found = []
    for head in held:
        layers = [m for m in head.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        if layers:
            found.append(paths[id(layers[-1])])
    return tuple(found)


def head_is_linear(net: nn.Module) -> bool:
    """Return whether the logits are a linear function of what the last layers read.

    VOLO adds the maximum of an auxiliary classifier over all tokens.
    """
    return getattr(net, "aux_head", None) is None


def statistics(
    net: nn.Module,
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and deviation of the images that timm trains a network of its own on."""
    config: Any = getattr(net, "default_cfg", None)
    if not type(net).__module__.startswith("timm.") or not config:
        return None
    mean, std = config.get("mean"), config.get("std")
    return (tuple(mean), tuple(std)) if mean and std else None


def stages(net: nn.Module) -> tuple[Stage, ...]:
    """Return the stages that timm lists in a network's `feature_info`, if it does."""
    listed: Any = getattr(net, "feature_info", None) or ()
    return tuple(Stage(entry["module"], entry["reduction"]) for entry in listed)


def of_any_size(net: nn.Module) -> tuple[nn.Module, list[type[nn.Module]]]:
    """Return a network that takes images of any size, on the weights of another one.

    timm builds Swin networks for images of one size. What is returned for them makes the
    masks of its windows as it runs, and shifts the windows in every stage, also where an
    image of the size of the classifier has only one window; detectors on Swin do so (Liu et
    al. 2021). Any other network is returned as it is.

    Args:
        net: A network, which is not changed.

    Returns:
        The network, and the types of its modules whose control flow depends on shapes, so
        that a tracer has to take each for one node.
    """
    layers: Any = getattr(net, "layers", ())
    if (
        not any(hasattr(module, "dynamic_mask") for module in net.modules())
        or not layers
    ):
        return net, []
    shared = {id(parameter): parameter for parameter in net.parameters()}
    result: Any = copy.deepcopy(net, shared)
    result.patch_embed.strict_img_size, result.dynamic_img_size = False, True
    windows = [stage.blocks[0].window_size for stage in layers]
    result.set_input_size(window_size=windows, always_partition=True)
    blocks = [m for m in result.modules() if hasattr(m, "dynamic_mask")]
    for block in blocks:
        block.dynamic_mask, block.attn_mask = True, None
    return result, list({type(block) for block in blocks})


@dataclass(frozen=True)
class Layers:
    """What a tracer of networks must know of timm's own layers.

    Attributes:
        convs: Layers that compute a convolution of their `weight` and `bias`.
        norms: BatchNorm2d followed by a module `act` (and before it by a `drop`, which
            does nothing in evaluation mode).
        leaves: Layers to trace as one node, since their control flow depends on shapes.
        functions: Functions to trace as one node for the same reason.
    """

    convs: tuple[type[nn.Module], ...] = ()
    norms: tuple[type[nn.Module], ...] = ()
    leaves: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()


def layers_in_use() -> Layers:
    """Return the layers of timm; there are none while timm is not imported."""
    timm: Any = sys.modules.get("timm")
    if timm is None:
        return Layers()
    return Layers(
        convs=(timm.layers.Conv2dSame,),
        norms=(timm.layers.BatchNormAct2d,),
        leaves=tuple(timm.models.get_notrace_modules()),
        functions=tuple(timm.models.get_notrace_functions()),
    )
