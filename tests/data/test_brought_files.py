"""What is only judged, endings that are read, links, and class folders called by numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from odd_data import content, write

from fastadv.data import open_dataset, open_judged_splits
from fastadv.errors import ConfigError, DataError

TRAIN = ("train/a/{1,2,3}.png", "train/b/{4,5,6}.png")
IN_TRAIN = {"a": [1, 2, 3], "b": [4, 5, 6]}
HELD = {"a": [7], "b": [8]}


# ---- only what is to be judged ----


def test_all_of_what_is_only_judged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from record_files import samples, write_tar

    folder = write(tmp_path / "x", "val/a/{1,2}.png", "val/b/{3,4}.png")
    expected = {"a": [1, 2], "b": [3, 4]}
    assert content(open_judged_splits(folder).test) == expected
    assert content(open_judged_splits(folder / "val").test) == expected
    assert not caplog.text
    alone = write(tmp_path / "r", "a/{1,2}.png", "b/{3,4}.png")
    assert content(open_judged_splits(alone).test) == expected
    assert "r has one split: all of its 4 images are judged" in caplog.text
    with pytest.raises(DataError, match=r"no train/ folder; found 'val' alone"):
        open_dataset(folder)
    for name in ("val-000.tar", "all.tar"):
        path = write_tar(tmp_path / "shards" / name, samples(range(20)))
        assert len(open_judged_splits(path).test) == 20
    # Of files that are called training ones, the held-out part is judged, as was trained.
    path = write_tar(tmp_path / "shards" / "train-000.tar", samples(range(20)))
    judged = open_judged_splits(path).test
    assert judged.fingerprint == open_dataset(path).test.fingerprint
    assert len(judged) == 2


# ---- endings, links, numbers ----


def test_what_pillow_reads_is_read_and_the_rest_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    endings = [
        "jfif",
        "jpe",
        "JPG",
        "webp",
        "tif",
        "TIFF",
        "bmp",
        "gif",
        "png",
        "ppm",
        "tga",
        "jp2",
        "avif",
    ]
    for part in ("train", "val"):
        for i, ending in enumerate(endings):
            path = tmp_path / part / "ab"[i % 2] / f"{i}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (100, 100, 100)).save(path)
    for name in ("x.heic", "y.HEIC", "z.svg", "noending", "notes.txt"):
        (tmp_path / "train/a" / name).write_bytes(b"x")
    splits = open_dataset(tmp_path)
    assert len(splits.train) == len(splits.test) == len(endings)
    values = [int(splits.train.load(i)[4, 4, 0]) for i in range(len(endings))]
    assert all(abs(value - 100) <= 3 for value in values)
    assert "train/: 4 file(s) are left out" in caplog.text
    assert ".heic 2" in caplog.text
    assert "(none) 1" in caplog.text
    assert ".txt" not in caplog.text


def test_rarer_formats_are_packed_too(tmp_path: Path) -> None:
    from fastadv.data.files.packing import pack

    paths = ("{}/a/1.tga", "{}/a/2.jp2", "{}/b/3.png", "{}/b/4.jfif")
    root = write(
        tmp_path / "x", *(p.format(s) for s in ("train", "val") for p in paths)
    )
    for path in root.rglob("*.*"):
        from PIL import Image

        Image.new("RGB", (8, 8), (50, 50, 50)).save(path)
    (root / "train/b/5.png").write_bytes((root / "val/a/2.jp2").read_bytes())
    pack(open_dataset(root), tmp_path / "packed")
    packed = open_dataset(tmp_path / "packed").train
    assert len(packed) == 5
    assert all(abs(int(packed.load(i)[4, 4, 0]) - 50) <= 3 for i in range(5))


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "x", "images/{1,2}.png")
    (root / "labels.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cannot read .*labels\.csv: No such file"):
        open_dataset(root)


def test_the_endings_are_those_of_pillow() -> None:
    from PIL import Image

    from fastadv.data.sets.endings import IMAGE_SUFFIXES

    Image.init()
    both = Image.EXTENSION.items()
    written = {e for e, f in both if f in Image.OPEN and f in Image.SAVE}
    handed_on = {".eps", ".ps", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf"}
    handed_on |= {".pfm"}  # of floats
    assert written - handed_on <= IMAGE_SUFFIXES <= set(Image.EXTENSION)


def test_files_that_vanish_are_bad_images(tmp_path: Path) -> None:
    root = write(tmp_path / "x", *TRAIN, "val/a/7.png", "val/b/8.png")
    (root / "train/a/9.png").symlink_to(tmp_path / "nowhere.png")
    train = open_dataset(root).train
    assert len(train) == 7
    (root / "train/b/4.png").unlink()
    assert len(train.fingerprint) == 32
    assert len(train.content_hash()) == 64
    with pytest.raises(DataError, match=r"train/a/9\.png: No such file"):
        train.load(3)
    with pytest.raises(DataError, match=r"train/b/4\.png: No such file"):
        train.load(4)


def test_class_folders_called_by_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [f"{part}/{i}/{i}.png" for part in ("train", "val") for i in range(12)]
    root = write(tmp_path / "x", *paths)
    train = open_dataset(root).train
    assert train.classes[:4] == ("0", "1", "10", "11")
    assert "called by numbers and sorted as text" in caplog.text
    assert "class_order=number" in caplog.text
    caplog.clear()
    train = open_dataset(root, class_order="number").train
    assert train.classes == tuple(map(str, range(12)))
    assert not caplog.text
    # Padded numbers and few of them are in one order, whichever way.
    padded = [f"{part}/{i:02d}/{i}.png" for part in ("train", "val") for i in range(12)]
    for few in (padded, paths[:10] + paths[12:22]):
        open_dataset(write(tmp_path / f"few{len(few)}", *few))
    assert not caplog.text
    with pytest.raises(ConfigError, match="unknown class_order"):
        open_dataset(root, class_order="numeric")
    with pytest.raises(ConfigError, match="needs classes that are called by numbers"):
        open_dataset(write(tmp_path / "y", *TRAIN), class_order="number")
