"""Checkpoints of other programs: their wrappers, and what their file names say.

Prefixes are detected, never assumed, and what is not understood is left in place for
the caller to refuse by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastadv.errors import CheckpointError, first_few
from fastadv.models.architecture_names import TIMM_PREFIX
from fastadv.models.input_conventions import CONVENTIONS
from fastadv.models.published import facts_from_name
from fastadv.preparation import Preparation

_PARALLEL = ("module.", "_orig_mod.")
_WRAPPERS = (*_PARALLEL, "model.", "net.")
_NORMALIZERS = (
    ("normalizer.new_mean", "normalizer.new_std"),  # robustness
    ("normalize.mean", "normalize.std"),  # RobustBench
    ("mean", "std"),  # NormalizedModel.state_dict()
)
_ATTACKER = "attacker."
_FEW = 4  # names that a message lists
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_TORCHVISION_NAME = re.compile(r"(?P<arch>\w+)-[0-9a-f]{8}$")
# Of the networks of Salman et al. 2020.
PUBLISHED_PREPARATION = Preparation(resize=256, crop=224)
# lukemelas' ports of Google's weights, which want TensorFlow's padding and BatchNorm.
_EFFICIENTNET_NAME = re.compile(
    r"(?P<adv>adv-)?efficientnet-(?P<variant>b[0-8]|lite[0-4])-[0-9a-f]{8}$"
)
# The networks that Geirhos et al. 2019 (1811.12231) trained on stylized images.
_STYLIZED_NAME = re.compile(
    r"(?P<arch>resnet50|vgg16|alexnet)_(train|finetune)_\d+_epochs[\w.]*-[0-9a-f]{8}$"
)


@dataclass(frozen=True, slots=True)
class BareWeights:
    """Weights under the network's own keys, with what the file says beside them.

    Attributes:
        state: The weights.
        mean, std: The normaliser, or None where there is none.
        arch: The architecture, which only files of `save_model` state.
        input: The text about the input that a header of another program holds.
    """

    state: dict[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    arch: str | None = None
    input: str | None = None


def facts_from_filename(path: Path) -> dict[str, Any]:
    """Return what the name of a published file says, as attributes of `Weights`.

    `resnet18_l2_eps3.ckpt` (linf names state the radius in 255ths) and
    `resnet18-0676ba61.pth` state their architecture, EfficientNets also their input:
    EfficientNet-Lite was trained on [-1, 1], as were AdvProp's; with the statistics of
    ImageNet it still runs, and loses about ten points of accuracy. Files of Geirhos et
    al., such as `resnet50_train_60_epochs-c8e5653e.pth.tar`, are texture-trained.
    """
    if published := facts_from_name(path.stem):
        known = dict(zip(("arch", "norm", "eps"), published, strict=True))
        return known | {"preparation": PUBLISHED_PREPARATION}
    if match := _TORCHVISION_NAME.match(path.stem):
        return {"arch": match["arch"]}
    if match := _STYLIZED_NAME.match(path.name.partition(".pth")[0]):
        return {"arch": match["arch"], "eps": 0.0, "kind": "texture"}
    if match := _EFFICIENTNET_NAME.match(path.stem):
        half = match["adv"] or match["variant"].startswith("lite")
        return {
            "arch": f"{TIMM_PREFIX}tf_efficientnet_{match['variant']}",
            "convention": CONVENTIONS["half" if half else "imagenet"],
        }
    return {}


def find_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Return the state dict inside what `torch.load` returned.

    Raises:
        CheckpointError: There is none; the message lists what there is.
    """
    wrapped = content if isinstance(content, Mapping) else {}
    for candidate in (wrapped.get("model"), wrapped.get("state_dict"), content):
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(key, str) for key in candidate)
            and all(isinstance(value, Tensor) for value in candidate.values())
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
    keys = _strip(dict(state), _PARALLEL)
    copy = {
        key.removeprefix(_ATTACKER): keys.pop(key)
        for key in list(keys)
        if key.startswith(_ATTACKER)
    }
    mean, std = _take_normalizer(keys, path)
    strangers = sorted(
        _ATTACKER + key
        for key in copy.keys() - keys.keys()
        if not key.startswith("normalize.")
    )
    if strangers:
        raise CheckpointError(
            f"{path} holds weights only in its attacker copy: {first_few(strangers, _FEW)}; "
            "this is no checkpoint of one model, so none of it is used"
        )
    other = sorted(k for k in copy if k in keys and not same_tensor(keys[k], copy[k]))
    if other:
        raise CheckpointError(
            f"{path} holds two different models: the attacker's copy has other values in "
            f"{first_few(other, _FEW)}; save the one you mean by itself"
        )
    keys = _strip(keys, _WRAPPERS)
    keys = {_OLD_DENSENET.sub(r"\1\2.", key): value for key, value in keys.items()}
    return BareWeights(keys, mean, std)


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape and values."""
    # The copies of published files share memory, which makes this free.
    shared = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    return a.shape == b.shape and (shared or torch.equal(a, b))


def _strip(keys: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Remove the prefixes that all keys share, in any nesting."""
    for prefix in prefixes:
        if keys and all(key.startswith(prefix) for key in keys):
            bare = {key.removeprefix(prefix): value for key, value in keys.items()}
            return _strip(bare, prefixes)
    return keys


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
