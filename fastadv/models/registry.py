"""The table of architectures: how to build one, and where its head and its stages are."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadv.errors import ConfigError
from fastadv.models import timm_models, torchvision_models
from fastadv.models.architecture_names import ARCHITECTURES, TIMM_PREFIX
from fastadv.models.cifar import CifarResNet, PreActResNet, WideResNet
from fastadv.models.heads import classes_of, find_heads, replace_heads
from fastadv.models.intermediate import Stage
from fastadv.models.own_networks import (
    OwnNetwork,
    import_arch,
    own_network,
    register_arch,
    unknown_arch,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchSpec:
    """What fastadv knows about one architecture.

    Attributes:
        name: As typed by users.
        build: `build(num_classes)` returns a randomly initialised network that maps
            normalised images [N,3,H,W] to logits [N,num_classes].
        head: Dotted path of the classifier module, or a function that finds the paths
            of all classifiers of a network: several where their mean is returned (a
            DeiT with a distillation token), none where it ends in its embedding.
        features: `features(net, z)` embeds normalised images as [N,D]; None records what
            the classifier reads.
        stages: The stages (for transformers: the blocks), or a function that finds them
            in a network; empty if they are not known.
        head_is_linear: Whether `head(features(net, z))` equals `net(z)`. False for
            SqueezeNet, whose classifier is a 1x1 convolution with a ReLU before the
            pooling, so no function of the pooled embedding gives its logits. Or a
            function that says so of a network.
        image_size: Side in pixels that the architecture was designed for.
    """

    name: str
    build: Callable[[int], nn.Module]
    head: str | Callable[[nn.Module], tuple[str, ...]]
    features: Callable[[nn.Module, Tensor], Tensor] | None = None
    stages: tuple[Stage, ...] | Callable[[nn.Module], tuple[Stage, ...]] = ()
    head_is_linear: bool | Callable[[nn.Module], bool] = True
    image_size: int = 224

    def head_paths(self, net: nn.Module) -> tuple[str, ...]:
        """Return the dotted paths of the classifiers in `net`."""
        return (self.head,) if isinstance(self.head, str) else self.head(net)


def get_spec(arch: str) -> ArchSpec:
    """Look up an architecture by name.

    Args:
        arch: One of `ARCHITECTURES`, `timm/<name>`, or the name of a network of your own
            that is registered. Nothing is imported for a name.

    Raises:
        ConfigError: The name is unknown (near misses are named), or it asks for timm
            and timm is not installed.
    """
    if (own := own_network(arch)) is not None:
        return own_spec(own)
    if arch.startswith(TIMM_PREFIX):
        name = arch.removeprefix(TIMM_PREFIX)
        timm_models.check_name(name)
        return ArchSpec(
            name=arch,
            build=partial(timm_models.build, name),
            head=timm_models.head_paths,
            head_is_linear=timm_models.head_is_linear,
            stages=timm_models.stages,
        )
    try:
        return _table()[arch]
    except KeyError:
        raise unknown_arch(arch) from None


def own_spec(own: OwnNetwork) -> ArchSpec:
    """Return what is known of a network of your own."""
    side = own.image_size
    channels = 3 if own.mean is None else len(own.mean)

    def heads(net: nn.Module) -> tuple[str, ...]:
        if own.head is not None:
            return (own.head,) if isinstance(own.head, str) else own.head
        return find_heads(net, channels, side)[0]

    return ArchSpec(
        name=own.name,
        build=partial(_build_own, own, heads),
        head=heads,
        features=own.features,
        stages=own.stages,
        head_is_linear=lambda net: find_heads(net, channels, side, heads(net))[1],
        image_size=side or 224,
    )


def register_network(
    net: nn.Module, mean: Sequence[float], std: Sequence[float]
) -> str:
    """Register a network of your own under the name of its class, and return the name.

    Another network of the same class gets a number. It is copied where it is built.
    """
    name, number = type(net).__name__, 1
    while name in ARCHITECTURES or own_network(name):
        known = own_network(name)
        if known is not None and known.build is net:
            break
        number += 1
        name = f"{type(net).__name__}-{number}"
    register_arch(name, net, mean=mean, std=std)
    return name


def arch_name(arch: str | nn.Module | Callable[..., nn.Module]) -> str:
    """Return the name of an architecture that the user gave, imported or registered.

    Args:
        arch: A name; or a network of your own, or a function or class that returns it,
            which is registered under its own name.
    """
    if isinstance(arch, str):
        import_arch(arch)
        return arch
    if isinstance(arch, nn.Module):
        return register_network(arch, (0.0,) * 3, (1.0,) * 3)
    name = f"{arch.__module__}.{arch.__qualname__}"
    register_arch(name, arch)
    return name


def _build_own(
    own: OwnNetwork, heads: Callable[[nn.Module], tuple[str, ...]], num_classes: int
) -> nn.Module:
    """Build a network of your own with a number of classes."""
    build = own.build
    if isinstance(build, nn.Module):
        net: Any = copy.deepcopy(build)
    else:
        try:
            needed = _arguments(build)
            if "num_classes" in needed:
                net = build(num_classes=num_classes)
            else:
                net = build(num_classes) if needed else build()
        except Exception as error:  # whatever the code of the user raises
            raise ConfigError(
                f"{own.name} could not build its network for {num_classes} classes "
                f"({type(error).__name__}: {error})"
            ) from error
    if not isinstance(net, nn.Module):
        raise ConfigError(
            f"{own.name} returned a {type(net).__name__}; it must return an nn.Module"
        )
    paths = heads(net)
    if paths and classes_of(net, paths) != num_classes:
        replace_heads(net, paths, num_classes)
    return net


def _arguments(build: Callable[..., object]) -> list[str]:
    """Return the arguments that a function needs, and `num_classes` where it has it."""
    parameters = inspect.signature(build).parameters.values()
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return [
        p.name
        for p in parameters
        if p.name == "num_classes" or (p.default is p.empty and p.kind in positional)
    ]


# What forward methods do between modules, as steps of a `trunk`.
_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu()": F.relu,
    "pool()": partial(F.adaptive_avg_pool2d, output_size=1),
    "mean()": partial(torch.mean, dim=(2, 3)),
    "flatten()": partial(torch.flatten, start_dim=1),
}


def _run(steps: str, net: nn.Module, z: Tensor) -> Tensor:
    """Embed `z` by the modules and operations that `steps` lists.

    This repeats torchvision's forward instead of hooking the classifier: it has no state
    and no hook to leak, and is safe under threads and torch.compile.
    """
    for step in steps.split():
        run = _OPERATIONS[step] if step in _OPERATIONS else net.get_submodule(step)
        z = run(z)
    return z


# Paragraphs of four fields: the names; the steps from the image to the embedding, or
# nothing where what the head reads is recorded; the path of the head; the stride of the
# first stage with the stages, each of twice the stride before (nothing: they are unknown).
_VGG = "| features avgpool flatten() " + " ".join(f"classifier.{i}" for i in range(6))
_RESNET = "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool flatten()"
_ARCHITECTURES = f"""
resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d
resnext101_64x4d wide_resnet50_2 wide_resnet50_4 wide_resnet101_2
| {_RESNET} | fc | 4 layer1 layer2 layer3 layer4

resnet18_cifar resnet34_cifar resnet50_cifar wide_resnet50_2_cifar
| {_RESNET} | fc | 1 layer1 layer2 layer3 layer4

resnet8_cifar resnet14_cifar resnet20_cifar resnet32_cifar resnet44_cifar resnet56_cifar
| conv1 bn1 relu() layer1 layer2 layer3 pool() flatten() | linear | 1 layer1 layer2 layer3

wide_resnet28_4_cifar wide_resnet28_10_cifar wide_resnet34_10_cifar wide_resnet34_20_cifar
wide_resnet70_16_cifar
| conv1 block1 block2 block3 bn1 relu() pool() flatten() | fc | 1 block1 block2 block3

preact_resnet18_cifar preact_resnet34_cifar preact_resnet50_cifar
| conv1 layer1 layer2 layer3 layer4 bn relu() pool() flatten() | linear
| 1 layer1 layer2 layer3 layer4

densenet121 densenet161 densenet169 densenet201
| features relu() pool() flatten() | classifier
| 4 features.denseblock1 features.denseblock2 features.denseblock3 features.denseblock4

shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
| conv1 maxpool stage2 stage3 stage4 conv5 mean() | fc | 8 stage2 stage3 stage4

mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 | layers mean() classifier.0
| classifier.1 | 4 layers.8 layers.9 layers.11 layers.13

mobilenet_v2 | features pool() flatten() classifier.0
| classifier.1 | 2 features.1 features.3 features.6 features.13 features.17

mobilenet_v3_large | features avgpool flatten() classifier.0 classifier.1 classifier.2
| classifier.3 | 2 features.1 features.3 features.6 features.12 features.15

mobilenet_v3_small | features avgpool flatten() classifier.0 classifier.1 classifier.2
| classifier.3 | 2 features.0 features.1 features.3 features.8 features.11

efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4
efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_m efficientnet_v2_l
| features avgpool flatten() classifier.0
| classifier.1 | 2 features.1 features.2 features.3 features.5 features.7

efficientnet_v2_s | features avgpool flatten() classifier.0
| classifier.1 | 2 features.1 features.2 features.3 features.5 features.6

regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf
regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf
regnet_y_16gf regnet_y_32gf regnet_y_128gf | stem trunk_output avgpool flatten() | fc
| 4 trunk_output.block1 trunk_output.block2 trunk_output.block3 trunk_output.block4

alexnet {_VGG} | classifier.6 |

vgg11 {_VGG} | classifier.6 | 2 features.2 features.5 features.10 features.15 features.20

vgg13 {_VGG} | classifier.6 | 2 features.4 features.9 features.14 features.19 features.24

vgg16 {_VGG} | classifier.6 | 2 features.4 features.9 features.16 features.23 features.30

vgg19 {_VGG} | classifier.6 | 2 features.4 features.9 features.18 features.27 features.36

vgg11_bn {_VGG} | classifier.6 | 2 features.3 features.7 features.14 features.21 features.28

vgg13_bn {_VGG} | classifier.6 | 2 features.6 features.13 features.20 features.27 features.34

vgg16_bn {_VGG} | classifier.6 | 2 features.6 features.13 features.23 features.33 features.43

vgg19_bn {_VGG} | classifier.6 | 2 features.6 features.13 features.26 features.39 features.52

convnext_tiny convnext_small convnext_base convnext_large
| features avgpool classifier.0 classifier.1
| classifier.2 | 4 features.1 features.3 features.5 features.7

squeezenet1_0 | features mean() | classifier.1 | 4 features.5 features.10 features.12

squeezenet1_1 | features mean() | classifier.1 | 4 features.4 features.7 features.12

swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b | | head
| 4 features.1 features.3 features.5 features.7

vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14 | | heads.head |

maxvit_t | | classifier.5 | 4 blocks.0 blocks.1 blocks.2 blocks.3

googlenet | | fc | 4 conv3 inception3b inception4e inception5b

inception_v3 | | fc |
"""

# Sides in pixels of the images that networks were designed for, where it is not 224.
_EFFICIENT_SIDES = (240, 288, 300, 380, 456, 528, 600)
_SIDES = {
    **{f"efficientnet_b{i + 1}": side for i, side in enumerate(_EFFICIENT_SIDES)},
    **{"efficientnet_v2_s": 384, "efficientnet_v2_m": 480, "efficientnet_v2_l": 480},
    **{"swin_v2_t": 256, "swin_v2_s": 256, "swin_v2_b": 256, "inception_v3": 299},
}


def _builder(name: str) -> Callable[[int], nn.Module]:
    sizes = [int(number) for number in re.findall(r"\d+", name)]
    plain = name.removesuffix("_cifar")
    if re.fullmatch(r"wide_resnet\d+_\d+_cifar", name) and sizes[0] != 50:
        return partial(WideResNet, *sizes)
    if plain.startswith("preact"):
        return partial(PreActResNet, *sizes)
    if name == plain:
        return partial(torchvision_models.build, name)
    stem = plain.startswith("wide") or plain in ("resnet18", "resnet34", "resnet50")
    if stem:
        return partial(torchvision_models.small_stem, plain)
    return partial(CifarResNet, *sizes)


@cache
def _table() -> dict[str, ArchSpec]:
    specs = {}
    for paragraph in _ARCHITECTURES.strip().split("\n\n"):
        names, trunk, head, stages = paragraph.split("|")
        first, *paths = stages.split() or ("1",)
        for name in names.split():
            specs[name] = ArchSpec(
                name=name,
                build=_builder(name),
                head=head.strip(),
                features=partial(_run, trunk) if trunk.strip() else None,
                stages=tuple(Stage(p, int(first) * 2**i) for i, p in enumerate(paths)),
                head_is_linear=not name.startswith("squeezenet"),
                image_size=32 if name.endswith("_cifar") else _SIDES.get(name, 224),
            )
    return specs
