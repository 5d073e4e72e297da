"""The table of architectures: what a name builds, and where its head is.

An entry says four things: how to build the network, the path of its classifier, how
the embedding that feeds the classifier is computed, and where published weights come
from. Weights on disk are `checkpoint.py`; normalisation is `normalized.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from fastadv.errors import ConfigError, unknown_name
from fastadv.models import timm_models
from fastadv.models.activations import Stage
from fastadv.models.architecture_names import ARCHITECTURES, TIMM_PREFIX
from fastadv.models.cifar import CifarResNet, WideResNet


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
        stages=timm_models.stages,
    )


# ---- embeddings ----

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

# The steps from the image to the embedding.
_RESNET = "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool flatten()"
_CIFAR_RESNET = "conv1 bn1 relu() layer1 layer2 layer3 pool() flatten()"
_WIDE_RESNET = "conv1 block1 block2 block3 bn1 relu() pool() flatten()"
# The stride of the first stage, and the stages, each of twice the stride before.
_LAYERS = "4 layer1 layer2 layer3 layer4"
_VGG_POOLS = {
    "vgg11_bn": (3, 7, 14, 21, 28),
    "vgg13_bn": (6, 13, 20, 27, 34),
    "vgg16_bn": (6, 13, 23, 33, 43),
    "vgg19_bn": (6, 13, 26, 39, 52),
}


def _stages(text: str) -> tuple[Stage, ...]:
    first, *names = text.split()
    return tuple(Stage(name, int(first) * 2**i) for i, name in enumerate(names))


def _torchvision_specs() -> Iterable[ArchSpec]:
    resnets = (
        "resnet18 resnet34 resnet50 resnet101 resnext50_32x4d "
        "wide_resnet50_2 wide_resnet101_2"
    )
    for names, head, trunk, stages in (
        (resnets, "fc", _RESNET, _LAYERS),
        (
            "densenet121 densenet161",
            "classifier",
            "features relu() pool() flatten()",
            "4 " + " ".join(f"features.denseblock{i}" for i in range(1, 5)),
        ),
        (
            "shufflenet_v2_x1_0",
            "fc",
            "conv1 maxpool stage2 stage3 stage4 conv5 mean()",
            "8 stage2 stage3 stage4",
        ),
        (
            "mnasnet1_0",
            "classifier.1",
            "layers mean() classifier.0",
            "4 layers.8 layers.9 layers.11 layers.13",
        ),
        (
            "mobilenet_v2",
            "classifier.1",
            "features pool() flatten() classifier.0",
            "2 features.1 features.3 features.6 features.13 features.17",
        ),
        (
            "efficientnet_b0",
            "classifier.1",
            "features avgpool flatten() classifier.0",
            "2 features.1 features.2 features.3 features.5 features.7",
        ),
        *(
            (
                name,
                "classifier.6",
                "features avgpool flatten() "
                + " ".join(f"classifier.{i}" for i in range(6)),
                "2 " + " ".join(f"features.{i}" for i in pools),
            )
            for name, pools in _VGG_POOLS.items()
        ),
        (
            "convnext_tiny",
            "classifier.2",
            "features avgpool classifier.0 classifier.1",
            "4 features.1 features.3 features.5 features.7",
        ),
        (
            "squeezenet1_1",
            "classifier.1",
            "features mean()",
            "4 features.4 features.7 features.12",
        ),
    ):
        for name in names.split():
            yield ArchSpec(
                name=name,
                build=partial(_torchvision_net, name),
                head=head,
                features=partial(_run, trunk),
                stages=_stages(stages),
                head_is_linear=not name.startswith("squeezenet"),
            )
    yield ArchSpec(
        name="wide_resnet50_4",
        build=_wide_resnet50_4,
        head="fc",
        features=partial(_run, _RESNET),
        stages=_stages(_LAYERS),
    )


def _small_image_specs() -> Iterable[ArchSpec]:
    small = partial(ArchSpec, image_size=32)
    for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2"):
        yield small(
            name=f"{name}_cifar",
            build=partial(_small_stem, name),
            head="fc",
            features=partial(_run, _RESNET),
            stages=_stages(_LAYERS.replace("4", "1", 1)),
        )
    for depth in (8, 14, 20, 32, 44, 56):
        yield small(
            name=f"resnet{depth}_cifar",
            build=partial(CifarResNet, depth),
            head="linear",
            features=partial(_run, _CIFAR_RESNET),
            stages=_stages("1 layer1 layer2 layer3"),
        )
    for width in (4, 10):
        yield small(
            name=f"wide_resnet28_{width}_cifar",
            build=partial(WideResNet, 28, width),
            head="fc",
            features=partial(_run, _WIDE_RESNET),
            stages=_stages("1 block1 block2 block3"),
        )
