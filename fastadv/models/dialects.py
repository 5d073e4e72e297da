"""Key names of other libraries for the networks we build: Detectron2, lukemelas, timm.

Only names are translated; no number changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from torch import Tensor

_LUKEMELAS_STEM: Final = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# Inside a block, with and without the convolution that widens.
_LUKEMELAS_WIDENED: Final = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
}
_LUKEMELAS_PLAIN: Final = _LUKEMELAS_WIDENED | {
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LUKEMELAS_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)$")
_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")


def from_lukemelas(
    state: Mapping[str, Tensor], wanted: Iterable[str]
) -> dict[str, Tensor]:
    """Give an EfficientNet's weights timm's keys; any other state comes back as it is.

    Args:
        state: Weights with keys such as `_blocks.3._bn0.weight`.
        wanted: Keys of timm's network, which say how many blocks a stage has.

    Returns:
        The same tensors; unknown keys stay as they are, so that they are refused by name.

    Source: The keys of github.com/lukemelas/EfficientNet-PyTorch, `model.py`.
    """
    if "_conv_stem.weight" not in state:
        return dict(state)
    places = {match.groups() for key in wanted if (match := _TIMM_BLOCK.match(key))}
    blocks = sorted(places, key=lambda place: (int(place[0]), int(place[1])))
    widened = {key.split(".")[1] for key in state if "._expand_conv." in key}
    translated = {}
    for key, value in state.items():
        layer, _, rest = key.partition(".")
        new = f"{_LUKEMELAS_STEM[layer]}.{rest}" if layer in _LUKEMELAS_STEM else key
        match = _LUKEMELAS_BLOCK.match(key)
        if match and int(match[1]) < len(blocks):
            names = _LUKEMELAS_WIDENED if match[1] in widened else _LUKEMELAS_PLAIN
            stage, place = blocks[int(match[1])]
            if match[2] in names:
                new = f"blocks.{stage}.{place}.{names[match[2]]}.{match[3]}"
        translated[new] = value
    return translated


_D2_RULES: Final = (
    (re.compile(r"^(conv1|bn1)\."), r"stem.\1."),
    (re.compile(r"\bbn([123])\."), r"conv\1.norm."),
    (re.compile(r"\bdownsample\.0\."), "shortcut."),
    (re.compile(r"\bdownsample\.1\."), "shortcut.norm."),
)


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a torchvision ResNet's trunk the keys of Detectron2's backbone.

    The classifier and BatchNorm's counters, which a backbone has no place for, are
    left out.

    Source: The file `tools/convert-torchvision-to-d2.py` of Detectron2.
    """
    translated = {}
    for key, value in state.items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        for pattern, replacement in _D2_RULES:
            key = pattern.sub(replacement, key)
        key = re.sub(r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}.", key)
        translated[key] = value
    return translated


DETECTRON2_CONFIGS: Final[dict[str, dict[str, int]]] = {
    "resnet18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "resnet34": {"DEPTH": 34, "RES2_OUT_CHANNELS": 64},
    "resnet50": {"DEPTH": 50},
    "resnet101": {"DEPTH": 101},
    "resnext50_32x4d": {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4},
    "wide_resnet50_2": {"DEPTH": 50, "WIDTH_PER_GROUP": 128},
    "wide_resnet50_4": {"DEPTH": 50, "WIDTH_PER_GROUP": 256},
    "wide_resnet101_2": {"DEPTH": 101, "WIDTH_PER_GROUP": 128},
}
"""What `MODEL.RESNETS` of Detectron2 must say to build the same network."""

TIMM_TWINS: Final = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d"),
    *("wide_resnet50_2", "wide_resnet101_2", "densenet121", "densenet161"),
)
"""Architectures of torchvision whose keys, shapes and arithmetic timm's namesakes share."""
