"""Names of the architectures and the ImageNet statistics, without torch.

Command lines list names and complete flags from here, so nothing heavy may be
imported. What a name builds is in `registry.py`; a test keeps the two equal.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Final

from fastadv.errors import ConfigError, unknown_name

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
"""Per-channel RGB mean of ImageNet in [0, 1] pixel units."""

IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""Per-channel RGB standard deviation of ImageNet in [0, 1] pixel units."""

TIMM_PREFIX: Final = "timm/"

MODEL_FILE: Final = "model.safetensors"
"""Weights in a folder: a run's checkpoint, or the layout of timm and Hugging Face."""

SALMAN2020: Final = (
    *("resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4", "densenet161"),
    *("mnasnet1_0", "mobilenet_v2", "resnext50_32x4d", "shufflenet_v2_x1_0"),
    "vgg16_bn",
)
"""The ten architectures of Salman et al. 2020 (arXiv 2007.08489)."""

_REGNETS: Final = ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")

_IMAGENET: Final = (
    *("alexnet", "convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    *("densenet121", "densenet169", "densenet201"),
    *(f"efficientnet_b{i}" for i in range(8)),
    *("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
    *("googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mnasnet0_75", "mnasnet1_3"),
    *("mobilenet_v3_large", "mobilenet_v3_small"),
    *(f"regnet_{kind}_{size}" for kind in "xy" for size in _REGNETS),
    "regnet_y_128gf",
    *("resnet34", "resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("squeezenet1_0", "squeezenet1_1"),
    *("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg19_bn"),
    *("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14", "wide_resnet101_2"),
)

_SMALL_IMAGES: Final = (
    *(f"resnet{depth}_cifar" for depth in (8, 14, 20, 32, 44, 56)),
    *("resnet18_cifar", "resnet34_cifar", "resnet50_cifar", "wide_resnet50_2_cifar"),
    *("wide_resnet28_4_cifar", "wide_resnet28_10_cifar", "wide_resnet34_10_cifar"),
    *("wide_resnet34_20_cifar", "wide_resnet70_16_cifar", "preact_resnet18_cifar"),
    *("preact_resnet34_cifar", "preact_resnet50_cifar"),
)

ARCHITECTURES: Final[tuple[str, ...]] = SALMAN2020 + _IMAGENET + _SMALL_IMAGES
"""Every built-in architecture, all classifiers of torchvision among them; `timm/<name>`
and networks of your own are accepted besides."""


EXPORT_FORMATS: Final = {
    "safetensors": "one file that fastadv, and any reader of safetensors, loads",
    "torchvision": "state dict (.pth) for torchvision.models.ARCH().load_state_dict",
    "timm": "folder for timm.create_model('local-dir:FOLDER', pretrained=True)",
    "detectron2": "ResNet backbone (.pkl) and a config (.yaml) for Detectron2",
    "robustbench": "state dict (.pt) of a plain module of [0, 1] images",
    "onnx": "ONNX graph of [0, 1] images, any batch size and, where it can be, any size",
    "torch_export": "program (.pt2) of [0, 1] images for torch.export.load, likewise",
}
"""What `fastadv-models convert --to` writes."""

_SUFFIXES: Final = {
    "safetensors": (".safetensors",),
    "torchvision": (".pth", ".pt"),
    "timm": (),  # a folder, of any name
    "detectron2": (".pkl",),
    "robustbench": (".pt", ".pth"),
    "onnx": (".onnx",),
    "torch_export": (".pt2",),
}


def check_export(to: str, path: Path) -> None:
    """Refuse a format that is none of `EXPORT_FORMATS`, and a file it is not known by.

    Raises:
        ConfigError: The format is unknown, or the path does not end as its files do.
    """
    if to not in EXPORT_FORMATS:
        raise ConfigError(unknown_name("`to`", to, EXPORT_FORMATS))
    wanted = _SUFFIXES[to]
    if wanted and path.suffix not in wanted:
        raise ConfigError(
            f"{path} must end in {' or '.join(wanted)} for `to={to}`, by which its "
            "readers know it"
        )


def list_models(pattern: str = "*") -> list[str]:
    """List architecture names that match a shell-style pattern, sorted.

    Args:
        pattern: Wildcards `*`, `?` and `[...]`. A pattern that starts with `timm/`
            lists timm's classifiers instead, which imports timm and torch.

    Raises:
        ConfigError: `pattern` asks for timm, which is not installed.

    Example:
        >>> list_models("wide_resnet50*")
        ['wide_resnet50_2', 'wide_resnet50_2_cifar', 'wide_resnet50_4']
    """
    if pattern.startswith(TIMM_PREFIX):
        from fastadv.models.timm_models import import_timm

        names = import_timm().list_models(pattern.removeprefix(TIMM_PREFIX))
        return sorted(TIMM_PREFIX + name for name in names)
    return sorted(fnmatch.filter(ARCHITECTURES, pattern))
