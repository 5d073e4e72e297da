"""Key names of other libraries and people for the networks we build.

Only names are translated; no number changes. Prefixes are not looked at: the rules translate
layers wherever they stand, and `fit_weights.py` finds the prefix afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

JOIN: Final = " + "
"""What stands between the paths of tensors of a file that were put together."""

# Keys of the file and tensors, by the keys of the network that is built.
Renamed = dict[str, tuple[str, Tensor]]
_Rule = tuple[str, str | Callable[[re.Match[str]], str]]

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
_LUKEMELAS_BLOCK = re.compile(r"(.*?)\b_blocks\.(\d+)\.(\w+)\.(\w+)$")
_LUKEMELAS_OUTSIDE = re.compile(r"(|.*\.)(_conv_stem|_bn0|_conv_head|_bn1|_fc)\.(\w+)$")
_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")


def from_lukemelas(keys: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Translate an EfficientNet's keys to those of timm; other keys are left out.

    Args:
        keys: Keys such as `_blocks.3._bn0.weight`, below any prefix.
        wanted: Keys of timm's network, which say how many blocks a stage has.

    Source: The keys of github.com/lukemelas/EfficientNet-PyTorch, `model.py`.
    """
    places = {match.groups() for key in wanted if (match := _TIMM_BLOCK.match(key))}
    blocks = sorted(places, key=lambda place: (int(place[0]), int(place[1])))
    keys = list(keys)
    widened = {key.rpartition("._expand_conv.")[0] for key in keys}
    translated = {}
    for key in keys:
        if match := _LUKEMELAS_BLOCK.match(key):
            before, index, layer, rest = match.groups()
            wide = f"{before}_blocks.{index}" in widened
            names = _LUKEMELAS_WIDENED if wide else _LUKEMELAS_PLAIN
            if int(index) < len(blocks) and layer in names:
                stage, place = blocks[int(index)]
                new = f"{before}blocks.{stage}.{place}.{names[layer]}.{rest}"
                translated[key] = new
        elif match := _LUKEMELAS_OUTSIDE.match(key):
            before, layer, rest = match.groups()
            translated[key] = f"{before}{_LUKEMELAS_STEM[layer]}.{rest}"
    return translated


_PROJECTIONS: Final = {"q": "query", "k": "key", "v": "value", "o": "proj"}
# Rules of translation: patterns of a key and what takes their place, one after another.
_RULES: Final[dict[str, tuple[_Rule, ...]]] = {
    # DenseNets of torchvision before 0.3.
    "torchvision of 2017": ((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),),
    "DataParallel within the network": ((r"(^|\.)module\.", r"\1"),),
    # kuangliu/pytorch-cifar, and with it the CIFAR networks of robustness, AWP and many more.
    "kuangliu/pytorch-cifar": (
        (r"(layer\d\.\d+)\.(?:shortcut|skip)\.([01])\.", r"\1.downsample.\2."),
        (r"(^|\.)linear\.(weight|bias)$", r"\1fc.\2"),
    ),
    "Detectron2": (
        (r"(^|\.)stem\.conv1\.norm\.", r"\1bn1."),
        (r"(^|\.)stem\.", r"\1"),
        (r"\bres(\d)\.", lambda m: f"layer{int(m[1]) - 1}."),
        (r"\bshortcut\.norm\.", "downsample.1."),
        (r"\bshortcut\.", "downsample.0."),
        (r"\bconv([123])\.norm\.", r"bn\1."),
    ),
    "ResNets of transformers": (
        (r"(^|\.)embedder\.embedder\.convolution\.", r"\1conv1."),
        (r"(^|\.)embedder\.embedder\.normalization\.", r"\1bn1."),
        (
            r"\bencoder\.stages\.(\d)\.layers\.(\d+)\.",
            lambda m: f"layer{int(m[1]) + 1}.{m[2]}.",
        ),
        (
            r"\blayer\.(\d)\.convolution\.",
            lambda m: f"conv{int(m[1]) + 1}.",
        ),
        (
            r"\blayer\.(\d)\.normalization\.",
            lambda m: f"bn{int(m[1]) + 1}.",
        ),
        (r"\bshortcut\.convolution\.", "downsample.0."),
        (r"\bshortcut\.normalization\.", "downsample.1."),
    ),
    "ViTs of transformers": (
        (r"(^|\.)embeddings\.cls_token$", r"\1cls_token"),
        (r"(^|\.)embeddings\.position_embeddings$", r"\1pos_embed"),
        (r"(^|\.)embeddings\.patch_embeddings\.projection\.", r"\1patch_embed.proj."),
        (r"(^|\.)encoder\.layer\.(\d+)\.", r"\1blocks.\2."),
        (r"(^|\.)layers\.(\d+)\.", r"\1blocks.\2."),
        (r"\battention\.([qkvo])_proj\.", lambda m: f"attn.{_PROJECTIONS[m[1]]}."),
        (r"\blayernorm_before\.", "norm1."),
        (r"\blayernorm_after\.", "norm2."),
        (r"\battention\.output\.dense\.", "attn.proj."),
        (r"\battention\.attention\.(query|key|value)\.", r"attn.\1."),
        (r"\bintermediate\.dense\.", "mlp.fc1."),
        (r"\boutput\.dense\.", "mlp.fc2."),
        (r"(^|\.)layernorm\.", r"\1norm."),
        # and of DINOv2
        (r"(^|\.)embeddings\.(mask_token|register_tokens)$", r"\1\2"),
        (r"\blayer_scale([12])\.lambda1$", r"ls\1.gamma"),
        (r"\bmlp\.weights_in\.", "mlp.w12."),
        (r"\bmlp\.weights_out\.", "mlp.w3."),
    ),
    # facebookresearch/dinov2 trains with blocks in chunks.
    "DINOv2's training": (
        (r"\bblocks\.\d+\.(\d+)\.(?=norm|attn|ls|mlp)", r"blocks.\1."),
    ),
    # Image towers; the projection behind them is no part of the network.
    "OpenAI's CLIP": (
        (r"(^|\.)class_embedding$", r"\1cls_token"),
        (r"(^|\.)positional_embedding$", r"\1pos_embed"),
        (r"(^|\.)conv1\.", r"\1patch_embed.proj."),
        (r"(^|\.)transformer\.resblocks\.", r"\1blocks."),
        (r"(^|\.)ln_pre\.", r"\1norm_pre."),
        (r"(^|\.)ln_post\.", r"\1norm."),
        (r"\bln_([12])\.", r"norm\1."),
        (r"\battn\.in_proj_", "attn.qkv."),
        (r"\battn\.out_proj\.", "attn.proj."),
        (r"\bmlp\.c_fc\.", "mlp.fc1."),
        (r"\bmlp\.c_proj\.", "mlp.fc2."),
    ),
    "CLIPs of transformers": (
        (r"(^|\.)embeddings\.class_embedding$", r"\1cls_token"),
        (r"(^|\.)embeddings\.position_embedding\.weight$", r"\1pos_embed"),
        (r"(^|\.)embeddings\.patch_embedding\.", r"\1patch_embed.proj."),
        (r"(^|\.)pre_layrnorm\.", r"\1norm_pre."),
        (r"(^|\.)post_layernorm\.", r"\1norm."),
        (r"(^|\.)encoder\.layers\.(\d+)\.", r"\1blocks.\2."),
        (r"\blayer_norm([12])\.", r"norm\1."),
        (r"\bself_attn\.out_proj\.", "attn.proj."),
        (
            r"\bself_attn\.([qkv])_proj\.",
            lambda m: f"attn.{_PROJECTIONS[m[1]]}.",
        ),
    ),
}


Translate = Callable[[Iterable[str]], Renamed]
"""From the keys of the network that is built to the tensors of a file by such keys."""


def dialects(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Translate]]:
    """Yield the tensors under their own keys, and in each dialect that their keys speak.

    Args:
        tensors: The tensors of a file by path.

    Yields:
        The name of the dialect (empty for their own keys) and the translation.
    """
    own = {key: (key, tensor) for key, tensor in tensors.items()}
    yield "", lambda _: own
    for name, rules in _RULES.items():
        translated = {key: _apply(rules, key) for key in tensors}
        if any(key != new for key, new in translated.items()):
            renamed = _joined({new: (k, tensors[k]) for k, new in translated.items()})
            yield name, lambda _, renamed=renamed: renamed  # type: ignore[misc]
    if any("_conv_stem." in key for key in tensors):

        def lukemelas(wanted: Iterable[str]) -> Renamed:
            names = from_lukemelas(tensors, wanted)
            return {names.get(k, k): (k, tensor) for k, tensor in tensors.items()}

        yield "lukemelas/EfficientNet-PyTorch", lukemelas
    if any(key.endswith("_orig") for key in tensors):
        unpruned = _unpruned(tensors)
        yield "torch.nn.utils.prune", lambda _: unpruned


def _apply(rules: Iterable[_Rule], key: str) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _joined(renamed: Renamed) -> Renamed:
    """Put query, key and value into the one tensor that timm's attention has."""
    joined = dict(renamed)
    for key in renamed:
        if ".attn.query." not in key:
            continue
        parts = [
            key.replace(".query.", f".{part}.") for part in ("query", "key", "value")
        ]
        if all(part in renamed for part in parts):
            paths, tensors = zip(*(joined.pop(part) for part in parts), strict=True)
            whole = JOIN.join(paths), torch.cat(tensors)
            joined[key.replace(".query.", ".qkv.")] = whole
    return joined


def _unpruned(tensors: Mapping[str, Tensor]) -> Renamed:
    """Multiply pruned weights by their masks, as the forward pass did."""
    renamed = {}
    for key, tensor in tensors.items():
        bare = key.removesuffix("_orig")
        if bare != key and f"{bare}_mask" in tensors:
            renamed[bare] = key, tensor * tensors[f"{bare}_mask"]
        elif not key.endswith("_mask"):
            renamed[key] = key, tensor
    return renamed


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
