"""Checksums of a safetensors file in its own header, which say whether it is damaged.

Two texts of the header state them. `tensors_crc32` is the CRC-32 of the bytes of the tensors,
which finds every change of up to 32 neighbouring bits, and of others all but one in four
billion.
`header_sha256` is the SHA-256 of the header in which its own 64 digits are zeros, so that it
covers every other byte of the header, `tensors_crc32` among them.

SHA-256 of the tensors would take twice the time (1.8 GB/s, and zlib's CRC-32 4.1 GB/s, on one
core with SHA extensions), which is more than a tenth of loading a large network.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from pathlib import Path
from typing import Any

from fastadv.errors import CheckpointError

_TENSORS, _HEADER = "tensors_crc32", "header_sha256"
_EMPTY = "0" * 64
_LONGEST_HEADER = 16 << 20  # bytes; a network of 1,000 tensors has 100 kB
_MOST_TENSORS = 50_000


def with_checksums(content: bytes) -> bytes:
    """Return a safetensors file with a sorted header that states its checksums."""
    size = int.from_bytes(content[:8], "little")
    data = memoryview(content)[8 + size :]
    values = json.loads(content[8 : 8 + size])
    texts = values.setdefault("__metadata__", {})
    texts |= {_TENSORS: _checksum(data), _HEADER: _EMPTY}
    header = json.dumps(values, sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    digest = hashlib.sha256(header).hexdigest()
    header = header.replace(_field(_EMPTY), _field(digest), 1)
    return len(header).to_bytes(8, "little") + header + data


def read_texts(file: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file, once it was checked.

    The tensors are not read.

    Raises:
        CheckpointError: The header is damaged, or larger than that of any network.
        OSError: The file cannot be read.
    """
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > os.fstat(stream.fileno()).st_size:
            return {}  # cut short, or no such file, as safetensors will say
        if size > _LONGEST_HEADER:
            raise CheckpointError(
                f"{file} is no file of weights: its header has {size} bytes, and at most "
                f"{_LONGEST_HEADER} are read"
            )
        header = stream.read(size)
    if (count := header.count(b'"data_offsets"')) > _MOST_TENSORS:
        raise CheckpointError(
            f"{file} is no file of weights: its header lists {count} tensors, and at most "
            f"{_MOST_TENSORS} are read"
        )
    try:
        texts: dict[str, Any] = json.loads(header)["__metadata__"]
        texts = {str(key): str(text) for key, text in texts.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    if stated := texts.get(_HEADER):
        blank = header.replace(_field(stated), _field(_EMPTY), 1)
        if hashlib.sha256(blank).hexdigest() != stated:
            raise _differs(file, "texts")
    if (_HEADER in texts) != (_TENSORS in texts):
        raise _differs(file, "texts")
    return texts


def states_checksum(texts: dict[str, str]) -> bool:
    """Return whether the texts of a header state the checksum of the tensors."""
    return _TENSORS in texts


def check_tensors(file: Path, texts: dict[str, str]) -> bool:
    """Check the tensors of a safetensors file against the checksum in its header.

    Args:
        file: The file.
        texts: What `read_texts` returned.

    Returns:
        Whether the header states a checksum; older files and those of other programs do not.

    Raises:
        CheckpointError: The tensors are others than those that were written.
    """
    if not states_checksum(texts):
        return False
    with (
        open(file, "rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as whole,
    ):
        start = 8 + int.from_bytes(whole[:8], "little")
        with whole[start:] as data:
            found = _checksum(data)
    if found != texts[_TENSORS]:
        raise _differs(file, "tensors")
    return True


def without_checksums(texts: dict[str, str]) -> dict[str, str]:
    """Return the texts of the header but for the checksums."""
    return {key: text for key, text in texts.items() if key not in (_TENSORS, _HEADER)}


def _field(digest: str) -> bytes:
    """Return the text of the header that states its hash, as `json.dumps` writes it."""
    return f'"{_HEADER}": "{digest}"'.encode()


def _checksum(data: memoryview) -> str:
    return f"{zlib.crc32(data):08x}"


def _differs(file: Path, part: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is damaged: the {part} in it and their checksum differ; download or write "
        "it again"
    )
