"""Labels in the names of images, arrays of HDF5 files, and packed 12-bit TIFF files."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_data import content, write
from PIL import Image

from fastadv.cli.data import main
from fastadv.data import open_dataset, open_judged_splits
from fastadv.errors import ConfigError, DataError


def test_kaggle_calls_images_by_their_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Dogs vs. Cats: train/cat.0.jpg, and test/1.jpg without labels."""
    write(
        tmp_path / "x",
        "train/cat.{1,2,3}.png",
        "train/dog.{4,5,6}.png",
        "test/{7,8}.png",
    )
    splits = open_dataset(tmp_path / "x", holdout=0.34)
    assert splits.train.classes == ("cat", "dog")
    assert len(splits.train) + len(splits.test) == 6
    assert "labels are taken from the names of the images, 'cat' of" in caplog.text
    assert "label_pattern=REGEX" in caplog.text
    assert "test/ has no labels (2 images); it is passed over" in caplog.text


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["Abyssinian_{1,2}.png", "big_dog_{3,4}.png"], ("Abyssinian", "big_dog")),
        (["dog (1).png", "dog (2).png", "a fox (3).png", "a fox (4).png"], ("a fox", "dog")),
        (["n01440764_{1,2}.png", "n01443537_{3,4}.png"], ("n01440764", "n01443537")),
        (["rose{1,2}.png", "tulip-{3,4}.png"], ("rose", "tulip")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["", "images/", "train/"])
@pytest.mark.parametrize("zipped", [False, True])
def test_other_habits_of_names(
    tmp_path: Path,
    names: list[str],
    classes: tuple[str, ...],
    folder: str,
    zipped: bool,
) -> None:
    root = write(tmp_path / "x", *(folder + name for name in names))
    files = sorted(root.rglob("*.png"))
    if zipped:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(root))
        root = tmp_path / "x.zip"
    splits = open_dataset(root, holdout=0.5)
    assert splits.train.classes == classes
    assert (len(splits.train), len(splits.test)) == (2, 2)


@pytest.mark.parametrize(
    "names",
    [
        ["IMG_{1,2}.png", "DSC_{3,4}.png"],  # two cameras
        ["cat_{1,2}.png"],  # one class
        ["cat_1.png", "dog_2.png", "fox_3.png"],  # every name another word
        ["{1,2,3,4}.png"],
        ["a1b2_{1,2}x.png", "c3d4_{3,4}y.png"],
    ],
)
def test_names_that_hold_no_labels(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path / "x", *names)
    with pytest.raises(DataError, match="without a list of labels"):
        open_dataset(tmp_path / "x")


def test_names_do_not_add_classes_to_folders(tmp_path: Path) -> None:
    """A flat split beside folders of classes counts if its names are those classes."""
    write(tmp_path / "x", "train/cat/{1,2}.png", "train/dog/{3,4}.png")
    write(tmp_path / "x", "test/cat_{5,6}.png", "test/dog_{7,8}.png")
    assert content(open_dataset(tmp_path / "x").test) == {"cat": [5, 6], "dog": [7, 8]}
    write(tmp_path / "y", "train/cat/{1,2}.png", "train/dog/{3,4}.png")
    write(tmp_path / "y", "test/left_{5,6}.png", "test/right_{7,8}.png")
    assert len(open_dataset(tmp_path / "y", holdout=0.5).test) == 2


def test_a_pattern_of_ones_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes before folders and lists; what it does not match is counted."""
    write(
        tmp_path / "x", "p1/s1_happy.png", "p1/s2_sad.png", "p2/s3_happy.png",
        "p2/s4_sad.png", "p2/other5.png", "labels.csv",
        text={"labels.csv": "file,label\ns1_happy.png,9\n"},
    )  # fmt: skip
    images = open_judged_splits(tmp_path / "x", label_pattern=r"_(\w+)\.png").test
    assert content(images) == {"happy": [1, 3], "sad": [2, 4]}
    assert "have no label" in caplog.text
    write(tmp_path / "z", "train/a0-{1,2}.png", "train/a1-{3,4}.png", "val/a1-5.png")
    write(tmp_path / "z", "val/a0-6.png")
    splits = open_dataset(tmp_path / "z", label_pattern=r"(\d)-")
    assert content(splits.train) == {"0": [1, 2], "1": [13, 14]}
    assert content(splits.test) == {"0": [6], "1": [15]}
    for pattern, said in (
        ("(", "is no regular expression"),
        ("[a-z]+", "has no group"),
    ):
        with pytest.raises(ConfigError, match=said):
            open_dataset(tmp_path / "x", label_pattern=pattern)


_ROWS = [(1, "a"), (2, "b"), (3, "a"), (4, "b")]


@pytest.mark.parametrize(
    "document",
    [
        {f"{i}.png": label for i, label in _ROWS},
        {f"img/{i}.png": {"label": label, "width": 6} for i, label in _ROWS},
        [{"file_name": f"{i}.png", "label": label} for i, label in _ROWS],
        [[f"img/{i}.png", label] for i, label in _ROWS],
        {"labels": [[f"img/{i}.png", label] for i, label in _ROWS]},
        {
            "images": [{"id": i, "file_name": f"{i}.png"} for i, _ in _ROWS],
            "annotations": [
                {"image_id": i, "category_id": 7 + i % 2} for i, _ in _ROWS
            ],
            "categories": [{"id": 8, "name": "a"}, {"id": 7, "name": "b"}],
        },
    ],
)
def test_lists_in_json(tmp_path: Path, document: Any) -> None:
    """A map, objects, pairs (as StyleGAN's dataset.json) and COCO's tables."""
    text = {"annotations.json": json.dumps(document)}
    root = write(tmp_path / "x", "img/{1,2,3,4}.png", text=text)
    assert content(open_judged_splits(root).test) == {"a": [1, 3], "b": [2, 4]}


def test_json_that_lists_no_labels(tmp_path: Path) -> None:
    """Names of classes are none, though they may be called like files; nor is damage."""
    text = {"cat_to_name.json": '{"1": "rose", "2": "lily"}', "bad.json": "{"}
    root = write(tmp_path / "x", "1/{1,2}.png", "2/{3,4}.png", text=text)
    assert content(open_judged_splits(root).test) == {"1": [1, 2], "2": [3, 4]}
    several = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"image_id": 1, "category_id": i} for i in (1, 2)],
    }
    root = write(tmp_path / "y", "img/{1,2}.png", text={"a.json": json.dumps(several)})
    with pytest.raises(DataError, match="1 of 1 images several classes"):
        open_judged_splits(root)


def test_stats_and_verify_name_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class without images is no corrupt file; a data set without splits has a name."""
    flat = write(tmp_path / "flat", "cat_{1,2}.png", "dog_{3,4}.png")
    assert main(["stats", str(flat)]) == 0
    assert "all: 4 images, 2 classes of 2 to 2" in capsys.readouterr().out
    half = write(tmp_path / "half", "train/a/{1,2}.png", "train/b/3.png", "val/a/4.png")
    assert main(["verify", str(half)]) == 1
    shown = capsys.readouterr().out
    assert "classes without images: 1\n  half/val: no images of 1 of 2 classes" in shown
    assert "corrupt" not in shown


# ---- HDF5 ----


def _reds(n: int, first: int = 0) -> np.ndarray:
    images = np.zeros((n, 6, 5, 3), np.uint8)
    images[..., 0] = np.arange(first, first + n)[:, None, None]
    return images


def test_arrays_of_hdf5_files(tmp_path: Path) -> None:
    """In one file, in groups, in a file each as PatchCamelyon, and as Galaxy10 has them."""
    h5py = pytest.importorskip("h5py")
    labels = np.arange(4) % 2
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["x_train"], file["y_train"] = _reds(4), labels
        file["x_test"], file["y_test"] = _reds(2, 10), labels[:2, None]
        file["notes"] = np.zeros(3)
    with h5py.File(tmp_path / "groups.hdf5", "w") as file:
        for split, first in (("train", 0), ("val", 10)):
            file[f"{split}/images"] = _reds(4, first).transpose(0, 3, 1, 2)
            file[f"{split}/labels"] = np.array([b"cat", b"dog"] * 2)
    (tmp_path / "pcam").mkdir()
    for split, first in (("train", 0), ("valid", 10)):
        stem = f"camelyonpatch_level_2_split_{split}"
        with h5py.File(tmp_path / f"pcam/{stem}_x.h5", "w") as file:
            file["x"] = _reds(4, first)
        with h5py.File(tmp_path / f"pcam/{stem}_y.h5", "w") as file:
            file["y"] = labels.reshape(4, 1, 1, 1)
    with h5py.File(tmp_path / "Galaxy10.h5", "w") as file:
        file["images"], file["ans"] = _reds(10), np.arange(10) % 2
    with h5py.File(tmp_path / "v73.mat", "w", userblock_size=512) as file:
        file["images"], file["labels"] = _reds(4).T, labels[None]
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b"\0")
    with (tmp_path / "v73.mat").open("r+b") as stream:
        stream.write(head)
    for path in ("one.h5", "groups.hdf5", "pcam"):
        splits = open_dataset(tmp_path / path)
        assert list(content(splits.train).values()) == [[0, 2], [1, 3]], path
        assert splits.test.load(0)[0, 0, 0] == 10, path
    assert open_dataset(tmp_path / "groups.hdf5").train.classes == ("cat", "dog")
    assert len(open_judged_splits(tmp_path / "Galaxy10.h5").test) == 10
    judged = open_judged_splits(tmp_path / "v73.mat").test
    assert list(content(judged).values()) == [[0, 2], [1, 3]]


def test_hdf5_files_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    h5py = pytest.importorskip("h5py")
    with pytest.raises(DataError, match=r"cannot read .*x\.h5 as an HDF5 file"):
        open_dataset(tmp_path / "x.h5")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(DataError, match="expected x_train, y_train"):
        open_dataset(tmp_path / "none.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(DataError, match=r"needs the package h5py: .*fastadv\[hdf5\]"):
        open_dataset(tmp_path / "none.h5")


# ---- packed 12-bit TIFF ----


def _packed_tiff(pixels: np.ndarray) -> bytes:
    """Return a TIFF file with 12 bits per sample: two samples in three bytes."""
    height, width = pixels.shape
    first, second = pixels[:, ::2].astype(int), pixels[:, 1::2].astype(int)
    parts = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    data = np.stack(parts, -1).astype(np.uint8).tobytes()
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, 12), (259, 3, 1), (262, 3, 1),
        (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data)),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def test_packed_12_bit_tiff(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Microscopes write 12 bits per sample; 4095 becomes white."""
    pixels = np.array([[4095, 0], [2048, 1024]])
    for split in ("train", "val"):
        for name in "ab":
            file = tmp_path / f"x/{split}/{name}/1.tif"
            file.parent.mkdir(parents=True)
            file.write_bytes(_packed_tiff(pixels))
    assert Image.open(tmp_path / "x/val/a/1.tif").mode == "I;16"
    train = open_dataset(tmp_path / "x").train
    assert train.load(0)[..., 0].tolist() == [[255, 0], [128, 64]]
    assert "images are 12-bit ones" in caplog.text
