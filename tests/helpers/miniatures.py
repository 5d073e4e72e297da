"""Miniature trees of the catalogue's data sets, each in its published layout."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from fastadv.data.sets.arrays import FASHION_NAMES
from fastadv.data.sets.image_set import ImageSet

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
