"""Files on disk: written whole or not at all, and named by their hash. No torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fastadv.errors import CheckpointError
from fastadv.files import replace_file

MODEL_FILE = "model.safetensors"
"""Weights in a folder: a run's checkpoint, or the layout of timm and Hugging Face."""


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` so that `path` holds either all of it or what it held before.

    Raises:
        CheckpointError: The file cannot be written (full disk, no permission). The
            old file is untouched and no temporary file is left.
    """
    try:
        replace_file(Path(path), data)
    except OSError as error:
        raise CheckpointError(
            f"could not write {os.fspath(path)} ({len(data)} bytes): "
            f"{error.strerror or error}; the previous file, if any, is unchanged. "
            "Free space or choose another folder"
        ) from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"could not read {os.fspath(path)}: {error.strerror or error}"
        ) from error
