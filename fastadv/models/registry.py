"""The table of architectures: what a name builds, and where its head is.

An entry says four things: how to build the network, the path of its classifier, how
the embedding that feeds the classifier is computed, and where published weights come
from. Weights on disk are `checkpoint.py`; normalisation is `normalized.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from fastadv.errors import ConfigError, unknown_name
from fastadv.models import timm_models
from fastadv.models.cifar import CifarResNet, WideResNet
from fastadv.models.names import ARCHITECTURES, TIMM_PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchSpec:
    """What fastadv knows about one architecture.

    Attributes:
        name: As typed by users.
        build: `build(num_classes)` returns a randomly initialised network that maps
            normalised images [N,3,H,W] to logits [N,num_classes].
        head: Dotted path of the classifier module, or a function that finds it.
        features: `features(net, z)` embeds normalised images as [N,D].
        head_is_linear: Whether `head(features(net, z))` equals `net(z)`. False for
            SqueezeNet, whose classifier is a 1x1 convolution with a ReLU before the
            pooling, so no function of the pooled embedding gives its logits.
        image_size: Side in pixels that the architecture was designed for.
    """

    name: str
    build: Callable[[int], nn.Module]
    head: str | Callable[[nn.Module], str]
    features: Callable[[nn.Module, Tensor], Tensor]
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
        return _timm_spec(arch)
    try:
        return _table()[arch]
    except KeyError:
        raise ConfigError(unknown_name("architecture", arch, ARCHITECTURES)) from None


@cache
def _table() -> dict[str, ArchSpec]:
    specs = [*_torchvision_specs(), *_small_image_specs()]
    return {spec.name: spec for spec in specs}


def _timm_spec(arch: str) -> ArchSpec:
    name = arch.removeprefix(TIMM_PREFIX)
    timm_models.check_name(name)
    return ArchSpec(
        name=arch,
        build=partial(timm_models.build, name),
        head=timm_models.head_path,
        features=timm_models.features,
    )


# ---- embeddings, one function per family of forward passes ----
# These repeat a few lines of torchvision's forward instead of hooking the classifier:
# no state, no hook to leak, safe under threads and torch.compile.


def _resnet_features(net: Any, z: Tensor) -> Tensor:
    x = net.maxpool(net.relu(net.bn1(net.conv1(z))))
    x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    return torch.flatten(net.avgpool(x), 1)


def _densenet_features(net: Any, z: Tensor) -> Tensor:
    x = F.relu(net.features(z), inplace=True)
    return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


def _shufflenet_features(net: Any, z: Tensor) -> Tensor:
    x = net.stage4(net.stage3(net.stage2(net.maxpool(net.conv1(z)))))
    embedding: Tensor = net.conv5(x).mean([2, 3])
    return embedding


def _mnasnet_features(net: Any, z: Tensor) -> Tensor:
    return _before_last(net.classifier, net.layers(z).mean([2, 3]))


def _mobilenet_features(net: Any, z: Tensor) -> Tensor:
    x = F.adaptive_avg_pool2d(net.features(z), 1)
    return _before_last(net.classifier, torch.flatten(x, 1))


def _avgpool_features(net: Any, z: Tensor) -> Tensor:
    x = net.avgpool(net.features(z))
    return _before_last(net.classifier, torch.flatten(x, 1))


def _convnext_features(net: Any, z: Tensor) -> Tensor:
    return _before_last(net.classifier, net.avgpool(net.features(z)))


def _squeezenet_features(net: Any, z: Tensor) -> Tensor:
    embedding: Tensor = net.features(z).mean([2, 3])
    return embedding


def _cifar_features(net: Any, z: Tensor) -> Tensor:
    embedding: Tensor = net.embed(z)
    return embedding


def _before_last(classifier: nn.Sequential, x: Tensor) -> Tensor:
    for layer in list(classifier)[:-1]:
        x = layer(x)
    return x


# ---- builders ----


def _torchvision_net(name: str, num_classes: int) -> nn.Module:
    net: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes
    )
    return net


def _wide_resnet50_4(num_classes: int) -> nn.Module:
    net: nn.Module = ResNet(
        Bottleneck, [3, 4, 6, 3], num_classes=num_classes, width_per_group=256
    )
    return net


def _small_stem(name: str, num_classes: int) -> nn.Module:
    """Build torchvision's `name` with a 3x3 stride-1 stem and no max-pooling."""
    net = _torchvision_net(name, num_classes)
    stem = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    net.conv1 = stem
    net.maxpool = nn.Identity()
    return net


# ---- the table ----


def _torchvision_specs() -> Iterable[ArchSpec]:
    resnets = (
        "resnet18 resnet34 resnet50 resnet101 resnext50_32x4d "
        "wide_resnet50_2 wide_resnet101_2"
    )
    families: list[tuple[str, str, Callable[[nn.Module, Tensor], Tensor]]] = [
        (resnets, "fc", _resnet_features),
        ("densenet121 densenet161", "classifier", _densenet_features),
        ("shufflenet_v2_x1_0", "fc", _shufflenet_features),
        ("mnasnet1_0", "classifier.1", _mnasnet_features),
        ("mobilenet_v2", "classifier.1", _mobilenet_features),
        ("efficientnet_b0", "classifier.1", _avgpool_features),
        ("vgg11_bn vgg13_bn vgg16_bn vgg19_bn", "classifier.6", _avgpool_features),
        ("convnext_tiny", "classifier.2", _convnext_features),
        ("squeezenet1_1", "classifier.1", _squeezenet_features),
    ]
    for names, head, features in families:
        for name in names.split():
            yield ArchSpec(
                name=name,
                build=partial(_torchvision_net, name),
                head=head,
                features=features,
                head_is_linear=not name.startswith("squeezenet"),
            )
    yield ArchSpec(
        name="wide_resnet50_4",
        build=_wide_resnet50_4,
        head="fc",
        features=_resnet_features,
    )


def _small_image_specs() -> Iterable[ArchSpec]:
    small = partial(ArchSpec, image_size=32)
    for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2"):
        yield small(
            name=f"{name}_cifar",
            build=partial(_small_stem, name),
            head="fc",
            features=_resnet_features,
        )
    for depth in (8, 14, 20, 32, 44, 56):
        yield small(
            name=f"resnet{depth}_cifar",
            build=partial(CifarResNet, depth),
            head="linear",
            features=_cifar_features,
        )
    for width in (4, 10):
        yield small(
            name=f"wide_resnet28_{width}_cifar",
            build=partial(WideResNet, 28, width),
            head="fc",
            features=_cifar_features,
        )
