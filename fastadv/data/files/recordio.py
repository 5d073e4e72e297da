"""MXNet RecordIO files (`.rec`), as `im2rec` writes them, read without MXNet.

A record begins with IRHeader (flag, label, id, id2); a flag above 0 counts float32 labels
that follow. Data that contain the magic number are stored in parts.

Source: dmlc-core's recordio.h and python/mxnet/recordio.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from fastadv.data.files.records import Record, RecordSet
from fastadv.errors import DataError

_MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", _MAGIC)
_HEADER = struct.Struct("<IfQQ")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


class RecordIOSet(RecordSet):
    """One split of RecordIO files; records that lie in parts are joined."""

    def _encoded(self, index: int) -> bytes:
        data = _joined(super()._encoded(index))
        flag = _HEADER.unpack_from(data)[0]
        return data[_HEADER.size + 4 * flag :]


def scan_recordio(path: Path) -> list[Record]:
    """List the records of one file; offsets and sizes are of whole records.

    Raises:
        DataError: Not a RecordIO file, cut short, an index that does not fit it, or a
            record with several labels.
    """
    size = path.stat().st_size
    records = []
    with open(path, "rb") as file:
        descriptor = file.fileno()
        for key, offset in _starts(path, descriptor):
            try:
                end, first = _extent(descriptor, offset, size)
                flag, label, *_ = _HEADER.unpack(first[: _HEADER.size])
                if flag == 1:
                    (label,) = struct.unpack_from("<f", first, _HEADER.size)
            except (ValueError, struct.error) as error:
                raise DataError(
                    f"{path}: no record at offset {offset} ({error or 'too short'}); the "
                    "file is damaged or not RecordIO, or, if it has one, its .idx is of "
                    "another file"
                ) from error
            if flag > 1:
                if key == "0":  # a header of the whole file, not an image
                    continue
                raise DataError(
                    f"{path}: record {key} has {flag} labels; one per image is accepted"
                )
            if label != int(label):
                raise DataError(f"{path}: record {key} has the label {label}; use ids")
            records.append(Record(key, str(int(label)), offset, end - offset))
    return records


def _starts(path: Path, descriptor: int) -> Iterator[tuple[str, int]]:
    """Yield (key, offset) of every record, in the order of the file."""
    index = path.with_suffix(".idx")
    if not index.exists():
        size, at, number = path.stat().st_size, 0, 0
        while at < size:
            yield str(number), at
            at, number = _extent(descriptor, at, size)[0], number + 1
        return
    try:
        lines = map(str.split, index.read_text().splitlines())
        starts = [(key, int(offset)) for key, offset in filter(None, lines)]
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {index} ({error}); each line is a key and an offset. Remove it to "
            "have the file scanned"
        ) from error
    yield from sorted(starts, key=lambda start: start[1])


def _extent(descriptor: int, at: int, size: int) -> tuple[int, bytes]:
    """Return where the record at `at` ends, and how its data begin."""
    first = b""
    while True:
        head = os.pread(descriptor, 8 + _HEADER.size + 4, at)
        if len(head) < 8:
            raise ValueError("the file ends there")
        kind, length = _part(head)
        first = first or head[8 : 8 + length]
        at += 8 + length + -length % 4
        if at > size:
            raise ValueError("the file ends inside the record")
        if kind in (_WHOLE, _LAST):
            return at, first


def _part(head: bytes) -> tuple[int, int]:
    magic, word = struct.unpack_from("<II", head)
    if magic != _MAGIC:
        raise ValueError(f"magic number {magic:#x} instead of {_MAGIC:#x}")
    return word >> 29, word & ((1 << 29) - 1)


def _joined(record: bytes) -> bytes:
    parts = []
    at = 0
    while True:
        kind, length = _part(record[at : at + 8])
        parts.append(record[at + 8 : at + 8 + length])
        at += 8 + length + -length % 4
        if kind in (_WHOLE, _LAST):
            return _MAGIC_BYTES.join(parts)
