"""Files on disk: written whole or not at all, and named by their hash. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from fastadv.errors import CheckpointError


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` so that `path` holds either all of it or what it held before.

    A temporary file in the same folder is written, synced and renamed over `path`;
    then the folder is synced. Missing folders are made.

    Raises:
        CheckpointError: The file cannot be written (full disk, no permission). The
            old file is untouched and no temporary file is left.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(
            f"could not write {target} ({len(data)} bytes): "
            f"{error.strerror or error}; the previous file, if any, is unchanged. "
            "Free space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, as far as the file system can."""
    # Some network file systems cannot sync a folder; the rename itself has happened.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
