"""The table of architectures: how to build one, and where its head and its stages are."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from fastadv.errors import ConfigError, unknown_name
from fastadv.models import timm_models
from fastadv.models.architecture_names import ARCHITECTURES, TIMM_PREFIX
from fastadv.models.cifar import CifarResNet, WideResNet
from fastadv.models.intermediate import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchSpec:
    """What fastadv knows about one architecture.

    Attributes:
        name: As typed by users.
        build: `build(num_classes)` returns a randomly initialised network that maps
            normalised images [N,3,H,W] to logits [N,num_classes].
        head: Dotted path of the classifier module, or a function that finds it.
        features: `features(net, z)` embeds normalised images as [N,D].
        stages: The stages (for transformers: the blocks), or a function that finds them
            in a network; empty if they are not known.
        head_is_linear: Whether `head(features(net, z))` equals `net(z)`. False for
            SqueezeNet, whose classifier is a 1x1 convolution with a ReLU before the
            pooling, so no function of the pooled embedding gives its logits.
        image_size: Side in pixels that the architecture was designed for.
    """

    name: str
    build: Callable[[int], nn.Module]
    head: str | Callable[[nn.Module], str]
    features: Callable[[nn.Module, Tensor], Tensor]
    stages: tuple[Stage, ...] | Callable[[nn.Module], tuple[Stage, ...]] = ()
    head_is_linear: bool = True
    image_size: int = 224

    def head_path(self, net: nn.Module) -> str:
        """Return the dotted path of the classifier in `net`."""
        return self.head if isinstance(self.head, str) else self.head(net)


def get_spec(arch: str) -> ArchSpec:
    """Look up an architecture by name.

    Args:
        arch: One of `ARCHITECTURES`, or `timm/<name>`.

    Raises:
        ConfigError: The name is unknown (near misses are named), or it asks for timm
            and timm is not installed.
    """
    if arch.startswith(TIMM_PREFIX):
        name = arch.removeprefix(TIMM_PREFIX)
        timm_models.check_name(name)
        return ArchSpec(
            name=arch,
            build=partial(timm_models.build, name),
            head=timm_models.head_path,
            features=timm_models.features,
            stages=timm_models.stages,
        )
    try:
        return _table()[arch]
    except KeyError:
        raise ConfigError(unknown_name("architecture", arch, ARCHITECTURES)) from None


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


def _torchvision_net(name: str, num_classes: int) -> nn.Module:
    net: nn.Module
    if name == "wide_resnet50_4":  # torchvision has a class for it, but no function
        net = ResNet(Bottleneck, [3, 4, 6, 3], num_classes, width_per_group=256)
        return net
    net = torchvision.models.get_model(name, num_classes=num_classes)
    return net


def _small_stem(name: str, num_classes: int) -> nn.Module:
    """Build torchvision's `name` with a 3x3 stride-1 stem and no max-pooling."""
    net = _torchvision_net(name, num_classes)
    stem = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    net.conv1 = stem
    net.maxpool = nn.Identity()
    return net


# Paragraphs of four fields: the names; the steps from the image to the embedding; the path
# of the head; the stride of the first stage with the stages, each of twice the stride before.
_VGG = "| features avgpool flatten() " + " ".join(f"classifier.{i}" for i in range(6))
_ARCHITECTURES = f"""
resnet18 resnet34 resnet50 resnet101 resnext50_32x4d wide_resnet50_2 wide_resnet50_4
wide_resnet101_2 | conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool flatten()
| fc | 4 layer1 layer2 layer3 layer4

resnet18_cifar resnet34_cifar resnet50_cifar wide_resnet50_2_cifar
| conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool flatten()
| fc | 1 layer1 layer2 layer3 layer4

resnet8_cifar resnet14_cifar resnet20_cifar resnet32_cifar resnet44_cifar resnet56_cifar
| conv1 bn1 relu() layer1 layer2 layer3 pool() flatten() | linear | 1 layer1 layer2 layer3

wide_resnet28_4_cifar wide_resnet28_10_cifar
| conv1 block1 block2 block3 bn1 relu() pool() flatten() | fc | 1 block1 block2 block3

densenet121 densenet161 | features relu() pool() flatten() | classifier
| 4 features.denseblock1 features.denseblock2 features.denseblock3 features.denseblock4

shufflenet_v2_x1_0 | conv1 maxpool stage2 stage3 stage4 conv5 mean()
| fc | 8 stage2 stage3 stage4

mnasnet1_0 | layers mean() classifier.0
| classifier.1 | 4 layers.8 layers.9 layers.11 layers.13

mobilenet_v2 | features pool() flatten() classifier.0
| classifier.1 | 2 features.1 features.3 features.6 features.13 features.17

efficientnet_b0 | features avgpool flatten() classifier.0
| classifier.1 | 2 features.1 features.2 features.3 features.5 features.7

vgg11_bn {_VGG} | classifier.6 | 2 features.3 features.7 features.14 features.21 features.28

vgg13_bn {_VGG} | classifier.6 | 2 features.6 features.13 features.20 features.27 features.34

vgg16_bn {_VGG} | classifier.6 | 2 features.6 features.13 features.23 features.33 features.43

vgg19_bn {_VGG} | classifier.6 | 2 features.6 features.13 features.26 features.39 features.52

convnext_tiny | features avgpool classifier.0 classifier.1
| classifier.2 | 4 features.1 features.3 features.5 features.7

squeezenet1_1 | features mean() | classifier.1 | 4 features.4 features.7 features.12
"""


def _builder(name: str) -> Callable[[int], nn.Module]:
    sizes = [int(number) for number in re.findall(r"\d+", name)]
    if name.startswith("wide_resnet28"):
        return partial(WideResNet, *sizes)
    plain = name.removesuffix("_cifar")
    if name == plain:
        return partial(_torchvision_net, name)
    stem = plain.startswith("wide") or plain in ("resnet18", "resnet34", "resnet50")
    return partial(_small_stem, plain) if stem else partial(CifarResNet, *sizes)


@cache
def _table() -> dict[str, ArchSpec]:
    specs = {}
    for paragraph in _ARCHITECTURES.strip().split("\n\n"):
        names, trunk, head, stages = paragraph.split("|")
        first, *paths = stages.split()
        for name in names.split():
            specs[name] = ArchSpec(
                name=name,
                build=_builder(name),
                head=head.strip(),
                features=partial(_run, trunk),
                stages=tuple(Stage(p, int(first) * 2**i) for i, p in enumerate(paths)),
                head_is_linear=not name.startswith("squeezenet"),
                image_size=32 if name.endswith("_cifar") else 224,
            )
    return specs
