"""The source of a transfer: a pretrained model and what is known about it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Source:
    """Where a transfer starts from.

    Attributes:
        name: what tables and figures call it.
        given: What the user named it by; `open_source` opens it again.
        weights: the file, and what is known of it from elsewhere.
        file_digest: SHA-256 of the file.
        digest: the same; or of it and the input convention, where the file does not say
            its own, since the same weights are then another model.
        arch: of the network.
        norm, eps: of its training (pixel units; eps 0 is standard), None if unknown.
        resolution: side of the images it was trained on, pixels.
        augment: of its training, which also decides how evaluation crops.
        num_classes: Number of classes it tells apart.
        classes: names of what it was trained to tell apart; empty if unknown.
    """

    name: str
    given: str
    weights: Weights
    file_digest: str
    arch: str
    norm: str | None
    eps: float | None
    resolution: int
    augment: str
    num_classes: int
    classes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Hash of what `load` returns; see above."""
        if self.weights.convention is None:
            return self.file_digest
        text = f"{self.file_digest} {self.weights.convention}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def file(self) -> Path:
        """The weights file."""
        return self.weights.file

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint of ours says of its training, else nothing."""
        try:
            metadata: dict[str, Any] = read_metadata(self.file)["user"]
        except CheckpointError:
            return {}
        return metadata

    def load(self) -> NormalizedModel:
        """A fresh copy of the model."""
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
        source: as `fastadv.models.weights` reads it: a run directory, a file,
            `torchvision:NAME`, `timm:NAME`, `hf:org/name`, with options after it.
        name: what to call it; default its own.
        arch: architecture, where nothing else says it.
        download: fetch what is not on this machine.

    Raises:
        CheckpointError: there is none, or it cannot be loaded.
        ConfigError: an unknown name or option; near misses are named. An option that
            contradicts the file.
    """
    weights = find_weights(source, download=download)
    weights = replace(weights, arch=arch or weights.arch)
    model = read_model(weights)  # damage and misfits show now, not after the data
    weights = replace(weights, arch=model.arch)
    try:
        trained: dict[str, Any] = read_metadata(weights.file)["user"]
    except CheckpointError:
        trained = {}
    config = trained.get("config", {})
    _check_threat(source, config, weights)
    eps = config.get("eps", weights.eps)
    native = get_spec(model.arch).image_size
    return Source(
        name=name or weights.name,
        given=source,
        weights=weights,
        file_digest=file_sha256(weights.file),
        arch=model.arch,
        norm=config.get("norm", weights.norm) if eps else None,
        eps=eps,
        resolution=trained.get("resolution") or weights.resolution or native,
        augment=config.get("augment", "auto"),
        num_classes=model.num_classes,
        classes=tuple(trained.get("classes", ())),
    )


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
