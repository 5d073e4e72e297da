"""A sweep as a YAML file: sources x data sets x protocols, and every list an axis.

    command: fastadv-transfer sweep
    sources:                                   # paths; {a,b} expands as in a shell
      - checkpoints/{resnet18,resnet50}_l2_eps{0,1,3}.ckpt
      - {source: runs/mine, name: mine, source_accuracy: 61.2}
    datasets: [cifar10, /data/pets]
    protocols:
      - {mode: fixed_feature}
      - {mode: full_network, lr: [0.01, 0.001], epochs: 150}
    seeds: [0, 1, 2]
    num_train: [100, 400, null]

Every other key is a flag of `fastadv-transfer`. A list where the flag takes one value is
an axis. `lr`, `lr_head` and `lr_trunk` are axes of single learning rates, one row each,
all judged on validation images unless `select_on` says otherwise; `lrs`, `lrs_head` and
`lrs_trunk` are candidates that one row chooses from.
Keys of a protocol override those of a data set, these override keys of a source, and
these the top level. This module imports no torch.

A recipe may have tiers, each with keys that replace those of the top level; `--tier` selects
one, and the first is the default:

    tiers:
      quick: {protocols: [fixed_feature]}
      full: {protocols: [fixed_feature, full_network], seeds: [0, 1, 2]}
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from fastadv.errors import ConfigError, unknown_name
from fastadv.extensions import refuse_references
from fastadv.runs.configfile import load_config_file, refuse_other_command, typed
from fastadv.training.config import TrainConfig
from fastadv.transfer.config import TransferConfig

COMMAND = "fastadv-transfer sweep"
# The lists of a recipe, and the flag that each of their entries sets.
PARTS = {"sources": "source", "datasets": "dataset", "protocols": "mode"}
# Axes of single learning rates, and the flag that takes several to choose from.
_SINGLE_RATES = {"lr": "lrs", "lr_head": "lrs_head", "lr_trunk": "lrs_trunk"}
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


def read_recipe(
    path: Path, tier: str | None = None, **overrides: Any
) -> list[TransferConfig]:
    """Return the experiments of a recipe in its order, each with all seeds.

    Args:
        path: Path of the YAML file.
        tier: Name of a tier of the recipe; None stands for the first, if there are any.
        **overrides: Flags that replace those of the file in every experiment; None
            replaces nothing.

    Raises:
        ConfigError: The file cannot be read, or a key or value cannot work.
    """
    recipe = _of_tier(path, load_config_file(path, COMMAND), tier)
    training, sweeps = (
        {field.name for field in dataclasses.fields(kind)}
        for kind in (TrainConfig, TransferConfig)
    )
    # A file of fastadv-train does not have to say which command it is for.
    if recipe.keys() <= training and not recipe.keys() <= sweeps:
        refuse_other_command(path, "fastadv-train --config", COMMAND)
    fixed = {key: value for key, value in overrides.items() if value is not None}
    parts = [_entries(path, recipe.pop(name, None), name) for name in PARTS]
    common = _checked(path, recipe, "the recipe")
    found: dict[TransferConfig, None] = {}  # ordered, each once
    for source, dataset, protocol in itertools.product(*parts):
        for values in _expanded(common | source | dataset | protocol):
            try:
                found[TransferConfig(**(values | fixed))] = None
            except (TypeError, ConfigError) as error:
                raise ConfigError(f"{path}: {error}") from None
    return list(found)


def _of_tier(path: Path, recipe: dict[str, Any], tier: str | None) -> dict[str, Any]:
    """Return a recipe with the keys of one of its tiers in the place of its own."""
    tiers = recipe.pop("tiers", None)
    if tiers is None:
        if tier is not None:
            raise ConfigError(f"{path}: `tier={tier}`: the recipe has no tiers")
        return recipe
    valid = isinstance(tiers, dict) and tiers
    if not valid or not all(isinstance(each, dict) for each in tiers.values()):
        raise ConfigError(
            f"{path}: tiers is {tiers!r}; give a mapping of names to the keys of each tier"
        )
    chosen = tier or next(iter(tiers))
    if chosen not in tiers:
        raise ConfigError(f"{path}: {unknown_name('tier', chosen, tiers)}")
    keys: dict[str, Any] = tiers[chosen]
    return recipe | keys


def _entries(path: Path, given: Any, name: str) -> list[dict[str, Any]]:
    """Return one part of the recipe as a list of mappings of flags."""
    if not isinstance(given, list) or not given:
        raise ConfigError(
            f"{path}: {name} is {given!r}; a recipe needs a list of at least one under "
            f"each of {', '.join(PARTS)}"
        )
    entries = []
    for number, entry in enumerate(given, start=1):
        if isinstance(entry, str):
            entry = {PARTS[name]: entry}
        if not isinstance(entry, dict) or PARTS[name] not in entry:
            raise ConfigError(
                f"{path}: entry {number} of {name} is {entry!r}; give a name, or a "
                f"mapping with the key {PARTS[name]}"
            )
        for text in _braces(str(entry[PARTS[name]])):
            values = entry | {PARTS[name]: text}
            entries.append(_checked(path, values, f"entry {number} of {name}"))
    return entries


def _braces(text: str) -> list[str]:
    """Expand `a{1,2}b` to `a1b`, `a2b`; the last braces vary fastest, as in a shell."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    return [
        text[: match.start()] + choice + rest
        for choice in match[1].split(",")
        for rest in _braces(text[match.end() :])
    ]


def _checked(path: Path, values: dict[Any, Any], where: str) -> dict[str, Any]:
    """Convert values to the types of their fields; axes stay lists."""
    kinds = get_type_hints(TransferConfig) | dict.fromkeys(_SINGLE_RATES, float)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(
                f"{path}: {where}: {unknown_name('key', str(key), kinds)}"
            )
        kind = kinds[key]
        takes_list = any(get_origin(k) is tuple for k in (kind, *get_args(kind)))
        axis = isinstance(value, list) and not takes_list
        try:
            if axis:
                if not value:
                    raise ValueError("an axis needs at least one value")
                checked[key] = [typed(kind, each) for each in value]
            else:
                checked[key] = typed(kind, value)
        except ValueError as error:
            raise ConfigError(f"{path}: {where}: {key}: {error}") from None
    refuse_references(checked, path)
    return checked


def _expanded(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the axes."""
    axes = {key: value for key, value in values.items() if isinstance(value, list)}
    for choice in itertools.product(*axes.values()):
        one = values | dict(zip(axes, choice, strict=True))
        for name, candidates in _SINGLE_RATES.items():
            if name in one:
                one[candidates] = (one.pop(name),)
        several = any(len(axes.get(name, ())) > 1 for name in _SINGLE_RATES)
        if several and one.get("protocol", "fastadv") == "fastadv":
            # The rows are compared with each other, so each needs what chooses.
            one.setdefault("select_on", "val")
        yield one
