"""Trained detectors in and out: one safetensors file that describes itself."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torchvision.models.detection import FasterRCNN

from fastadv.checksums import check_beside
from fastadv.detection.config import DetectorConfig
from fastadv.detection.networks import build_detector
from fastadv.errors import CheckpointError
from fastadv.files import file_sha256, write_atomic
from fastadv.models import create_model
from fastadv.models.checkpoint import cpu_state
from fastadv.models.file_checksums import check_tensors, read_texts, with_checksums

log = logging.getLogger(__name__)

DETECTOR_FILE = "detector.safetensors"
_FORMAT = 1
_HEADER = "fastadv_detector"


@dataclass(frozen=True, kw_only=True)
class DetectorFacts:
    """What the file of a detector says of it, as values that JSON can hold.

    Attributes:
        arch: Architecture of the backbone.
        mean: Mean that images are normalised by, per channel in [0, 1] units.
        std: Standard deviation, likewise.
        classes: Names of the classes; label k is `classes[k - 1]`.
        category_ids: Number of each class in the annotations it was trained on.
        masks: Whether it segments instances.
        config: How it was built.
        source: Name, text, digest, norm, eps and kind of the pretrained network; empty for
            random weights of an architecture.
        training: Choices of its training, with `epoch` and `step`.
    """

    arch: str
    mean: list[float]
    std: list[float]
    classes: list[str]
    category_ids: list[int]
    masks: bool
    config: DetectorConfig
    source: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True)
class OpenedDetector:
    """A detector that was read from a file.

    Attributes:
        detector: The detector in evaluation mode, on the CPU.
        facts: What its file says of it.
        file: The file.
        file_digest: SHA-256 of the file.
    """

    detector: FasterRCNN
    facts: DetectorFacts
    file: Path
    file_digest: str


def write_detector(
    detector: FasterRCNN, facts: DetectorFacts, path: str | os.PathLike[str]
) -> None:
    """Write a detector with its description, atomically.

    Raises:
        OutputError: The file cannot be written; what was there before is unchanged.
    """
    header = {_HEADER: str(_FORMAT), "facts": json.dumps(asdict(facts))}
    content = safetensors.torch.save(cpu_state(detector.state_dict()), header)
    write_atomic(path, with_checksums(content))


def open_detector(path: str | os.PathLike[str]) -> OpenedDetector:
    """Read a detector of `fastadv-detect train`.

    Args:
        path: The run directory, whose last checkpoint is taken, or the file.

    Raises:
        CheckpointError: There is none, or it is damaged (it differs from the checksum in
            it, too) or no detector.
    """
    file = _file_of(Path(path).expanduser())
    try:
        header = read_texts(file)
        hashed = check_tensors(file, header) or bool(check_beside(file))
        state = safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or no safetensors file ({error}); train it again"
        ) from error
    if _HEADER not in header:
        raise CheckpointError(
            f"{file} is no detector of fastadv-detect; to begin one from a classifier, "
            "give that as `source` of its training"
        )
    if not hashed:
        log.warning(
            "%s: an older version wrote it, without a checksum: damage to it cannot be "
            "noticed",
            file,
        )
    facts = _facts(header, file)
    model = create_model(facts.arch, mean=facts.mean, std=facts.std, seed=0)
    detector = build_detector(
        model, len(facts.classes), facts.config, masks=facts.masks
    )
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit its description: {error}") from None
    return OpenedDetector(detector.eval(), facts, file, file_sha256(file))


def _facts(header: dict[str, str], file: Path) -> DetectorFacts:
    try:
        if int(header[_HEADER]) > _FORMAT:
            raise CheckpointError(
                f"{file} was written by a newer fastadv (format {header[_HEADER]}); "
                "upgrade fastadv"
            )
        values = json.loads(header["facts"])
        known = {each.name for each in fields(DetectorConfig)}
        config = {k: v for k, v in values.pop("config").items() if k in known}
        config["min_size"] = tuple(config["min_size"])
        return DetectorFacts(config=DetectorConfig(**config), **values)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} has a damaged description: {error}") from None


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    choices = (path / "checkpoints" / "last" / DETECTOR_FILE, path / DETECTOR_FILE)
    for choice in choices:
        if choice.is_file():
            return choice
    raise CheckpointError(
        f"there is no detector in {path}; give a run directory of fastadv-detect train or "
        f"a file {DETECTOR_FILE}"
    )
