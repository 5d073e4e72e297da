"""The official splits of published data sets, read from the files as distributed.

Each function lists the images of both splits per class, as paths below its folder;
`open_official` checks that they exist and opens them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastadv.data.counter import derive_key, permutation
from fastadv.data.sets.arrays import read_mat
from fastadv.data.sets.class_order import Members, abridged, agreed_classes
from fastadv.data.sets.endings import IMAGE_SUFFIXES
from fastadv.data.sets.folders import FolderSet
from fastadv.errors import ConfigError, DataError

Lister = Callable[..., tuple[Members, Members]]


def open_official(
    lister: Lister, folder: Path, name: str, **options: Any
) -> tuple[FolderSet, FolderSet]:
    """Open both splits of a published set.

    Args:
        lister: Lists the images of each class in training and in evaluation.
        folder: What the lister's paths start from.
        name: The data set.
        **options: For the lister.

    Raises:
        DataError: A list cannot be read, a listed image is missing, or the splits'
            classes differ.
    """
    try:
        train, test = lister(folder, **options)
    except OSError as error:
        raise DataError(
            f"{name}: cannot read {error.filename}: {error.strerror or error}; unpack the "
            "original archive again"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{name}: the lists in {folder} are not as published ({error}); unpack the "
            "original archive again"
        ) from error
    for split, members in (("train", train), ("test", test)):
        _check_files(f"{name}/{split}", folder, members)
    classes = agreed_classes(train, test, f"{name} in {folder}", "test")
    return (
        FolderSet(folder, "train", classes, train, name=name),
        FolderSet(folder, "test", classes, test, name=name),
    )


def _check_files(what: str, folder: Path, members: Members) -> None:
    """Raise DataError when listed files are absent; lists folders, not files."""
    paths = [path for listed in members.values() for path in listed]
    parents = {path.rpartition("/")[0] for path in paths}
    present = {
        f"{parent}/{file}" if parent else file
        for parent in parents
        if (folder / parent).is_dir()
        for file in os.listdir(folder / parent)
    }
    if missing := [path for path in paths if path not in present]:
        raise DataError(
            f"{what}: {len(missing)} of the {len(paths)} images listed are not in "
            f"{folder}: {abridged(missing, 3)}; unpack the original archive again"
        )


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield line.strip()


def _grouped(pairs: Iterator[tuple[str, str]]) -> Members:
    members: Members = {}
    for class_name, path in pairs:
        members.setdefault(class_name, []).append(path)
    return members


def aircraft(folder: Path) -> tuple[Members, Members]:
    """List FGVC-Aircraft 2013b by variant: trainval -> test."""

    def part(split: str) -> Members:
        split_lines = _lines(folder / "data" / f"images_variant_{split}.txt")
        pairs = (line.split(" ", 1) for line in split_lines)
        return _grouped((variant, f"data/images/{i}.jpg") for i, variant in pairs)

    return part("trainval"), part("test")


def first_files(top: str, count: int, without: str = "") -> Lister:
    """Make a lister of Caltech: the first `count` files per class train, the rest test.

    Args:
        top: The folder of the class folders.
        count: Training images per class.
        without: A folder there that is no class.

    Returns:
        A lister with the option `split_seed`: draw the training images of each class
        at random instead of taking the first.
    """

    def lister(
        folder: Path, *, split_seed: int | None = None
    ) -> tuple[Members, Members]:
        train: Members = {}
        test: Members = {}
        for class_folder in (folder / top).iterdir():
            name = class_folder.name
            if name == without or name.startswith(".") or not class_folder.is_dir():
                continue
            files = [
                f"{top}/{name}/{file}"
                for file in sorted(os.listdir(class_folder), key=os.fsencode)
                if Path(file).suffix.lower() in IMAGE_SUFFIXES
                and not file.startswith(".")
            ]
            order = np.arange(len(files))
            if split_seed is not None:
                if split_seed < 0:
                    raise ConfigError(f"split_seed={split_seed}; use 0 or more")
                order = permutation(derive_key(split_seed, "split", name), len(files))
            train[name] = [files[i] for i in order[:count]]
            test[name] = [files[i] for i in order[count:]]
        return train, test

    return lister


def dtd(folder: Path, *, partition: int = 1) -> tuple[Members, Members]:
    """List Describable Textures: train + val -> test of one of the ten partitions."""
    if not 1 <= partition <= 10:
        raise ConfigError(f"partition={partition} of dtd; there are 1 to 10")

    def part(*splits: str) -> Members:
        files = [folder / "labels" / f"{split}{partition}.txt" for split in splits]
        paths = itertools.chain.from_iterable(map(_lines, files))
        return _grouped((path.split("/")[0], f"images/{path}") for path in paths)

    return part("train", "val"), part("test")


def flowers102(folder: Path) -> tuple[Members, Members]:
    """List Oxford flowers: train + val -> test; classes "001" to "102" as published."""
    labels = np.atleast_1d(read_mat(folder / "imagelabels.mat")["labels"])
    ids = read_mat(folder / "setid.mat")

    def part(*keys: str) -> Members:
        images = np.hstack([ids[key] for key in keys]).tolist()
        return _grouped(
            (f"{int(labels[i - 1]):03d}", f"jpg/image_{i:05d}.jpg") for i in images
        )

    return part("trnid", "valid"), part("tstid")


def food101(folder: Path) -> tuple[Members, Members]:
    """List Food-101: train -> test of meta/."""

    def part(split: str) -> Members:
        paths = _lines(folder / "meta" / f"{split}.txt")
        return _grouped((p.split("/")[0], f"images/{p}.jpg") for p in paths)

    return part("train"), part("test")


def oxford_pets(folder: Path) -> tuple[Members, Members]:
    """List Oxford-IIIT pets by breed: trainval -> test."""

    def part(split: str) -> Members:
        lines = _lines(folder / "annotations" / f"{split}.txt")
        names = (line.split()[0] for line in lines if not line.startswith("#"))
        return _grouped((n.rpartition("_")[0], f"images/{n}.jpg") for n in names)

    return part("trainval"), part("test")


def stanford_cars(folder: Path) -> tuple[Members, Members]:
    """List Stanford cars from the devkit's MATLAB files."""
    meta = read_mat(folder / "devkit" / "cars_meta.mat")
    names = [str(name) for name in np.atleast_1d(meta["class_names"])]

    def part(annotations: str, images: str) -> Members:
        rows = read_mat(folder / annotations)["annotations"]
        return _grouped(
            (names[int(row["class"]) - 1], f"{images}/{row['fname']}")
            for row in np.atleast_1d(rows)
        )

    return (
        part("devkit/cars_train_annos.mat", "cars_train"),
        part("cars_test_annos_withlabels.mat", "cars_test"),
    )


def sun397(folder: Path, *, partition: int = 1) -> tuple[Members, Members]:
    """List SUN397 by one of the ten official train/test partitions."""
    if not 1 <= partition <= 10:
        raise ConfigError(f"partition={partition} of sun397; there are 1 to 10")
    places = [folder, folder / "Partitions", folder / "partitions"]

    def part(split: str) -> Members:
        file = f"{split}_{partition:02d}.txt"
        lists = next((p for p in places if (p / file).exists()), folder)
        paths = (line.lstrip("/") for line in _lines(lists / file))
        # /a/abbey/sun_x.jpg, /a/apartment_building/outdoor/sun_x.jpg
        return _grouped((p.split("/", 1)[1].rpartition("/")[0], p) for p in paths)

    return part("Training"), part("Testing")
