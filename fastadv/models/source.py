"""A source: a pretrained model with the facts known about its training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, cast

from fastadv.errors import CheckpointError, ConfigError
from fastadv.models import (
    NormalizedModel,
    Weights,
    find_weights,
    get_spec,
    read_metadata,
)
from fastadv.models.checkpoint import read_model
from fastadv.models.checkpoint_files import checkpoint_sha256, our_header
from fastadv.models.weights import weights_digest
from fastadv.preparation import Preparation
from fastadv.threat import parse_training_kind, training_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(Weights):
    """A pretrained model that transfer, evaluation or an analysis starts from.

    These are weights whose file was read, so their architecture and resolution are known.

    Attributes:
        given: The text that the user gave; `open_source` opens it again.
        file_digest: SHA-256 of the file.
        augment: The augmentation of its training, `auto` where it is unknown.
        num_classes: Number of classes that it tells apart.
        classes: Names of the classes it was trained on; empty if unknown.
        downscale: Side in pixels that its images are first reduced to; None if they are
            not.
        channels: Number of channels of its images: 3, or 1 for a grey network.
        trained_here: Whether it is of fastadv-train. Such a network of unknown preparation
            expects the usual one of its augmentation.
    """

    given: str
    file_digest: str
    arch: str
    resolution: int
    augment: str
    num_classes: int
    classes: tuple[str, ...]
    downscale: int | None = None
    trained_here: bool = False
    channels: int = 3

    @property
    def digest(self) -> str:
        """A hash of what `load` returns; see `weights_digest`."""
        return weights_digest(self, self.file_digest)

    def metadata(self) -> dict[str, Any]:
        """Return the training facts in a checkpoint of ours; other files have none."""
        return _stored_metadata(self.file)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that inputs are normalised by, per channel."""
        return _statistics(self)

    def require_classifier(self) -> None:
        """Raise ConfigError if the network is a trunk that classifies nothing."""
        if self.num_classes == 0:
            raise ConfigError(
                f"{self.name} has no classifier, so there is nothing to evaluate: transfer "
                "it first (fastadv-transfer), and evaluate the row of that"
            )

    def load(self) -> NormalizedModel:
        """Load a fresh copy of the model."""
        return read_model(self, quiet=True)


@cache
def _statistics(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    model = source.load()
    mean, std = model.mean.flatten().tolist(), model.std.flatten().tolist()
    return tuple(mean), tuple(std)


def open_source(
    source: str,
    name: str | None = None,
    arch: str | None = None,
    *,
    download: bool = False,
) -> Source:
    """Find a model by path or name, and read what its file says of itself.

    Args:
        source: As `fastadv.models.weights` reads it: a run directory, a file,
            `torchvision:NAME`, `timm:NAME`, `hf:org/name`, with options after it.
        name: Its name in tables; None takes its own.
        arch: The architecture, if neither the file nor its name states it.
        download: Fetch the file if it is not on this machine.

    Raises:
        CheckpointError: There is none, or it cannot be loaded.
        ConfigError: A name or an option is unknown (the message names near misses), or
            an option contradicts the file.
    """
    found = find_weights(source, download=download)
    weights = replace(found, arch=arch or found.arch)
    model = read_model(weights)  # damage and misfits show now, not after the data
    trained = _stored_metadata(weights.file)
    config = trained.get("config", {})
    _check_threat(source, config, weights)
    eps = config.get("eps", weights.eps)
    kind = training_kind(weights.kind or trained.get("kind"), eps)
    _check_kind(source, kind, eps)
    native = get_spec(model.arch).image_size
    return Source(
        name=name or weights.name,
        given=source,
        file=weights.file,
        convention=weights.convention,
        trunk=weights.trunk,
        which=weights.which,
        token=weights.token,
        ignored=weights.ignored,
        file_digest=checkpoint_sha256(weights.file),
        arch=model.arch,
        norm=config.get("norm", weights.norm) if eps else None,
        eps=eps,
        kind=kind,
        resolution=trained.get("resolution") or weights.resolution or native,
        augment=config.get("augment", "auto"),
        num_classes=model.num_classes,
        channels=model.channels,
        classes=tuple(trained.get("classes", ())),
        downscale=trained.get("downscale"),
        preparation=_preparation(trained, weights),
        trained_here="augment" in config,
    )


def _preparation(trained: dict[str, Any], weights: Weights) -> Preparation | None:
    """Return what the file states, or what is known from elsewhere."""
    if (stated := trained.get("preparation")) is not None:
        return Preparation(**stated)
    # An older file of fastadv-train states its augmentation instead.
    here = "augment" in trained.get("config", {})
    return None if here else weights.preparation


def _stored_metadata(file: Path) -> dict[str, Any]:
    if not our_header(file):
        return {}
    found: dict[str, Any] = read_metadata(file)["user"]
    for name, is_right in _KINDS.items():
        if found.get(name) is not None and not is_right(found[name]):
            raise CheckpointError(
                f"{file} says {name} {str(found[name])[:60]!r} of its training, which cannot "
                "be; it is damaged, or another program changed it"
            )
    return found


def _is_side(value: object) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST_SIDE


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= cast(float, value) < math.inf


def _is_config(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("augment", ""), str)
        and isinstance(value.get("norm", ""), str | NoneType)
        and (value.get("eps") is None or _is_number(value["eps"]))
    )


def _is_preparation(value: object) -> bool:
    try:
        how = Preparation(**cast(dict[str, Any], value))
        how.check()
    except (TypeError, ValueError, ConfigError):
        return False
    return how.resize <= _LARGEST_SIDE


_LARGEST_SIDE = 1 << 14  # pixels
# What the metadata of a file may say, as far as it is used here.
_KINDS: dict[str, Callable[[object], bool]] = {
    "config": _is_config,
    "classes": _is_texts,
    "resolution": _is_side,
    "downscale": _is_side,
    "preparation": _is_preparation,
    "kind": lambda value: isinstance(value, str),
}


def _check_threat(source: str, config: dict[str, Any], weights: Weights) -> None:
    """Refuse a radius or norm that is not the one the file states."""
    for name, said in (("eps", weights.eps), ("norm", weights.norm)):
        states = config.get(name)
        if None in (said, states) or said == states:
            continue
        if name == "eps" or config.get("eps"):  # standard training has no norm
            raise ConfigError(
                f"{source}: the file states {name} {states} of its training, its name or "
                f"the option says {said}; leave that out"
            )


def _check_kind(source: str, kind: str | None, eps: float | None) -> None:
    """Refuse a kind of training that its radius contradicts, or that is none."""
    if kind is None:
        return
    try:
        parse_training_kind(kind)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    if (kind == "standard" and eps) or (kind == "robust" and eps == 0):
        raise ConfigError(
            f"{source}: kind={kind} does not go with eps {eps:g} of its training; leave "
            "one of them out"
        )
