"""The source of a transfer: a pretrained model and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadv.errors import CheckpointError
from fastadv.models import (
    NormalizedModel,
    file_sha256,
    get_spec,
    load_model,
    read_metadata,
    resolve_checkpoint,
)
from fastadv.models.published import threat_from_filename


@dataclass(frozen=True)
class Source:
    """Where a transfer starts from.

    Attributes:
        name: what tables and figures call it.
        file: the checkpoint file.
        digest: its SHA-256.
        arch: of the network.
        norm, eps: of its training (pixel units; eps 0 is standard), None if unknown.
        resolution: side of the images it was trained on, pixels.
        augment: of its training, which also decides how evaluation crops.
        classes: names of what it was trained to tell apart; empty if unknown.
    """

    name: str
    file: Path
    digest: str
    arch: str
    norm: str | None
    eps: float | None
    resolution: int
    augment: str
    classes: tuple[str, ...]

    def load(self) -> NormalizedModel:
        """A fresh copy of the model."""
        return load_model(self.file, self.arch)


def open_source(path: str, name: str | None = None, arch: str | None = None) -> Source:
    """Find a checkpoint by run directory or file, and read what it says of itself.

    Raises:
        CheckpointError: there is none, or it cannot be loaded.
    """
    file = resolve_checkpoint(Path(path).expanduser())
    model = load_model(file, arch)  # damage and misfits show now, not after the data
    try:
        trained: dict[str, Any] = read_metadata(file)["user"]
    except CheckpointError:
        trained = {}
    config = trained.get("config", {})
    named = threat_from_filename(file) or (None, None)
    eps = config.get("eps", named[1])
    given = Path(path)
    return Source(
        name=name or (given.name if given.is_dir() else given.stem),
        file=file,
        digest=file_sha256(file),
        arch=model.arch,
        norm=config.get("norm", named[0]) if eps else None,
        eps=eps,
        resolution=trained.get("resolution") or get_spec(model.arch).image_size,
        augment=config.get("augment", "auto"),
        classes=tuple(trained.get("classes", ())),
    )
