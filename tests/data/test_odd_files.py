"""Files that are no files, small files that claim to be large, and folders of bad images."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastadv.data import make_loader, open_dataset
from fastadv.data.decoding import BadImage
from fastadv.errors import DataError


def png(shade: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two classes, four of each in training and two in validation."""
    for split, count in (("train", 4), ("val", 2)):
        for label in "ab":
            place = tmp_path / "set" / split / label
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{number}.png").write_bytes(png(40 * number))
    return tmp_path / "set"


def test_what_is_no_file_is_a_bad_image_and_fingerprints_survive(folder: Path) -> None:
    place = folder / "train" / "a"
    os.mkfifo(place / "pipe.png")
    (place / "dangling.png").symlink_to("/nowhere/x")
    (place / "loop.png").symlink_to(place / "loop.png")
    (place / "endless.png").symlink_to("/dev/zero")
    (place / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(place / "socket.png"))
    train = open_dataset(str(folder)).train
    assert len(train.fingerprint) == 32
    loader = make_loader(
        train, batch_size=16, resolution=8, train=False, backend="memory"
    )
    assert sum(len(batch.labels) for batch in loader) == 8
    names = ("dangling", "endless", "folder", "loop", "pipe", "socket")
    found = [name for name, _ in loader.bad_images]
    assert found == [f"set:train/a/{name}.png" for name in names]
    (place / "0.png").unlink()  # while the set is in use
    with pytest.raises(BadImage, match=r"a/0\.png: No such file"):
        train.load(0)


@pytest.mark.parametrize("backend", ["memory", "torchvision"])
def test_a_class_without_a_readable_image_is_left_out_of_an_evaluation(
    folder: Path, backend: str
) -> None:
    for path in (folder / "val" / "a").iterdir():
        path.write_bytes(b"no image")
    held = open_dataset(str(folder)).test
    loader = make_loader(
        held, batch_size=16, resolution=8, train=False, backend=backend, workers=0
    )
    assert [batch.labels.tolist() for batch in loader] == [[1, 1]]
    assert len(loader.bad_images) == 2
    for path in (folder / "val" / "b").iterdir():
        path.write_bytes(b"no image")
    held = open_dataset(str(folder)).test
    with pytest.raises(DataError, match="no image in set/val can be decoded"):
        list(
            make_loader(
                held,
                batch_size=16,
                resolution=8,
                train=False,
                backend=backend,
                workers=0,
            )
        )


# ---- small files that would take much memory or time ----


def _zip(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def _usual(extra: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    names = [f"{split}/{label}/0.png" for split in ("train", "val") for label in "ab"]
    return [(name, png()) for name in names] + extra


def _header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue()


def _labels(path: Path, labels: list[float]) -> Path:
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    np.savez_compressed(path, x=images, y=np.array(labels))
    return path


def _tar(path: Path, label: bytes, pax: dict[str, str]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(2):
            ending = "json" if label[:1] in b"[" else "cls"
            for name, content in (
                (f"{number}.png", png()),
                (f"{number}.{ending}", label),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                info.pax_headers = pax if number else {}
                archive.addfile(info, io.BytesIO(content))
    return path


def _twice(path: Path) -> Path:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return _zip(path, _usual([("train/a/0.png", png())]))


def _overlapping(path: Path) -> Path:
    content = bytearray(_zip(path, _usual([])).read_bytes())
    second = content.index(b"PK\1\2", content.index(b"PK\1\2") + 4)
    content[second + 42 : second + 46] = bytes(4)  # its data begin where the first's do
    path.write_bytes(content)
    return path


def _base_256(path: Path) -> Path:
    content = bytearray(_tar(path, b"1", {}).read_bytes())
    content[124:136] = b"\x80" + (2**63 - 1).to_bytes(11, "big")
    total = sum(content[:148]) + sum(content[156:512]) + 8 * ord(" ")
    content[148:156] = b"%06o\0 " % total
    path.write_bytes(content)
    return path


def _idx(path: Path) -> Path:
    path.mkdir()
    shape = struct.pack(">III", 200_000, 32, 32)
    with gzip.open(path / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        file.write(b"\0\0\x08\x03" + shape + bytes(200 << 20))
    (path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\2ab")
    return path


SMALL: dict[str, tuple[Callable[[Path], Path], str]] = {
    "label": (
        lambda p: _labels(p / "l.npz", [10**8] * 3),
        "label 100000000 would make",
    ),
    "half": (lambda p: _labels(p / "h.npz", [0.7, 1.7]), "no whole number"),
    "cls": (lambda p: _tar(p / "c.tar", b"1000000000", {}), "label 1000000000 would"),
    "array": (
        lambda p: _zip(p / "a.npz", [("x.npy", _header((2**60,))), ("y.npy", b"")]),
        "bytes cannot hold",
    ),
    "bomb": (
        lambda p: _zip(p / "b.npz", [("x.npy", bytes(100 << 20)), ("y.npy", b"")]),
        "would unpack to 104857600 bytes",
    ),
    "twice": (lambda p: _twice(p / "t.zip"), "'train/a/0.png' twice"),
    "overlap": (lambda p: _overlapping(p / "o.zip"), "overlaps another"),
    "pax": (
        lambda p: _tar(p / "p.tar", b"1", {"size": str(2**60)}),
        "bytes, and the shard",
    ),
    "base256": (lambda p: _base_256(p / "b.tar"), "bytes, and the shard"),
    "sparse": (
        lambda p: _tar(p / "s.tar", b"1", {"GNU.sparse.map": "a,b"}),
        "cannot read .* as a tar shard",
    ),
    "json": (lambda p: _tar(p / "j.tar", b"[" * 100_000, {}), "nested too deeply"),
    "idx": (lambda p: _idx(p / "i"), "unpacks to more than"),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, reason = SMALL[name]
    with pytest.raises(DataError, match=reason):
        open_dataset(str(make(tmp_path)))


def test_a_member_that_unpacks_to_a_gigabyte_is_a_bad_image(tmp_path: Path) -> None:
    path = _zip(tmp_path / "z.zip", _usual([]))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("train/a/bomb.png", bytes(300 << 20))
    train = open_dataset(str(path)).train
    with pytest.raises(
        BadImage, match=r"bomb\.png: it has 314572800 bytes, and at most"
    ):
        train.load(train.members.index("train/a/bomb.png"))


_CHILD = """
import json, resource, sys, time
from fastadv.data import open_dataset
from fastadv.errors import DataError
measured = []
for path in json.loads(sys.argv[1]):
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    try:
        open_dataset(path)
        refused = False
    except DataError:
        refused = True
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.process_time() - began
    measured.append((path, refused, seconds, (after.ru_maxrss - before.ru_maxrss) / 1024))
print(json.dumps(measured))
"""


def test_small_files_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    paths = [str(make(tmp_path)) for make, _ in SMALL.values()]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))

    child = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(paths)],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limited,
        check=True,
    )
    for path, refused, seconds, megabytes in json.loads(child.stdout):
        assert refused, path
        assert seconds < 2, path
        assert megabytes < 500, path
