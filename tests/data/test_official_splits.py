"""Every data set of the catalogue, opened from a miniature tree in its real layout."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from miniatures import (
    TREES,
    aircraft,
    caltech,
    content,
    dtd,
    flowers102,
    food101,
    idx,
    sun397,
    svhn,
    text,
)
from PIL import Image

from fastadv.data import open_dataset
from fastadv.data.opening.by_name import native_resolution
from fastadv.data.sets.catalog import CATALOG
from fastadv.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("name", "make"), TREES, ids=[f"{i}-{n}" for i, (n, _) in enumerate(TREES)]
)
def test_every_layout_is_read_as_published(
    name: str, make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, test = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    splits = open_dataset(name, root=tmp_path)
    assert (content(splits.train), content(splits.test)) == (train, test)
    assert splits.train.classes == splits.test.classes
    if name not in ("fashion_mnist", "kmnist"):  # their ids are the published ones
        assert list(splits.train.classes) == sorted(
            splits.train.classes, key=str.encode
        )
    assert (splits.name, splits.train.name) == (name, name)
    assert splits.metric == CATALOG[name].metric
    assert splits.train.augment_default == CATALOG[name].augment
    assert "published are" in caplog.text  # a miniature is not the real set
    again = open_dataset(name, root=tmp_path)
    assert again.train.fingerprint == splits.train.fingerprint
    assert splits.train.fingerprint != splits.test.fingerprint
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written


def test_every_entry_has_a_miniature_and_its_published_sizes() -> None:
    assert {name for name, _ in TREES} | {"cifar10", "cifar100"} == set(CATALOG)
    # The table of the transfer literature, independent of the catalogue.
    published = {
        "aircraft": (100, 6667, 3333, "mean_per_class"),
        "birdsnap": (500, 32677, 8171, "top1"),
        "caltech101": (101, 3030, 5647, "mean_per_class"),
        "caltech256": (257, 15420, 15187, "mean_per_class"),
        "cifar10": (10, 50000, 10000, "top1"),
        "cifar100": (100, 50000, 10000, "top1"),
        "dtd": (47, 3760, 1880, "top1"),
        "flowers102": (102, 2040, 6149, "mean_per_class"),
        "food101": (101, 75750, 25250, "top1"),
        "oxford_pets": (37, 3680, 3669, "mean_per_class"),
        "stanford_cars": (196, 8144, 8041, "top1"),
        "sun397": (397, 19850, 19850, "top1"),
    }
    for name, facts in published.items():
        entry = CATALOG[name]
        assert (*entry.counts, entry.metric) == facts
    assert all(e.citation and e.licence and e.splits for e in CATALOG.values())
    assert native_resolution("mnist") == 32


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official layout; torchvision's list of MD5 sums is that of the miniature."""
    kind = (
        torchvision.datasets.CIFAR10
        if name == "cifar10"
        else torchvision.datasets.CIFAR100
    )
    folder = tmp_path / kind.base_folder
    folder.mkdir()

    def save(file: str, values: dict[str, Any]) -> list[str]:
        blob = pickle.dumps(values)
        (folder / file).write_bytes(blob)
        return [file, hashlib.md5(blob).hexdigest()]

    key = "labels" if name == "cifar10" else "fine_labels"
    classes = sorted(["cat", "apple"])
    meta = save(kind.meta["filename"], {kind.meta["key"]: classes})
    files = [f for f, _ in kind.train_list]
    sums = [
        save(f, {"data": np.full((2, 3072), i, np.uint8), key: [1, 0]})
        for i, f in enumerate(files)
    ]
    data = np.full((2, 3072), 200, np.uint8)
    test = save(kind.test_list[0][0], {"data": data, key: [1, 0]})
    monkeypatch.setattr(kind, "train_list", sums)
    monkeypatch.setattr(kind, "test_list", [test])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": meta[1]})
    splits = open_dataset(name, root=tmp_path)
    expected = [(c, i) for i in range(len(files)) for c in ("cat", "apple")]
    assert content(splits.train) == expected
    assert content(splits.test) == [("cat", 200), ("apple", 200)]
    assert splits.train.augment_default == "crop_flip"
    (folder / test[0]).write_bytes(pickle.dumps({"data": "another"}))
    with pytest.raises(DataError, match="not the official ones"):
        open_dataset(name, root=tmp_path)


def test_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    food101(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("food101").train) == 2  # ./data
    monkeypatch.chdir("/")
    with pytest.raises(DataError, match="no such folder"):
        open_dataset("food101")
    monkeypatch.setenv("FASTADV_DATA", str(tmp_path / "data"))
    assert len(open_dataset("food101").train) == 2
    # The folder itself may be the root.
    assert len(open_dataset("food101", root=tmp_path / "data/food-101").train) == 2


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError) as caught:
        open_dataset("dtd", root=tmp_path)
    message = str(caught.value)
    assert (
        "expected images, labels/train1.txt, labels/val1.txt, labels/test1.txt"
        in message
    )
    assert "dtd/ or dtd/dtd/" in message
    assert "Found 'other'" in message
    assert "FASTADV_DATA" in message
    dtd(tmp_path)
    (tmp_path / "dtd/dtd/labels/val1.txt").unlink()
    with pytest.raises(DataError, match=r"dtd/dtd lacks labels/val1\.txt"):
        open_dataset("dtd", root=tmp_path)


def test_listed_images_that_are_not_there(tmp_path: Path) -> None:
    food101(tmp_path)
    (tmp_path / "food-101/images/waffles/6.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the 2 images listed.*waffles/6\.jpg"):
        open_dataset("food101", root=tmp_path)


def test_class_counts_that_differ_between_splits(tmp_path: Path) -> None:
    food101(tmp_path)
    text(tmp_path / "food-101", "meta/test.txt", "apple_pie/8")
    with pytest.raises(DataError, match=r"1 of 2 classes in test: 'waffles'"):
        open_dataset("food101", root=tmp_path)
    text(tmp_path / "food-101", "meta/train.txt", "apple_pie/9")
    text(tmp_path / "food-101", "meta/test.txt", "apple_pie/8", "waffles/6")
    with pytest.raises(
        DataError, match=r"'waffles' are in test/ but not in train/ \(2"
    ):
        open_dataset("food101", root=tmp_path)


@pytest.mark.parametrize(
    ("make", "name", "path", "content"),
    [
        (
            aircraft,
            "aircraft",
            "fgvc-aircraft-2013b/data/images_variant_test.txt",
            b"1\n",
        ),
        (flowers102, "flowers102", "flowers-102/setid.mat", b"<html>"),
        (sun397, "sun397", "SUN397/Partitions/Testing_01.txt", b"abbey\n"),
        (svhn, "svhn", "svhn/train_32x32.mat", b"<html>"),
        (
            idx("mnist", False),
            "mnist",
            "mnist/train-images-idx3-ubyte",
            b"\0\0\x08\x01abc",
        ),
        (
            idx("mnist", True),
            "mnist",
            "mnist/t10k-labels-idx1-ubyte.gz",
            b"\x1f\x8b\x08",
        ),
    ],
)
def test_damaged_lists_are_named(
    make: Any, name: str, path: str, content: bytes, tmp_path: Path
) -> None:
    make(tmp_path)
    (tmp_path / path).write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_dataset(name, root=tmp_path)
    assert Path(path).parts[0] in str(caught.value)
    assert any(word in str(caught.value) for word in ("again", "not an idx"))


def test_options(tmp_path: Path) -> None:
    train, test = caltech("caltech101/101_ObjectCategories", 30)(tmp_path)
    dtd(tmp_path)
    first = open_dataset("caltech101", root=tmp_path, split_seed=1)
    second = open_dataset("caltech101", root=tmp_path, split_seed=2)
    assert content(first.train) != train
    assert content(first.train) != content(second.train)
    assert content(first.train) == content(
        open_dataset("caltech101", root=tmp_path, split_seed=1).train
    )
    assert sorted(content(first.train) + content(first.test)) == sorted(train + test)
    assert np.bincount(first.train.labels).tolist() == [30, 30]
    other = open_dataset("dtd", root=tmp_path, partition=2)
    assert content(other.test) == [("banded", 0), ("blotchy", 3)]
    with pytest.raises(ConfigError, match="there are 1 to 10"):
        open_dataset("dtd", root=tmp_path, partition=11)
    with pytest.raises(ConfigError, match="perhaps you meant: partition"):
        open_dataset("dtd", root=tmp_path, partitoin=1)
    with pytest.raises(DataError, match="perhaps you meant: flowers102"):
        open_dataset("flowers-102")


def test_a_zip_of_the_image_folder_is_found_too(tmp_path: Path) -> None:
    import zipfile

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "birdsnap.zip", "w") as archive:
        for path in ("train/a/1.png", "test/a/1.png"):
            archive.writestr(path, buffer.getvalue())
    splits = open_dataset("birdsnap", root=tmp_path)
    assert (splits.name, len(splits.train)) == ("birdsnap", 1)
