"""pack, verify, stats and unpack: resumption to the bit, planted damage and attacks."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from record_files import imagenet
from shared_data import shared

from fastadv.data import open_dataset
from fastadv.data.files.archives import unpack
from fastadv.data.files.inspection import statistics, verify
from fastadv.data.files.packing import pack
from fastadv.data.opening.by_name import open_as_stored
from fastadv.data.sets.image_set import ImageSet
from fastadv.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))


def encoded(seed: int, kind: str = "JPEG", side: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3))
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, kind)
    return out.getvalue()


def tree(root: Path, train: int = 20, val: int = 6) -> Path:
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            folder = root / split / ("cat", "a dog")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            seed = i + 1000 * (split == "val")
            (folder / f"im.{i:03}.jpg").write_bytes(encoded(seed))
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def by_content(images: ImageSet) -> dict[bytes, str]:
    return {
        images.load(i).tobytes(): images.classes[images.labels[i]]
        for i in range(len(images))
    }


# ---- pack ----


def test_what_is_packed_is_what_was_there(tmp_path: Path) -> None:
    source = open_dataset(tree(tmp_path / "set"))
    manifest = pack(source, tmp_path / "out", shard_bytes=12_000, jobs=2)
    packed = open_dataset(tmp_path / "out")
    assert packed.train.classes == source.train.classes == ("a dog", "cat")
    for a, b in ((source.train, packed.train), (source.test, packed.test)):
        assert by_content(a) == by_content(b)
        assert sorted(map(a.read, range(len(a)))) == sorted(map(b.read, range(len(b))))
    # Shuffled: readers in sequence would otherwise see one class after the other.
    assert 0 < np.abs(np.diff(packed.train.labels)).sum() > 2
    shards = manifest["shards"]
    assert len(shards) > 3
    assert sum(s["samples"] for s in shards) == 26
    for shard in shards:
        data = (tmp_path / "out" / shard["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        assert len(data) == shard["bytes"] < 16_000
    first = (tmp_path / "out/train-000000.idx").read_text().splitlines()
    assert first[0] == f"v1.2 {shards[0]['samples']}"
    ending, offset, size, name = first[1].split()[:4]
    with open(tmp_path / "out/train-000000.tar", "rb") as file:
        file.seek(int(offset))
        assert (file.read(int(size)), ending) == (packed.train.read(0), "jpg")
    with tarfile.open(tmp_path / "out/train-000000.tar") as archive:
        assert archive.getnames()[0] == name
    assert not (tmp_path / "out/.packing").exists()


def test_packing_depends_on_nothing_but_the_plan(tmp_path: Path) -> None:
    source = open_dataset(tree(tmp_path / "set"))
    pack(source, tmp_path / "a", shard_bytes=12_000, jobs=1)
    pack(source, tmp_path / "b", shard_bytes=12_000, jobs=4)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    pack(source, tmp_path / "c", shard_bytes=12_000, seed=1)
    assert files(tmp_path / "a") != files(tmp_path / "c")
    with pytest.raises(ConfigError, match="holds a pack of other seed"):
        pack(source, tmp_path / "a", shard_bytes=12_000, seed=1)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        pack(source, tmp_path / "d")


def test_only_what_is_missing_is_made_again(tmp_path: Path) -> None:
    source = open_dataset(tree(tmp_path / "set"))
    out = tmp_path / "out"
    pack(source, out, shard_bytes=12_000)
    whole = files(out)
    made: list[str] = []
    pack(source, out, shard_bytes=12_000, done=made.append)
    assert made == []
    (out / "train-000001.tar").unlink()
    (out / "val-000000.tar").write_bytes(b"cut")
    pack(source, out, shard_bytes=12_000, done=made.append)
    assert made == ["train-000001.tar", "val-000000.tar"]
    assert files(out) == whole


def test_kill_nine_and_go_on(tmp_path: Path) -> None:
    """SIGKILL at random moments; in the end the same bits, no shard made twice."""
    source = tree(tmp_path / "set", train=300, val=40)
    pack(open_dataset(source), tmp_path / "whole", shard_bytes=20_000)
    program = (
        "import sys, fastadv.data.files.packing as p; from fastadv.data import open_dataset\n"
        "from pathlib import Path\n"
        "p.pack(open_dataset(sys.argv[1]), Path(sys.argv[2]), shard_bytes=20_000,"
        " jobs=2, done=lambda name: print(name, flush=True))\n"
    )
    words = [sys.executable, "-c", program, str(source), str(tmp_path / "out")]
    rng = random.Random(0)
    made: list[str] = []
    kills = 0
    while True:
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for count, line in enumerate(process.stdout, 1):
                made.append(line.strip())
                if kills < 3 and count == 3:
                    time.sleep(rng.random() * 0.01)
                    process.kill()
                    kills += 1
                    break
            made += [line.strip() for line in process.stdout]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "out/manifest.json").exists()
    assert kills == 3
    assert len(made) == len(set(made))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_sets_without_files_are_packed_as_png(tmp_path: Path) -> None:
    source = open_dataset("shapetex", n_train=30, n_test=60, resolution=32, cache=False)
    pack(source, tmp_path / "out")
    packed = open_dataset(tmp_path / "out")
    assert packed.train.classes == source.train.classes
    assert by_content(packed.train) == by_content(source.train)
    assert packed.metric == source.metric


def test_the_metric_goes_with_the_shards(tmp_path: Path) -> None:
    source = open_dataset(tree(tmp_path / "set"), metric="mean_per_class")
    pack(source, tmp_path / "out")
    assert open_dataset(tmp_path / "out").metric == "mean_per_class"


def test_unreadable_images_stop_a_pack(tmp_path: Path) -> None:
    root = tree(tmp_path / "set")
    (root / "train/cat/im.000.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"im\.000\.jpg is of no known image format"):
        pack(open_dataset(root), tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


# ---- verify ----


def test_verify_finds_what_is_planted(tmp_path: Path) -> None:
    root = tree(tmp_path / "set")
    clean = verify(open_dataset(root), jobs=2)
    assert clean.clean
    assert clean.images == {"train": 20, "val": 6}
    train, val = root / "train/cat", root / "val/cat"
    whole = (train / "im.002.jpg").read_bytes()
    (train / "im.002.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "im.004.jpg").write_bytes(whole[:-2])  # decodes, but has no end
    (train / "im.006.jpg").write_bytes(b"")
    png = bytearray(encoded(7, "PNG"))
    png[-20] ^= 1  # in the checksums at the end
    (train / "png.png").write_bytes(png)
    copied = (train / "im.008.jpg").read_bytes()
    (val / "copy.jpg").write_bytes(copied)
    # The same pixels in another file.
    with Image.open(train / "im.010.jpg") as image:
        image.save(val / "same.png")
    (train / "again.jpg").write_bytes((train / "im.012.jpg").read_bytes())
    found = verify(open_dataset(root), jobs=2)
    assert not found.clean
    assert {name for name, _ in found.corrupt} == {
        f"set:train/cat/{n}"
        for n in ("im.002.jpg", "im.004.jpg", "im.006.jpg", "png.png")
    }
    assert found.duplicates == [
        ("set:train/cat/im.008.jpg", "set:val/cat/copy.jpg", "bytes"),
        ("set:train/cat/im.010.jpg", "set:val/cat/same.png", "pixels"),
    ]
    assert found.repeated == {"train": 1, "val": 0}


def test_verify_checks_the_checksums_of_files(tmp_path: Path) -> None:
    pack(open_dataset(tree(tmp_path / "set")), tmp_path / "out")
    shard = tmp_path / "out/train-000000.tar"
    assert verify(open_dataset(tmp_path / "out")).clean
    data = bytearray(shard.read_bytes())
    # Inside the compressed data of an image, where decoding may not notice.
    start = data.find(b"\xff\xda", 512)
    data[start + 200] ^= 0x10
    shard.write_bytes(data)
    corrupt = verify(open_dataset(tmp_path / "out")).corrupt
    assert (str(shard), "differs from its SHA-256 in SHA256SUMS") in corrupt
    records = tmp_path / "train.tfrecord"
    altered = bytearray(b"".join(imagenet(v, 1) for v in range(20)))
    altered[-10] ^= 1
    records.write_bytes(altered)
    corrupt = verify(open_dataset(records)).corrupt
    assert [(n, r) for n, r in corrupt if "record" in n] == [
        (f"{records}: record 19", "CRC mismatch")
    ]


def test_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    root = tmp_path / "set"
    rng = np.random.default_rng(0)
    arrays = []
    for i, (height, width) in enumerate([(4, 6), (10, 8), (7, 7)]):
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        for split in ("train", "val"):
            folder = root / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        arrays.append(pixels.reshape(-1, 3) / 255)
    (root / "train/a/bad.png").write_bytes(b"x")
    found = statistics(open_as_stored(root))["splits"]["train"]
    every = np.concatenate(arrays)
    np.testing.assert_allclose(found["mean"], every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], every.std(axis=0), rtol=1e-12)
    assert found["classes"] == {"a": 3, "b": 1}
    assert (found["images"], found["bad_images"]) == (4, 1)
    assert found["width"] == {"min": 6, "median": 7.0, "max": 8}
    assert found["height"] == {"min": 4, "median": 7.0, "max": 10}


# ---- unpack ----

LIMITS: dict[str, Any] = {"max_bytes": 1_000_000, "max_files": 100}


def tar_with(path: Path, *members: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        good = tarfile.TarInfo("train/a/1.txt")
        good.size = 5
        archive.addfile(good, io.BytesIO(b"hello"))
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_unpack_tar(mode: str, tmp_path: Path) -> None:
    run = member("b/run.sh", size=3, mode=0o4777)
    path = tar_with(tmp_path / "x.tar", member("b", tarfile.DIRTYPE), run, mode=mode)
    assert unpack(path, tmp_path / "out", **LIMITS) == (2, 8)
    assert (tmp_path / "out/train/a/1.txt").read_bytes() == b"hello"
    unpacked = (tmp_path / "out/b/run.sh").stat().st_mode
    assert not unpacked & (stat.S_ISUID | stat.S_IXUSR)


def test_unpack_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("empty/", b"")
        archive.writestr("./train/a/1.txt", b"hello" * 100)
    assert unpack(tmp_path / "x.zip", tmp_path / "out", **LIMITS) == (1, 500)
    assert (tmp_path / "out/train/a/1.txt").read_bytes() == b"hello" * 100
    assert (tmp_path / "out/empty").is_dir()
    with pytest.raises(ConfigError, match="not empty"):
        unpack(tmp_path / "x.zip", tmp_path / "out", **LIMITS)


ATTACKS = [
    (member("../up.txt", size=1), "a path outside the folder"),
    (member("/tmp/abs.txt", size=1), "a path outside the folder"),
    (member("a/../../up.txt", size=1), "a path outside the folder"),
    (member("a\\..\\..\\up.txt", size=1), "a path outside the folder"),
    (member("C:/up.txt", size=1), "a path outside the folder"),
    (member("link", tarfile.SYMTYPE, linkname="/etc"), "a link or special file"),
    (member("hard", tarfile.LNKTYPE, linkname="train/a/1.txt"), "a link or special"),
    (member("pipe", tarfile.FIFOTYPE), "a link or special file"),
    (member("null", tarfile.CHRTYPE, devmajor=1, devminor=3), "a link or special file"),
    (member("disk", tarfile.BLKTYPE, devmajor=8), "a link or special file"),
    (member("train/a/1.txt", size=2), "twice"),
    (member("train/a", size=2), "twice"),
    (member("train/a/1.txt/deeper", size=2), "twice"),
    (member("large", size=2_000_000), "more than 0.001 GB in all"),
]


@pytest.mark.parametrize(("attack", "message"), ATTACKS, ids=range(len(ATTACKS)))
def test_attacks_in_tar(attack: tarfile.TarInfo, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = tar_with(folder / "x.tar", attack)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        unpack(path, folder / "out", **LIMITS)
    assert message in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is left


@pytest.mark.parametrize("attack", ["path", "link", "bomb", "many", "lie", "damage"])
def test_attacks_in_zip(attack: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.txt", b"hello")
        if attack == "path":
            archive.writestr("../../up.txt", b"x")
        elif attack == "link":
            info = zipfile.ZipInfo("link")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
        elif attack in ("bomb", "lie"):
            archive.writestr("b.txt", bytes(5_000_000))
        elif attack == "many":
            for i in range(101):
                archive.writestr(f"{i}/", b"")
    data = bytearray(path.read_bytes())
    if attack == "lie":  # five megabytes that say they are five bytes
        size = (5_000_000).to_bytes(4, "little")
        data = bytearray(bytes(data).replace(size, (5).to_bytes(4, "little")))
    if attack == "damage":
        data[data.find(b"a/1.txt") + 8] ^= 0xFF
    path.write_bytes(data)
    message = {
        "path": "a path outside the folder",
        "link": "a link or special file",
        "bomb": "GB in all (--max-gb)",
        "many": "more than 100 members",
        "lie": "cannot read",
        "damage": "cannot read",
    }[attack]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        unpack(path, folder / "out", **LIMITS)
    assert message in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_compressed_bomb_ends_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    tar_with(path, member("zeros", size=50_000_000), mode="w:gz")
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="GB in all"):
        unpack(path, tmp_path / "out", **LIMITS)
    cut = path.read_bytes()
    path.write_bytes(cut[: len(cut) // 2])
    with pytest.raises(DataError, match="cannot read"):
        unpack(path, tmp_path / "out", max_bytes=10**9, max_files=10)
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="neither a zip nor a tar"):
        unpack(path, tmp_path / "out", **LIMITS)
    assert os.listdir(tmp_path) == ["x.tar.gz"]


# ---- real archives ----


@pytest.mark.parametrize(
    ("name", "classes", "train", "test", "metric"),
    [
        ("cifar10-jpeg-12k.zip", 10, 10_000, 2_000, "top1"),
        ("caltech101-96px.zip", 101, None, None, "top1"),
        ("trashnet6-128px.zip", 6, 1892, 635, "top1"),
        ("tiny-imagenet-40.zip", 40, 20_000, 2_000, "top1"),
        ("mnist-test.npz", 10, 9000, 1000, "top1"),
    ],
)
def test_real_archives(
    name: str, classes: int, train: int | None, test: int | None, metric: str
) -> None:
    splits = open_dataset(shared(name))
    assert (len(splits.train.classes), splits.metric) == (classes, metric)
    if train is None:  # at most 30 and 20 images of a class
        assert np.bincount(splits.train.labels).max() == 30
        assert np.bincount(splits.test.labels).max() == 20
    else:
        assert (len(splits.train), len(splits.test)) == (train, test)
    assert splits.train.load(len(splits.train) - 1).shape[2] == 3


def test_a_real_set_has_images_in_both_splits(tmp_path: Path) -> None:
    """TrashNet was split at random over repeated photographs: two pairs are equal."""
    found = verify(open_dataset(shared("trashnet6-128px.zip")))
    assert found.corrupt == []
    assert [pair[2] for pair in found.duplicates] == ["bytes", "bytes"]
