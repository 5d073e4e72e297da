"""Where fastadv keeps what it can make again, and files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def fastadv_cache_dir() -> Path:
    """Return the cache folder; it need not exist yet.

    `FASTADV_CACHE` if set, else `$XDG_CACHE_HOME/fastadv`, else
    `~/.cache/fastadv`.
    """
    explicit = os.environ.get("FASTADV_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fastadv"


def replace_file(path: Path, *chunks: bytes | memoryview) -> None:
    """Write `chunks` so that `path` holds all of them or what it held before.

    A temporary file in the same folder is written, synced and renamed over `path`;
    then the folder is synced. Missing folders are made. Of several processes that
    write one path, one wins; none sees a mixture.

    Raises:
        OSError: the file cannot be written. The old file is untouched and no temporary
            file is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
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
