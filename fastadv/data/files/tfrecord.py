"""TFRecord files of `tf.train.Example` images, read without TensorFlow.

Fields as in the ImageNet files: `image/encoded`, and `image/class/synset` or
`image/class/label` (ids from 1), or the plain `image` and `label`.

Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/feature.proto.
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastadv.data.files.records import Record
from fastadv.errors import DataError

_HEADER = 12  # length, and its checksum
_IMAGE = (b"image/encoded", b"image")
_NAMES = (b"image/class/synset", b"image/class/text")
_LABELS = (b"image/class/label", b"label")
_KEYS = (b"image/filename", b"image/key")
Span = tuple[int, int]  # from, to


def scan_tfrecord(path: Path) -> list[Record]:
    """List the images of one file.

    Raises:
        DataError: Not a TFRecord file, cut short, or a record without image or label.
    """
    records = []
    for number, (data, start, end) in enumerate(_payloads(path)):
        try:
            records.append(_record(data, start, end, number))
        except (LookupError, ValueError) as error:
            raise DataError(
                f"{path}: record {number} is no tf.Example of a labelled image "
                f"({error}); expected image/encoded and image/class/label"
            ) from error
    return records


def damaged_records(path: Path) -> list[int]:
    """Return the numbers of the records whose data differ from their checksum."""
    return [
        number
        for number, (data, start, end) in enumerate(_payloads(path))
        if masked_crc(data[start:end]) != struct.unpack_from("<I", data, end)[0]
    ]


def _payloads(path: Path) -> Iterator[tuple[mmap.mmap, int, int]]:
    """Yield the mapped file, and where in it the data of a record begin and end."""
    at, size, number = 0, path.stat().st_size, 0
    if not size:
        return
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        while at < size:
            start = end = at + _HEADER
            if start <= size:
                length, check = struct.unpack_from("<QI", data, at)
                if masked_crc(data[at : at + 8]) != check:
                    raise DataError(
                        f"{path}: the length of record {number} does not match its "
                        "checksum: no TFRecord file (compressed ones are not read), or a "
                        "damaged one"
                    )
                end += length
            if end + 4 > size:
                raise DataError(
                    f"{path} is cut short in record {number}; fetch it again"
                )
            yield data, start, end
            at, number = end + 4, number + 1


def _record(data: mmap.mmap, start: int, end: int, number: int) -> Record:
    features: dict[bytes, Span] = {}
    for outer, _, a, b in _fields(data, start, end):  # Example.features
        for inner, _, c, d in _fields(data, a, b) if outer == 1 else ():
            if inner == 1:  # one entry of the map
                entry = {n: (e, f) for n, _, e, f in _fields(data, c, d)}
                key = data[slice(*entry[1])]
                features[key] = entry.get(2, (d, d))

    def value(names: tuple[bytes, ...], kind: int) -> Span | None:
        for name in names:
            span = features.get(name)
            for field, _, a, b in _fields(data, *span) if span else ():
                for _, _, c, d in _fields(data, a, b) if field == kind else ():
                    return c, d
        return None

    image = value(_IMAGE, 1)
    if image is None:
        found = ", ".join(k.decode("ascii", "replace") for k in sorted(features))
        raise LookupError(f"no image among its features: {found or 'none'}")
    name, label = value(_NAMES, 1), value(_LABELS, 3)
    if name is not None and data[slice(*name)]:
        text = data[slice(*name)].decode("utf-8", "replace")
    elif label is not None:
        # Unpacked, the span is the number's own; packed, of several: the first counts.
        class_id, _ = _varint(data, *label)
        text = str(class_id - (1 << 64) if class_id >> 63 else class_id)
    else:
        raise LookupError("no label")
    key_span = value(_KEYS, 1)
    key_text = data[slice(*key_span)].decode("utf-8", "replace") if key_span else ""
    return Record(key_text or f"{number:08d}", text, image[0], image[1] - image[0])


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, from, to) of the fields of a protobuf message."""
    while at < end:
        tag, at = _varint(data, at, end)
        wire, start = tag & 7, at
        if wire == 0:
            _, at = _varint(data, at, end)
        elif wire == 1:
            at += 8
        elif wire == 2:
            length, start = _varint(data, at, end)
            at = start + length
        elif wire == 5:
            at += 4
        else:
            raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("a field reaches beyond its message")
        yield tag >> 3, wire, start, at


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """Return the number at `at`, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number does not end")


def masked_crc(data: bytes) -> int:
    """Return the checksum TFRecord stores: CRC-32C, rotated and shifted."""
    if len(data) > 64:
        crc = int(_fast_crc32c()(np.frombuffer(data, np.uint8), _table()))
    else:
        crc, table = 0xFFFFFFFF, _table_list()
        for byte in data:
            crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
        crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _table_list() -> list[int]:
    return list(_table().tolist())


@functools.cache
def _table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        odd = table & np.uint32(1)
        table = (table >> np.uint32(1)) ^ (odd * np.uint32(0x82F63B78))
    return table


@functools.cache
def _fast_crc32c():  # type: ignore[no-untyped-def] # numba's
    import numba

    @numba.njit(nogil=True, cache=False)
    def crc32c(data, table):  # type: ignore[no-untyped-def]
        crc = np.uint32(0xFFFFFFFF)
        for byte in data:
            crc = table[(crc ^ byte) & np.uint32(255)] ^ (crc >> np.uint32(8))
        return crc ^ np.uint32(0xFFFFFFFF)

    return crc32c
