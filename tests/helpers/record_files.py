"""Small files of every record format, and what must be read from them."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from fastadv.data import make_loader
from fastadv.data.files.tfrecord import masked_crc
from fastadv.data.sets.image_set import ImageSet


def image(value: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 255 - value)).save(out, kind)
    return out.getvalue()


def reds(images: ImageSet) -> list[int]:
    return [int(images.load(i)[0, 0, 0]) for i in range(len(images))]


def check_everywhere(
    images: ImageSet, expected: list[int], loader: bool = True
) -> None:
    """Random access from threads, a pickled copy, and the forked worker of a loader."""
    assert reds(images) == expected
    with ThreadPoolExecutor(4) as pool:
        got = pool.map(lambda i: int(images.load(i)[0, 0, 0]), range(len(expected)))
        assert list(got) == expected
    assert reds(pickle.loads(pickle.dumps(images))) == expected
    if not loader:  # a worker process costs seconds: once per format is enough
        return
    batches = make_loader(
        images,
        batch_size=2,
        resolution=4,
        train=False,
        backend="torchvision",
        workers=1,
    )
    delivered = [int(v) for batch in batches for v in batch.images[:, 0, 0, 0]]
    assert delivered == expected


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(values: Iterable[int], label: str = "cls") -> list[tuple[str, bytes]]:
    """Class 1 for odd values, 0 for even ones."""
    members = []
    for v in values:
        content = {
            "cls": str(v % 2).encode(),
            "txt": (b"even", b"odd")[v % 2],
            "json": json.dumps({"label": v % 2, "width": 6}).encode(),
        }
        members += [(f"d/{v:03}.png", image(v)), (f"d/{v:03}.{label}", content[label])]
    return members


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(value: bytes | int | float, packed: bool = True) -> bytes:
    if isinstance(value, bytes):
        return message(1, message(1, value))
    if isinstance(value, float):
        return message(2, message(1, struct.pack("<f", value)))
    return message(3, message(1, varint(value)) if packed else b"\x08" + varint(value))


def example(features: dict[str, bytes]) -> bytes:
    entries = (
        message(1, message(1, key.encode()) + message(2, value))
        for key, value in features.items()
    )
    return message(1, b"".join(entries))


def framed(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    checks = (struct.pack("<I", masked_crc(part)) for part in (length, payload))
    return length + next(checks) + payload + next(checks)


def imagenet(value: int, label: int, synset: str = "", packed: bool = True) -> bytes:
    features = {
        "image/height": feature(5),
        "image/class/label": feature(label, packed),
        "image/encoded": feature(image(value, "JPEG" if value % 2 else "PNG")),
        "image/object/bbox/xmin": feature(0.5),
        "image/filename": feature(f"n_{value}.JPEG".encode()),
    }
    if synset:
        features["image/class/synset"] = feature(synset.encode())
    return framed(example(features))


def table(values: list[int], names: list[str] | None = None, text: bool = False) -> Any:
    rows = [{"bytes": image(v), "path": f"{v}.png"} for v in values]
    labels = [("even", "odd")[v % 2] if text else v % 2 for v in values]
    made = pa.table({"image": rows, "label": labels})
    if names:
        info = {
            "info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}
        }
        made = made.replace_schema_metadata({"huggingface": json.dumps(info)})
    return made
