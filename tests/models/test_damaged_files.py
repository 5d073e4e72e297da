"""Damaged files of weights are noticed, and it is said where that is not possible."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from fastadv.errors import CheckpointError
from fastadv.models import create_model, load_model, read_metadata
from fastadv.models.checkpoint import save_model
from fastadv.models.export import export_model
from fastadv.models.source import open_source


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small network as `save_model` writes them."""
    path = tmp_path_factory.mktemp("content") / "m.safetensors"
    save_model(create_model("resnet8_cifar", 10, seed=0), path, {"epoch": 3})
    return path.read_bytes()


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def joined(header: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def without_checksums(content: bytes, **texts: str) -> bytes:
    """The file as versions before checksums wrote it, with other texts in its header."""
    header, tensors = split(content)
    for key in ("tensors_crc32", "header_sha256"):
        del header["__metadata__"][key]
    header["__metadata__"] |= texts
    return joined(header, tensors)


def test_every_flipped_bit_is_noticed(content: bytes, tmp_path: Path) -> None:
    path, draw = tmp_path / "m.safetensors", random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [draw.randrange(header) for _ in range(30)]
    places += [draw.randrange(header, len(content)) for _ in range(10)]
    places += [
        content.index(b"tensors_crc32") + 2,
        content.index(b"header_sha256") + 20,
    ]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"m\.safetensors"):
            load_model(path)
        if 8 < place < header:
            with pytest.raises(CheckpointError, match=r"m\.safetensors"):
                read_metadata(path)


def test_a_zeroed_page_and_edited_texts_are_noticed(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content[:-4096] + bytes(4096))
    with pytest.raises(CheckpointError, match="the tensors in it and their checksum"):
        load_model(path)
    path.write_bytes(content.replace(b'epoch\\": 3', b'epoch\\": 4'))
    with pytest.raises(CheckpointError, match="the texts in it and their checksum"):
        open_source(str(path))


def test_older_files_open_and_that_is_said(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(without_checksums(content))
    with caplog.at_level(logging.WARNING):
        load_model(path)
    assert "damage to it cannot be noticed" in caplog.text
    caplog.clear()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        load_model(path)
    assert not caplog.text


def test_exported_files_are_compared_with_their_card(tmp_path: Path) -> None:
    model = create_model("resnet18", 7, seed=0)
    path, card = export_model(model, tmp_path / "resnet18.pth", "torchvision")
    assert load_model(path, "resnet18").num_classes == 7
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"not what {card.name} beside it states"):
        load_model(path, "resnet18")
    card.unlink()
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {path.name}\n")
    with pytest.raises(CheckpointError, match="not what SHA256SUMS beside it states"):
        load_model(path, "resnet18")


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("[1]", "`user` is no mapping"),
        ("[" * 100_000, "RecursionError"),
        ('{"config": "x"}', "says config 'x' of its training, which cannot be"),
        ('{"resolution": 1000000000}', "says resolution '1000000000'"),
        ('{"classes": [1]}', "says classes"),
        ('{"preparation": {"resize": 8, "crop": 9}}', "says preparation"),
    ],
)
def test_metadata_that_cannot_be_are_refused(
    user: str, reason: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(without_checksums(content, user=user))
    with pytest.raises(CheckpointError, match=reason):
        open_source(str(path))


def test_headers_of_countless_tensors_are_refused_at_once(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = tmp_path / "m.safetensors"
    path.write_bytes(joined({f"t{n}": entry for n in range(60_000)}, b""))
    with pytest.raises(CheckpointError, match="lists 60000 tensors"):
        load_model(path)
    path.write_bytes((20 << 20).to_bytes(8, "little") + b" " * (20 << 20))
    with pytest.raises(CheckpointError, match="header has 20971520 bytes"):
        load_model(path)
