"""Every data set of the catalogue, opened from a miniature tree in its real layout."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from fastadv.data import open_dataset
from fastadv.data.arrays import FASHION_NAMES
from fastadv.data.catalog import CATALOG
from fastadv.data.registry import native_resolution
from fastadv.data.sources import ImageSet
from fastadv.errors import ConfigError, DataError

# (class, value of the image) in the order of ids and files
Content = list[tuple[str, int]]


def put(root: Path, path: str, value: int) -> None:
    """Write an image whose pixels are all `value`; gray when odd."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    mode, colour = ("L", value) if value % 2 else ("RGB", (value,) * 3)
    Image.new(mode, (5, 4), colour).save(target, "PNG")


def text(root: Path, path: str, *lines: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(f"{line}\n" for line in lines))


def content(images: ImageSet) -> Content:
    found = []
    for i in range(len(images)):
        pixels = images.load(i)
        assert pixels.shape[2] == 3
        assert (pixels == pixels[0, 0, 0]).all()
        found.append((images.classes[images.labels[i]], int(pixels[0, 0, 0])))
    return found


def aircraft(root: Path) -> tuple[Content, Content]:
    folder = root / "fgvc-aircraft-2013b"
    for i in range(1, 6):
        put(folder, f"data/images/000000{i}.jpg", i)
    text(folder, "data/variants.txt", "F/A-18", "727-200")  # not in order
    text(
        folder,
        "data/images_variant_trainval.txt",
        "0000002 F/A-18",
        "0000001 F/A-18",
        "0000003 727-200",
    )
    text(folder, "data/images_variant_test.txt", "0000005 727-200", "0000004 F/A-18")
    return (
        [("727-200", 3), ("F/A-18", 1), ("F/A-18", 2)],
        [("727-200", 5), ("F/A-18", 4)],
    )


def image_folder(name: str) -> Callable[[Path], tuple[Content, Content]]:
    def make(root: Path) -> tuple[Content, Content]:
        for value, path in enumerate(
            ("train/b/1.jpg", "train/a/1.jpg", "test/a/2.jpg", "test/b/2.jpg")
        ):
            put(root / name, path, value)
        return [("a", 1), ("b", 0)], [("a", 2), ("b", 3)]

    return make


def caltech(folder: str, count: int, *, background: str = "") -> Any:
    def make(root: Path) -> tuple[Content, Content]:
        train, test = [], []
        for c, name in enumerate(("Faces", "accordion")):
            for i in range(1, count + 3):
                put(root / folder, f"{name}/image_{i:04d}.jpg", 100 * c + i)
                (train if i <= count else test).append((name, 100 * c + i))
        if background:
            put(root / folder, f"{background}/image_0001.jpg", 0)
        text(root / folder, "Faces/notes.txt", "x")
        return train, test

    return make


def dtd(root: Path) -> tuple[Content, Content]:
    folder = root / "dtd" / "dtd"
    names = [f"{c}/{c}_000{i}.jpg" for c in ("banded", "blotchy") for i in range(3)]
    for value, name in enumerate(names):
        put(folder, f"images/{name}", value)
    for i, split in enumerate(("train", "val", "test")):
        text(folder, f"labels/{split}1.txt", names[3 + i], names[i])
    # another partition: train and test exchanged
    text(folder, "labels/train2.txt", names[2], names[5])
    text(folder, "labels/val2.txt", names[1], names[4])
    text(folder, "labels/test2.txt", names[0], names[3])
    return (
        [("banded", 0), ("banded", 1), ("blotchy", 3), ("blotchy", 4)],
        [("banded", 2), ("blotchy", 5)],
    )


def flowers102(root: Path) -> tuple[Content, Content]:
    folder = root / "flowers-102"
    for i in range(1, 7):
        put(folder, f"jpg/image_{i:05d}.jpg", i)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[2, 1, 2, 1, 2, 1]])})
    ids = {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]}
    savemat(folder / "setid.mat", {k: np.array(v) for k, v in ids.items()})
    return (
        [("001", 2), ("001", 4), ("002", 1), ("002", 3)],
        [("001", 6), ("002", 5)],
    )


def food101(root: Path) -> tuple[Content, Content]:
    folder = root / "food-101"
    for value, name in enumerate(
        ("waffles/7", "apple_pie/9", "apple_pie/8", "waffles/6")
    ):
        put(folder, f"images/{name}.jpg", value)
    text(folder, "meta/train.txt", "waffles/7", "apple_pie/9")
    text(folder, "meta/test.txt", "apple_pie/8", "waffles/6")
    return [("apple_pie", 1), ("waffles", 0)], [("apple_pie", 2), ("waffles", 3)]


def oxford_pets(root: Path) -> tuple[Content, Content]:
    folder = root / "oxford-iiit-pet"
    names = ("Bombay_1", "american_bulldog_10", "Bombay_2", "american_bulldog_11")
    for value, name in enumerate(names):
        put(folder, f"images/{name}.jpg", value)
    # its own ids: american_bulldog 1, Bombay 2
    text(
        folder,
        "annotations/trainval.txt",
        "Bombay_1 2 1 1",
        "american_bulldog_10 1 2 1",
    )
    text(folder, "annotations/test.txt", "american_bulldog_11 1 2 1", "Bombay_2 2 1 1")
    return (
        [("Bombay", 0), ("american_bulldog", 1)],
        [("Bombay", 2), ("american_bulldog", 3)],
    )


def stanford_cars(root: Path) -> tuple[Content, Content]:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["Volvo 240", "Audi TT"], dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    fields = [("class", "<u2"), ("fname", object)]
    for path, images, start in (
        ("devkit/cars_train_annos.mat", "cars_train", 0),
        ("cars_test_annos_withlabels.mat", "cars_test", 10),
    ):
        rows = np.array([(1, "00001.jpg"), (2, "00002.jpg")], dtype=fields)
        savemat(folder / path, {"annotations": rows})
        put(folder, f"{images}/00001.jpg", start)
        put(folder, f"{images}/00002.jpg", start + 2)
    return [("Audi TT", 2), ("Volvo 240", 0)], [("Audi TT", 12), ("Volvo 240", 10)]


def sun397(root: Path) -> tuple[Content, Content]:
    folder = root / "SUN397"
    names = ("a/abbey/sun_1", "a/apartment/outdoor/sun_2", "a/abbey/sun_3")
    for value, name in enumerate((*names, "a/apartment/outdoor/sun_4")):
        put(folder, f"{name}.jpg", value)
    text(folder, "ClassName.txt", "/a/abbey", "/a/apartment/outdoor")
    lists = folder / "Partitions"
    text(lists, "Training_01.txt", *(f"/{name}.jpg" for name in names[:2]))
    text(
        lists, "Testing_01.txt", "/a/abbey/sun_3.jpg", "/a/apartment/outdoor/sun_4.jpg"
    )
    return (
        [("abbey", 0), ("apartment/outdoor", 1)],
        [("abbey", 2), ("apartment/outdoor", 3)],
    )


def svhn(root: Path) -> tuple[Content, Content]:
    (root / "svhn").mkdir()
    for split, labels in (("train", range(1, 11)), ("test", range(10, 0, -1))):
        x = np.zeros((32, 32, 3, 10), dtype=np.uint8) + np.arange(10, dtype=np.uint8)
        y = np.array(labels, dtype=np.uint8)[:, None]  # the digit 0 is stored as 10
        savemat(root / f"svhn/{split}_32x32.mat", {"X": x, "y": y})
    return (
        [(str(label % 10), i) for i, label in enumerate(range(1, 11))],
        [(str(label % 10), i) for i, label in enumerate(range(10, 0, -1))],
    )


def idx(folder: str, zipped: bool) -> Callable[[Path], tuple[Content, Content]]:
    def make(root: Path) -> tuple[Content, Content]:
        place = root / folder
        place.mkdir(parents=True)
        for split in ("train", "t10k"):
            start = 0 if split == "train" else 50
            values = np.arange(start, start + 10, dtype=np.uint8)
            pixels = np.broadcast_to(values[:, None, None], (10, 28, 28))
            for kind, shape, data in (
                ("images-idx3", (10, 28, 28), pixels.tobytes()),
                ("labels-idx1", (10,), bytes(range(10))),
            ):
                header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
                blob = header + data
                name = f"{split}-{kind}-ubyte" + (".gz" if zipped else "")
                (place / name).write_bytes(gzip.compress(blob) if zipped else blob)
        names = _NAMES[folder.split("/")[0]]
        return (
            [(n, i) for i, n in enumerate(names)],
            [(n, 50 + i) for i, n in enumerate(names)],
        )

    return make


_DIGITS = [str(d) for d in range(10)]
_NAMES = {
    "MNIST": _DIGITS,
    "mnist": _DIGITS,
    "FashionMNIST": list(FASHION_NAMES),
    "kmnist": ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"],
}

TREES: list[tuple[str, Callable[[Path], tuple[Content, Content]]]] = [
    ("aircraft", aircraft),
    ("birdsnap", image_folder("birdsnap")),
    (
        "caltech101",
        caltech("caltech101/101_ObjectCategories", 30, background="BACKGROUND_Google"),
    ),
    ("caltech256", caltech("256_ObjectCategories", 60)),
    ("dtd", dtd),
    ("fashion_mnist", idx("FashionMNIST/raw", False)),
    ("flowers102", flowers102),
    ("flowers102", image_folder("flowers102")),
    ("food101", food101),
    ("food101", image_folder("food101")),
    ("kmnist", idx("kmnist", True)),
    ("mnist", idx("MNIST/raw", True)),
    ("mnist", idx("mnist", False)),
    ("oxford_pets", oxford_pets),
    ("oxford_pets", image_folder("oxford_pets")),
    ("stanford_cars", stanford_cars),
    ("stanford_cars", image_folder("stanford_cars")),
    ("sun397", sun397),
    ("sun397", image_folder("sun397")),
    ("svhn", svhn),
]


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
        assert (entry.classes, entry.train, entry.test, entry.metric) == facts
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
