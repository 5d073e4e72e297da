"""Generated data kept between runs, and checked when it is read again.

One array per file: the `.npy` bytes followed by their BLAKE2b digest, written
to a temporary name and renamed. A file that is cut short or altered is
reported and made again; it is never an error. Not for anything that cannot be
recomputed.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.files import replace_file

_log = logging.getLogger(__name__)
_DIGEST_BYTES = 32


def cached_array(path: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """Return the array stored at `path`, making and storing it when needed.

    Args:
        path: File of the array; its name must identify the content.
        make: Computes the array; called when the file is absent or damaged.

    Returns:
        The array. A cache that cannot be written costs a warning, no more.
    """
    stored = _read(path)
    if stored is not None:
        return stored
    array = make()
    try:
        _write(path, array)
    except OSError as err:
        _log.warning(
            "cannot cache to %s (%s); set FASTADV_CACHE to a writable folder",
            path,
            err,
        )
    return array


def _digest(payload: bytes | memoryview) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest()


def _read(path: Path) -> NDArray[Any] | None:
    try:
        blob = path.read_bytes()
    except OSError:
        return None
    payload = memoryview(blob)[:-_DIGEST_BYTES]
    if _digest(payload) != blob[-_DIGEST_BYTES:]:
        _log.warning("cache file %s is damaged; making it again", path)
        return None
    array: NDArray[Any] = np.load(io.BytesIO(payload), allow_pickle=False)
    return array


def _write(path: Path, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    payload = buffer.getbuffer()
    replace_file(path, payload, _digest(payload))
