"""Generated data kept between runs, and checked when it is read again.

One array per file: `.npy` bytes and their BLAKE2b digest, renamed when whole. A damaged
file is reported and made again; it is never an error.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastadv.files import replace_file

log = logging.getLogger(__name__)
_DIGEST_BYTES = 32
_CHUNK = 1 << 20


def text_key(text: str) -> str:
    """Return 32 hexadecimal digits that identify a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def file_key(file: Path, *more: object) -> str:
    """Return a key of a file by its path, size and time, and of what else identifies it.

    Raises:
        OSError: There is no such file.
    """
    status = file.stat()
    what = (str(file.resolve()), status.st_size, status.st_mtime_ns, *more)
    return text_key(repr(what))


def cached_array(path: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """Return the array stored at `path`, making and storing it when needed.

    Args:
        path: File of the array; its name must identify the content.
        make: Computes the array; called when the file is absent or damaged.

    Returns:
        The array. A cache that cannot be written costs a warning, no more.
    """
    stored = read_array(path)
    if stored is not None:
        return stored
    array = make()
    try:
        write_array(path, array)
    except OSError as error:
        log.warning(
            "cannot cache to %s (%s); set FASTADV_CACHE to a writable folder",
            path,
            error,
        )
    return array


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any] | None:
    """Return the array stored at `path`, or None where there is none that is whole.

    Args:
        path: File written by `write_array`.
        mapped: Map the file read-only instead of reading it to memory; it is read once
            all the same, for its digest.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END) - _DIGEST_BYTES
            file.seek(0)
            whole = size > 0 and _digest_of(file, size) == file.read()
    except OSError:
        return None
    if not whole:
        log.warning("cache file %s is damaged; making it again", path)
        return None
    # By name again: what was renamed over it meanwhile is whole, too.
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError):
        array = None
    if not isinstance(array, np.ndarray):
        log.warning("cache file %s holds no array; making it again", path)
        return None
    return array


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Store `array` at `path`, whole or not at all; see `replace_file`."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, np.lib.format.header_data_from_array_1_0(array)
    )
    body = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    digest = hashlib.blake2b(head.getbuffer(), digest_size=_DIGEST_BYTES)
    digest.update(body)
    replace_file(path, head.getbuffer(), body, digest.digest())


def _digest_of(file: BinaryIO, size: int) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    while size and (chunk := file.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()
