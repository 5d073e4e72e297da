"""Find a network among the tensors of a file, under whatever prefix and in known dialects.

A network fits a prefix if every tensor it needs is there with its shape, but for the
classifier, which may have any number of classes or be missing. What else is below the prefix
must be known to be no part of a network: another layer would make it another network. What
lies outside of the prefix belongs to the training (losses, projection heads, copies).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from fastadv.models.dialects import JOIN, dialects

BY_ORDER = "order"
"""The dialect of a network whose layers were matched by their order and shapes."""

_STATISTICS = ("running_mean", "running_var")
_COUNTER = "num_batches_tracked"  # missing in files older than torch 0.4.1
# Buffers that networks compute anew, and what profilers leave in every module.
_COMPUTED = re.compile(
    r"(?:.*\.)?(?:num_batches_tracked|relative_position_index|relative_coords_table|attn_mask"
    r"|position_ids|total_ops|total_params)$"
)
# Parts of a training that stand beside the layers of a network, by their first word.
_BESIDE = re.compile(
    r"(?:criteri|loss|proj|predict|prototype|queue|optim|sched|metric|acc|auroc|f1|confusion"
    r"|n_averaged|initted|step|epoch|mixup|cutmix|center|log_var|temperature|logit_scale|aux"
    r"|norm(?:ali[sz]er?|ali[sz]ation)\.|(?:new_|pixel_|image_|img_|_)?(?:mean|std|mu|sigma)$"
    r"|sub_block|mask_token|decoder|ema|swa|teacher|momentum|attacker|discriminator)",
    re.I,
)
# Names of a classifier that stands beside a network, or has another name in it.
_HEADS = (
    *("fc", "linear", "classifier", "head", "last_linear", "logits", "output", "out"),
    *("cls", "cls_head", "fc_out", "classification_head", "linear_head", "heads.head"),
)
# Ways to say that a network is the first half of a contrastive method.
_SELF_SUPERVISED = re.compile(
    r"encoder_[qk]|(?:base|momentum|online|target|query|key)_(?:encoder|network)"
)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What an architecture expects of a file.

    Attributes:
        shapes: The shape of each tensor by its key.
        heads: The paths of the classifiers; nearly always one.
    """

    shapes: dict[str, torch.Size]
    heads: tuple[str, ...]

    @classmethod
    def of(cls, state: Mapping[str, Tensor], heads: tuple[str, ...]) -> Blueprint:
        """Return the blueprint of a network with this state dict."""
        return cls({key: value.shape for key, value in state.items()}, heads)

    @property
    def body(self) -> dict[str, torch.Size]:
        """The shapes of all tensors but those of the classifiers."""
        return {k: v for k, v in self.shapes.items() if not self.in_head(k)}

    def matches(self, key: str, tensor: Tensor) -> bool:
        """Return whether a tensor has the shape of a key; classes may be of any number."""
        free = int(self.in_head(key))
        known = self.shapes.get(key, torch.Size((0,)))  # the bias of a fitted head
        return tensor.dim() > 0 and tensor.shape[free:] == known[free:]

    def in_head(self, key: str) -> bool:
        """Return whether a key is one below a classifier."""
        return any(key.startswith(f"{head}.") for head in self.heads)


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is known of an architecture before it is built, which takes time.

    Attributes:
        steps: Names of modules that are in the keys of each of its files.
        draw: A function that returns the blueprint.
    """

    steps: frozenset[str]
    draw: Callable[[], Blueprint]


Plan: TypeAlias = Blueprint | Sketch


@dataclass(frozen=True, slots=True)
class Fit:
    """A network that was found in a file.

    Attributes:
        prefix: The path of the network in the file.
        dialect: The program whose keys were translated; empty for the network's own.
        state: The weights under the network's own keys.
        classes: Number of classes; 0 for a network without its classifier.
        used: The paths in the file that `state` was made of.
        strange: Keys below the prefix that may be layers of another network.
        projection: Whether a head was left out since it is no classifier.
    """

    prefix: str
    dialect: str
    state: dict[str, Tensor]
    classes: int
    used: frozenset[str]
    strange: tuple[str, ...]
    projection: bool = False

    @property
    def label(self) -> str:
        """The path of the network in the file, as the option `weights` takes it."""
        return self.prefix.rstrip(".") or "."


def find_fits(
    tensors: Mapping[str, Tensor], blueprints: Mapping[str, Plan]
) -> dict[str, list[Fit]]:
    """Find the places in a file where networks fit.

    Args:
        tensors: The tensors of the file by path.
        blueprints: The networks that are looked for, by the name of their architecture.

    Returns:
        The fits of each network that has any. They are those of the first dialect in which a
        network fits without strange layers; networks with a classifier come alone.
    """
    second: dict[str, list[Fit]] = {}
    for name, translate in dialects(tensors):
        found = {}
        steps: set[str] = set()
        for arch, plan in blueprints.items():
            if isinstance(plan, Sketch):
                steps = steps or _steps(translate(()))
                if not plan.steps <= steps:
                    continue
                plan = plan.draw()
            blueprint, renamed = plan, translate(plan.shapes)
            tried = (
                _fit(name, renamed, prefix, blueprint)
                for prefix in _prefixes(renamed, blueprint)
            )
            if fits := _with_statistics([f for f in tried if f is not None], blueprint):
                found[arch] = fits
        sound = {
            arch: fits
            for arch, fits in found.items()
            if any(not fit.strange for fit in fits)
        }
        whole = {
            arch: fits
            for arch, fits in sound.items()
            if any(fit.classes or fit.projection for fit in fits)
        }
        if sound:
            return whole or sound
        second = second or found
    return second


def _with_statistics(fits: list[Fit], blueprint: Blueprint) -> list[Fit]:
    """Lend BatchNorm's statistics to averages of parameters alone; drop what lacks them."""
    keys = {key for key in blueprint.body if key.endswith(_STATISTICS)}
    whole = [fit for fit in fits if keys <= fit.state.keys()]
    if not whole:
        return []
    lent = {key: whole[0].state[key] for key in keys}
    return [
        replace(fit, state=lent | fit.state)
        for fit in fits
        if keys <= fit.state.keys() or not keys & fit.state.keys()
    ]


def _steps(keys: Iterable[str]) -> set[str]:
    return {step for key in keys for step in key.split(".")}


def _prefixes(
    renamed: Mapping[str, tuple[str, Tensor]], blueprint: Blueprint
) -> Iterator[str]:
    """Yield what stands before the key that is least likely to be found by chance."""
    body = [key for key in blueprint.body if not key.endswith((_COUNTER, *_STATISTICS))]
    # A linear network has nothing but its head.
    anchor = max(body or blueprint.shapes, key=len, default="?")
    for key in renamed:
        if key.endswith(anchor):
            prefix = key.removesuffix(anchor)
            if prefix == "" or prefix.endswith("."):
                yield prefix


def _fit(
    dialect: str,
    renamed: Mapping[str, tuple[str, Tensor]],
    prefix: str,
    blueprint: Blueprint,
) -> Fit | None:
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, shape in blueprint.body.items():
        entry = renamed.get(prefix + key)
        if entry is None:
            if key.endswith((_COUNTER, *_STATISTICS)):
                continue
            return None
        tensor = entry[1]
        if tensor.shape != shape:
            if _core(tensor.shape) != _core(shape):
                return None
            tensor = tensor.reshape(shape)  # a token [D] in place of [1, 1, D]
        state[key] = tensor
        used |= {entry[0], *entry[0].split(JOIN)}
    contrastive = _SELF_SUPERVISED.search(prefix) is not None
    classifier = {} if contrastive else _classifiers(renamed, prefix, blueprint)
    for key, (old, tensor) in classifier.items():
        state[key] = tensor
        used.add(old)
    rest = [
        key.removeprefix(prefix)
        for key, (old, _) in renamed.items()
        if key.startswith(prefix) and old not in used
    ]
    below = [key for key in rest if blueprint.in_head(key)]
    strange = tuple(
        key
        for key in rest
        if key not in below and not _COMPUTED.match(key) and not _BESIDE.match(key)
    )
    classes = len(state[f"{blueprint.heads[0]}.weight"]) if classifier else 0
    return Fit(
        prefix,
        dialect,
        state,
        classes,
        frozenset(used),
        strange,
        projection=bool(below),
    )


def _core(shape: torch.Size) -> tuple[int, ...]:
    """Return a shape without the ones that it begins with."""
    return tuple(shape[next((i for i, n in enumerate(shape) if n != 1), len(shape)) :])


def _classifiers(
    renamed: Mapping[str, tuple[str, Tensor]], prefix: str, blueprint: Blueprint
) -> dict[str, tuple[str, Tensor]]:
    """Return the tensors of all classifiers; nothing if one of them is missing."""
    found = [_classifier(renamed, prefix, blueprint, head) for head in blueprint.heads]
    return {key: each[key] for each in found for key in each} if all(found) else {}


def _classifier(
    renamed: Mapping[str, tuple[str, Tensor]],
    prefix: str,
    blueprint: Blueprint,
    path: str,
) -> dict[str, tuple[str, Tensor]]:
    """Return the tensors of a classifier by the network's keys; nothing if there is none.

    It lies at its own path, or it is the only layer below that path, where it was replaced by
    a Sequential of dropout and a layer, or it stands beside the network under another name.
    """
    head = f"{path}."
    names = {key.removeprefix(head) for key in blueprint.shapes if key.startswith(head)}
    both = {f"{head}weight", f"{head}bias"}  # a fitted head has a bias
    places = [prefix + head]
    steps = prefix.split(".")[:-1]
    for depth in range(len(steps), -1, -1) if len(blueprint.heads) == 1 else ():
        outside = "".join(f"{step}." for step in steps[:depth])
        places += [f"{outside}{name}." for name in _HEADS]
    for place in places:
        below = {
            key.removeprefix(place): entry
            for key, entry in renamed.items()
            if key.startswith(place)
        }
        layers = {key.rpartition(".")[0] for key in below}
        found = {f"{head}{key.rpartition('.')[2]}": below[key] for key in below}
        if (
            len(layers) == 1
            and {head + name for name in names} <= found.keys() <= both
            and all(blueprint.matches(key, entry[1]) for key, entry in found.items())
        ):
            return found
        if place == prefix + head and below:  # something else is in its place
            return {}
    return {}


def fit_by_order(tensors: Mapping[str, Tensor], blueprint: Blueprint) -> list[Fit]:
    """Match the layers of a network in the order of the file, where only names differ.

    All tensors below a prefix must have the shapes of the network's, one after the other,
    and the same last names (`weight`, `running_var`). Files whose keys are sorted have lost
    the order of their layers.

    Args:
        tensors: The tensors of the file by path, in the order of the file.
        blueprint: The network.
    """
    if [*tensors] == sorted(tensors):
        return []
    body = [key for key in blueprint.body if not key.endswith(_COUNTER)]
    head = [key for key in blueprint.shapes if blueprint.in_head(key)]
    for prefix in _ancestors(tensors):
        found = [
            key
            for key in tensors
            if key.startswith(prefix)
            and not _COMPUTED.match(key)
            and not _BESIDE.match(key.removeprefix(prefix))
        ]
        for wanted in (body + head, body):
            pairs = [*zip(wanted, found, strict=False)]
            if len(wanted) == len(found) and all(
                blueprint.matches(key, tensors[path])
                and key.rpartition(".")[2] == path.rpartition(".")[2]
                for key, path in pairs
            ):
                state = {key: tensors[path] for key, path in pairs}
                classes = len(state[head[0]]) if wanted != body and head else 0
                return [Fit(prefix, BY_ORDER, state, classes, frozenset(found), ())]
    return []


def misfit(tensors: Mapping[str, Tensor], blueprint: Blueprint) -> list[str]:
    """Say how the best place in a file differs from a network, as up to three clauses."""
    best: tuple[int, dict[str, Tensor]] = (-1, {})
    for dialect, translate in dialects(tensors):
        renamed = translate(blueprint.shapes)
        for prefix in _ancestors(renamed):
            below = {
                key.removeprefix(prefix): tensor
                for key, (_, tensor) in renamed.items()
                if key.startswith(prefix)
            }
            hits = sum(key in blueprint.shapes for key in below)
            if hits > 2 * best[0] if dialect else hits > best[0]:
                best = hits, below
    return _differences(blueprint, best[1])


def _ancestors(keys: Mapping[str, object]) -> list[str]:
    """Return the prefixes that many keys share, the longest last."""
    counts: dict[str, int] = {"": len(keys)}
    for key in keys:
        steps = key.split(".")[:-1]
        for depth in range(1, len(steps) + 1):
            prefix = ".".join(steps[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    most = sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix)))[:32]
    # Of those that hold the same tensors, the longest names the network.
    return sorted(most, key=len, reverse=True)


def _differences(blueprint: Blueprint, found: Mapping[str, Tensor]) -> list[str]:
    wrong = {
        "missing": [
            key
            for key in blueprint.shapes
            if key not in found and not key.endswith(_COUNTER)
        ],
        "unexpected": [
            key
            for key in found
            if key not in blueprint.shapes and not _BESIDE.match(key)
        ],
        "of wrong shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(shape)}"
            for key, shape in blueprint.shapes.items()
            if key in found
            and found[key].shape[blueprint.in_head(key) :]
            != shape[blueprint.in_head(key) :]
        ],
    }
    return [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in wrong.items()
        if keys
    ]
