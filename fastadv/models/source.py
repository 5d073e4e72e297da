"""A source: a pretrained model, and what is known about its training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastadv.errors import CheckpointError, ConfigError
from fastadv.files import file_sha256
from fastadv.models import (
    NormalizedModel,
    Weights,
    find_weights,
    get_spec,
    read_metadata,
)
from fastadv.models.checkpoint import read_model
from fastadv.threat import parse_training_kind, training_kind


@dataclass(frozen=True)
class Source:
    """A pretrained model that transfer, evaluation or an analysis starts from.

    Attributes:
        name: What tables and figures call it.
        given: What the user named it by; `open_source` opens it again.
        weights: The file, and what is known about it from elsewhere.
        file_digest: SHA-256 of the file.
        arch: The architecture of the network.
        norm, eps: The threat model of its training (eps in pixel units; 0 means standard
            training), None if unknown.
        kind: How it was trained, a key of `threat.TRAINING_KINDS`; None if unknown.
        resolution: Side in pixels of the images it was trained on.
        augment: The augmentation of its training, which also decides how evaluation crops.
        num_classes: Number of classes that it tells apart.
        classes: Names of the classes it was trained on; empty if unknown.
    """

    name: str
    given: str
    weights: Weights
    file_digest: str
    arch: str
    norm: str | None
    eps: float | None
    kind: str | None
    resolution: int
    augment: str
    num_classes: int
    classes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A hash of what `load` returns.

        It is the file's, unless an input convention is given beside the file: then the
        same weights are another model.
        """
        if self.weights.convention is None:
            return self.file_digest
        text = f"{self.file_digest} {self.weights.convention}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def file(self) -> Path:
        """The path of the weights file."""
        return self.weights.file

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint of ours says of its training, else nothing."""
        return _stored_metadata(self.file)

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation that inputs are normalised by, per channel."""
        model = self.load()
        return model.mean.flatten().tolist(), model.std.flatten().tolist()

    def load(self) -> NormalizedModel:
        """Load a fresh copy of the model."""
        return read_model(self.weights)


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
        name: What to call it; the default is its own name.
        arch: The architecture, where nothing else says it.
        download: Fetch what is not on this machine.

    Raises:
        CheckpointError: There is none, or it cannot be loaded.
        ConfigError: A name or an option is unknown (the message names near misses), or
            an option contradicts the file.
    """
    found = find_weights(source, download=download)
    weights = replace(found, arch=arch or found.arch)
    model = read_model(weights)  # damage and misfits show now, not after the data
    weights = replace(weights, arch=model.arch)
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
        weights=weights,
        file_digest=file_sha256(weights.file),
        arch=model.arch,
        norm=config.get("norm", weights.norm) if eps else None,
        eps=eps,
        kind=kind,
        resolution=trained.get("resolution") or weights.resolution or native,
        augment=config.get("augment", "auto"),
        num_classes=model.num_classes,
        classes=tuple(trained.get("classes", ())),
    )


def _stored_metadata(file: Path) -> dict[str, Any]:
    try:
        return dict(read_metadata(file)["user"])
    except CheckpointError:
        return {}


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
