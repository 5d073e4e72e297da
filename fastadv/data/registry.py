"""From a name or a path to a data set: `open_dataset`.

Names are looked up first; `./digits` is the folder, `digits` the data set.
Nothing is ever downloaded. Adding a data set is adding one opener below.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np

from fastadv.data.images import BadImage
from fastadv.data.shapetex import RESOLUTIONS, ShapeTex
from fastadv.data.sources import ArraySet, DatasetSplits, ImageSet, Metric
from fastadv.data.subsets import allocate, stratified_pick
from fastadv.errors import ConfigError, DataError, unknown_name

_PEEKED = 8  # images looked at to learn a data set's size
DIGITS_TRAIN = 1297  # leaves 500 of the 1,797 to test on

# What the transfer literature reports; everything else is top-1.
_MEAN_PER_CLASS = ("aircraft", "caltech", "flowers", "oxford_pets", "pets")


def dataset_names() -> tuple[str, ...]:
    """Return the names `open_dataset` knows; any path works besides."""
    return tuple(sorted(_OPENERS))


def open_dataset(
    name_or_path: str | os.PathLike[str], *, resolution: int = 64, **options: Any
) -> DatasetSplits:
    """Open a data set by name, or a folder or zip archive by path.

    Args:
        name_or_path: One of `dataset_names()`, or a folder or `.zip` with
            `train/<class>/<image>` and one of `val/`, `test/`, `valid/` or
            `validation/`.
        resolution: Side in pixels at which procedural sets are drawn; stored
            images keep theirs until a loader resizes them.
        **options: Per data set. shapetex: `n_train`, `n_test`, `seed`,
            `correlation`, `test_correlation`, `cache`. cifar10, cifar100:
            `root`. Paths: `metric`.

    Returns:
        The training split, the evaluation split and the metric to report.

    Raises:
        DataError: There is no such data set, or its layout is wrong.
        ConfigError: An option the data set does not have, or a bad value.

    Example:
        >>> splits = open_dataset("digits")
        >>> len(splits.train), len(splits.test)
        (1297, 500)
    """
    name = os.fspath(name_or_path)
    opener = _OPENERS.get(name)
    if opener is None:
        path = _existing_path(name)
        _check_options(name, _open_path, options)
        return _open_path(path, **options)
    _check_options(name, opener, options)
    return opener(resolution, **options)


def native_resolution(name_or_path: str | os.PathLike[str]) -> int | None:
    """Side in pixels of a data set's images, at most 224; None for the drawn ones.

    The median of the shorter sides of a few images spread over the training split.
    """
    name = os.fspath(name_or_path)
    if name.startswith("shapetex"):
        return None
    if name == "digits":
        return 32  # stored at 8 px, which no architecture takes
    images = open_dataset(name).train
    sides = []
    for index in range(0, len(images), max(1, len(images) // _PEEKED)):
        with contextlib.suppress(BadImage):  # the loader will name it
            sides.append(min(images.load(index).shape[:2]))
    return min(224, sorted(sides)[len(sides) // 2]) if sides else 224


def _check_options(
    name: str, opener: Callable[..., DatasetSplits], options: dict[str, Any]
) -> None:
    accepted = [
        p.name
        for p in inspect.signature(opener).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for option in options:
        if option not in accepted:
            raise ConfigError(
                unknown_name(f"option of data set {name}", option, accepted)
                if accepted
                else f"data set {name} has no options, got {option!r}"
            )


def _existing_path(name: str) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.name == name and path.suffix != ".zip":
        raise DataError(
            f"{unknown_name('data set', name, _OPENERS)}; nor is there a folder or zip "
            f"archive of that name in {Path.cwd()}"
        )
    message = f"no data set at {path.absolute()}: no such folder or zip archive"
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, os.listdir(path.parent))
        if near:
            message += f"; perhaps you meant: {', '.join(near)}"
    raise DataError(message)


def _open_path(path: Path, *, metric: Metric | None = None) -> DatasetSplits:
    from fastadv.data.folders import open_folder, open_zip

    if metric is not None and metric not in get_args(Metric):
        raise ConfigError(unknown_name("metric", str(metric), get_args(Metric)))
    train: ImageSet
    test: ImageSet
    if path.is_dir():
        path = path.resolve()  # "." has no name
        name, (train, test) = path.name, open_folder(path)
    elif path.suffix.lower() == ".zip":
        name, (train, test) = path.stem, open_zip(path)
    else:
        raise DataError(
            f"{path} is neither a folder nor a .zip archive; expected either, with "
            "train/<class>/<image> and val/<class>/<image> in it"
        )
    reported: Metric = (
        "mean_per_class" if name.lower().startswith(_MEAN_PER_CLASS) else "top1"
    )
    return DatasetSplits(name, train, test, metric or reported)


def _open_shapetex(label: str) -> Callable[..., DatasetSplits]:
    def opener(
        resolution: int,
        *,
        n_train: int = 4000,
        n_test: int = 1000,
        seed: int = 0,
        correlation: float = 0.0,
        test_correlation: float = 0.0,
        cache: bool = True,
    ) -> DatasetSplits:
        low, high = RESOLUTIONS  # the loader resizes to what lies outside
        common: dict[str, Any] = {
            "seed": seed,
            "resolution": min(max(resolution, low), high),
            "label": label,
            "cache": cache,
        }
        train = ShapeTex(n_train, split="train", correlation=correlation, **common)
        test = ShapeTex(n_test, split="test", correlation=test_correlation, **common)
        return DatasetSplits(train.name, train, test)

    return opener


def _open_digits(resolution: int) -> DatasetSplits:
    from sklearn.datasets import load_digits

    gray, labels = load_digits(return_X_y=True)
    scaled = np.floor(gray.reshape(-1, 8, 8, 1) * (255 / 16) + 0.5).astype(np.uint8)
    images = np.repeat(scaled, 3, axis=3)
    labels = labels.astype(np.int64)
    counts = np.bincount(labels)
    take = allocate(counts, DIGITS_TRAIN, np.ones_like(counts), counts)
    # The split is part of the data set's definition: its seed is not an option.
    train = stratified_pick(labels, take, seed=0)
    test = np.setdiff1d(np.arange(len(labels)), train)
    classes = [str(d) for d in range(10)]

    def part(indices: Any, split: str) -> ArraySet:
        return ArraySet(
            images[indices],
            labels[indices],
            classes,
            name="digits",
            split=split,
            augment_default="none",
        )

    return DatasetSplits("digits", part(train, "train"), part(test, "test"))


def _open_cifar(
    name: str, class_name: str, folder: str
) -> Callable[..., DatasetSplits]:
    def opener(
        resolution: int, *, root: str | os.PathLike[str] = "data"
    ) -> DatasetSplits:
        import torchvision

        dataset = getattr(torchvision.datasets, class_name)

        def part(split: str) -> ArraySet:
            try:
                files = dataset(str(root), train=split == "train", download=False)
            except (RuntimeError, OSError) as err:
                raise DataError(
                    f"{name} is not in {Path(root).absolute()}: expected the folder "
                    f"{folder}/ there, as unpacked from the official python archive. "
                    "Give the folder above it with root="
                ) from err
            return ArraySet(
                files.data, files.targets, files.classes, name=name, split=split
            )

        return DatasetSplits(name, part("train"), part("test"))

    return opener


_OPENERS: dict[str, Callable[..., DatasetSplits]] = {
    "cifar10": _open_cifar("cifar10", "CIFAR10", "cifar-10-batches-py"),
    "cifar100": _open_cifar("cifar100", "CIFAR100", "cifar-100-python"),
    "digits": _open_digits,
    "shapetex": _open_shapetex("shape"),
    "shapetex_texture": _open_shapetex("texture"),
}
