"""TFRecord and RecordIO."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from record_files import (
    check_everywhere,
    example,
    feature,
    framed,
    image,
    imagenet,
    reds,
)

from fastadv.data import open_dataset
from fastadv.data.files.tfrecord import damaged_records, masked_crc
from fastadv.errors import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))


# ---- TFRecord ----


def test_the_checksum_is_crc32c() -> None:
    # RFC 3720, B.4: 32 bytes of zeros have CRC-32C 8A9136AA; "123456789" E3069283.
    def masked(crc: int) -> int:
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    assert masked_crc(bytes(32)) == masked(0x8A9136AA)
    assert masked_crc(b"123456789") == masked(0xE3069283)
    # Long data go another way: CRC of x then of its parts must agree bit by bit.
    data = bytes(range(256)) * 3
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert masked_crc(data) == masked(crc ^ 0xFFFFFFFF)


@pytest.mark.parametrize("packed", [True, False])
def test_tfrecord(packed: bool, tmp_path: Path) -> None:
    root = tmp_path / "tf"
    root.mkdir()
    records = [imagenet(v, 1 + v // 4 % 2, packed=packed) for v in (0, 4, 8, 12)]
    (root / "train-00000-of-00002").write_bytes(b"".join(records[:3]))
    (root / "train-00001-of-00002").write_bytes(records[3])
    held = [imagenet(v, 1 + v // 4 % 2, packed=packed) for v in (16, 20)]
    (root / "validation-00000-of-00001").write_bytes(b"".join(held))
    splits = open_dataset(root)
    assert splits.train.labels.tolist() == [0, 1, 0, 1]  # ids from 1 there
    check_everywhere(splits.train, [0, 4, 8, 12], loader=packed)
    assert splits.test.split == "validation"
    assert splits.train.describe(1) == "tf:train-00000-of-00002/n_4.JPEG"


def test_tfrecord_with_synsets_and_plain_fields(tmp_path: Path) -> None:
    path = tmp_path / "train.tfrecord"
    path.write_bytes(
        b"".join(imagenet(v, 7, f"n0{9 - v}") for v in (2, 4, 6) for _ in range(2))
    )
    splits = open_dataset(path)
    assert splits.train.classes == ("n03", "n05", "n07")
    plain = framed(example({"image": feature(image(8)), "label": feature(0)}))
    (tmp_path / "p.tfrecords").write_bytes(plain * 2)
    assert open_dataset(tmp_path / "p.tfrecords").train.classes == ("0",)


def test_damaged_tfrecords(tmp_path: Path) -> None:
    path = tmp_path / "train.tfrecord"
    whole = imagenet(2, 1) + imagenet(4, 1) + imagenet(6, 1)
    one = len(imagenet(2, 1))
    path.write_bytes(whole[:-5])
    with pytest.raises(DataError, match="cut short in record 2"):
        open_dataset(path)
    path.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(DataError, match="record 0 does not match its checksum"):
        open_dataset(path)
    path.write_bytes(framed(example({"image/class/label": feature(1)})))
    with pytest.raises(DataError, match="no image among its features: image/class"):
        open_dataset(path)
    path.write_bytes(framed(example({"image/encoded": feature(b"x")})))
    with pytest.raises(DataError, match=r"record 0 .*no label"):
        open_dataset(path)
    path.write_bytes(framed(b"\x0a\xff"))
    with pytest.raises(DataError, match=r"record 0 is no tf.Example"):
        open_dataset(path)
    altered = bytearray(whole)
    altered[one + one // 2] ^= 1
    path.write_bytes(altered)
    assert damaged_records(path) == [1]  # on demand


# ---- RecordIO ----

MAGIC = struct.pack("<I", 0xCED7230A)


def recordio(value: int, label: int, flag: int = 0, extra: bytes = b"") -> bytes:
    payload = struct.pack("<IfQQ", flag, label if not flag else 0.0, value, 0)
    payload += struct.pack("<f", label) * flag + image(value) + extra
    parts = payload.split(MAGIC)
    kinds = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        MAGIC + struct.pack("<I", kind << 29 | len(p)) + p + bytes(-len(p) % 4)
        for kind, p in zip(kinds, parts, strict=True)
    )


def write_rec(path: Path, records: list[bytes], index: bool) -> Path:
    path.write_bytes(b"".join(records))
    if index:
        starts = np.cumsum([0, *map(len, records)])[:-1]
        lines = [f"{key}\t{start}" for key, start in enumerate(starts)]
        path.with_suffix(".idx").write_text("\n".join(lines[::-1]) + "\n")
    return path


@pytest.mark.parametrize("index", [True, False])
def test_recordio(index: bool, tmp_path: Path) -> None:
    root = tmp_path / "rec"
    root.mkdir()
    # Image data that contain the magic number, once and twice, are stored in parts.
    records = [
        recordio(3, 1),
        recordio(4, 0, flag=1),
        recordio(5, 1, extra=b"1" + MAGIC + b"22"),
        recordio(6, 0, extra=MAGIC + MAGIC),
    ]
    assert len({len(r) % 4 for r in records}) == 1
    write_rec(root / "train.rec", records, index)
    write_rec(root / "val.rec", [recordio(8, 0), recordio(9, 1)], index)
    splits = open_dataset(root)
    assert splits.train.labels.tolist() == [1, 0, 1, 0]
    check_everywhere(splits.train, [3, 4, 5, 6], loader=index)
    assert splits.train.read(2) == image(5) + b"1" + MAGIC + b"22"
    assert splits.train.read(3) == image(6) + MAGIC + MAGIC
    assert reds(splits.test) == [8, 9]


def test_damaged_recordio(tmp_path: Path) -> None:
    whole = [recordio(v, v % 2) for v in range(4)]
    path = write_rec(tmp_path / "a.rec", whole, index=False)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="the file ends"):
        open_dataset(path)
    path.write_bytes(b"<html>" * 9)
    with pytest.raises(DataError, match="magic number"):
        open_dataset(path)
    write_rec(path, whole, index=True)
    write_rec(path, [recordio(40, 0, extra=b"longer"), *whole], index=False)
    with pytest.raises(DataError, match=r"its .idx is of another file"):
        open_dataset(path)
    path.with_suffix(".idx").write_text("0 zero\n")
    with pytest.raises(DataError, match="a key and an offset"):
        open_dataset(path)
    path.with_suffix(".idx").unlink()
    write_rec(path, [recordio(1, 0), recordio(1, 0, flag=3)], index=False)
    with pytest.raises(DataError, match="record 1 has 3 labels"):
        open_dataset(path)
