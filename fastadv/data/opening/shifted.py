"""Data sets to be judged on alone: folders of classes, and those of ImageNet-C.

ImageNet-R, -A, -Sketch and -V2 are folders `class/image`, without a training split, and
ImageNet-C is `corruption/severity/class/image`, with or without folders of groups above.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadv.data.files.array_files import (
    corruption_arrays,
    read_corruption,
    sets_of_arrays,
)
from fastadv.data.opening.by_name import open_judged_splits
from fastadv.data.sets.class_order import abridged
from fastadv.data.sets.folders import open_all
from fastadv.data.sets.image_set import FileSet, ImageSet
from fastadv.data.sets.listed import ListedSet
from fastadv.errors import ConfigError, DataError, unknown_name

_SEVERITIES = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class CorruptedFiles:
    """The images of a folder like ImageNet-C.

    Attributes:
        name: Name of the folder.
        conditions: The images under each corruption and severity; all hold the same
            images in the same order.
    """

    name: str
    conditions: Mapping[tuple[str, int], ListedSet]


def open_judged(
    name_or_path: str, *, resolution: int = 64, **options: Any
) -> ImageSet | CorruptedFiles:
    """Open the images of a data set that a network is judged on.

    Args:
        name_or_path: As `open_dataset` takes it; or a folder or .zip archive without a
            folder `train`, with folders of classes or like ImageNet-C.
        resolution: Side in pixels at which procedural sets are drawn.
        options: Options of the data set.

    Raises:
        DataError, ConfigError: As of `open_dataset`; or images under some corruptions of a
            folder are missing under others.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir() and not options and (arrays := corruption_arrays(path)):
        return _corrupted_arrays(path, arrays)
    files = None if options else _without_training(path)
    if files is None:
        return open_judged_splits(name_or_path, resolution=resolution, **options).test
    parts = [member.split("/") for member in files.members]
    if all(len(each) == 3 and each[0] in _SEVERITIES for each in parts):
        parts = [[files.name, *each] for each in parts]  # the folder of one corruption
    if all(len(each) >= 4 and each[-3] in _SEVERITIES for each in parts):
        return _corrupted(files, parts)
    if len({each[-2] for each in parts if len(each) > 1}) < 2:
        return open_judged_splits(name_or_path, resolution=resolution).test
    if not all(len(each) >= 2 for each in parts):
        loose = [each[0] for each in parts if len(each) < 2]
        raise DataError(
            f"{path} has images outside of any class folder: {abridged(loose)}; expected "
            "<class>/<image>"
        )
    classes = sorted({each[-2] for each in parts}, key=os.fsencode)
    label = {name: i for i, name in enumerate(classes)}
    labels = [label[each[-2]] for each in parts]
    return ListedSet(files, range(len(files)), labels, classes, files.name)


def chosen_conditions(
    files: CorruptedFiles,
    kinds: Sequence[str] | None,
    severities: Sequence[int] | None,
) -> dict[tuple[str, int], ListedSet]:
    """Return the conditions of some corruptions and severities, in that order.

    Args:
        files: The folder.
        kinds: Names of corruptions; None: all that the folder has.
        severities: Severities; None: all that the folder has.

    Raises:
        ConfigError: The folder has no such corruption or severity.
    """
    there = list(dict.fromkeys(kind for kind, _ in files.conditions))
    levels = sorted({severity for _, severity in files.conditions})
    for kind in kinds or ():
        if kind not in there:
            raise ConfigError(unknown_name(f"corruption of {files.name}", kind, there))
    for severity in severities or ():
        if severity not in levels:
            raise ConfigError(
                f"{files.name} has no severity {severity}; it has "
                f"{', '.join(map(str, levels))}"
            )
    wanted = [(k, s) for k in kinds or there for s in severities or levels]
    if missing := [each for each in wanted if each not in files.conditions]:
        listed = ", ".join(f"{kind}/{severity}" for kind, severity in missing[:8])
        raise ConfigError(
            f"{files.name} lacks {listed}; choose severities that every corruption has"
        )
    return {each: files.conditions[each] for each in wanted}


def _without_training(path: Path) -> FileSet | None:
    """Return all images below a path; None if it is another kind of data set."""
    if path.is_dir():
        if (path / "train").exists():
            return None
        try:
            return open_all(path.resolve())
        except DataError:  # Perhaps files of another format.
            return None
    if path.suffix.lower() != ".zip" or not path.is_file():
        return None
    files = open_all(path)
    has_train = any("train" in each.split("/")[:2] for each in files.members)
    return None if has_train else files


def _corrupted_arrays(path: Path, arrays: Mapping[str, Path]) -> CorruptedFiles:
    """Open a folder like CIFAR-10-C, whose files hold five severities one by one."""
    conditions: dict[tuple[str, int], ListedSet] = {}
    for kind, file in arrays.items():
        sets = sets_of_arrays(path.name, {"": read_corruption(file)})
        images = sets[""]
        n = len(images) // len(_SEVERITIES)
        if n * len(_SEVERITIES) != len(images):
            raise DataError(
                f"{file} holds {len(images)} images, which are no five severities"
            )
        for number, severity in enumerate(map(int, _SEVERITIES)):
            part = range(number * n, (number + 1) * n)
            conditions[kind, severity] = ListedSet(
                images,
                part,
                images.labels[part.start : part.stop],
                images.classes,
                f"{path.name} ({kind} {severity})",
            )
    return CorruptedFiles(path.name, conditions)


def _corrupted(files: FileSet, parts: Sequence[Sequence[str]]) -> CorruptedFiles:
    """Group the images of a folder like ImageNet-C."""
    found: dict[tuple[str, int], dict[tuple[str, str], int]] = {}
    for index, each in enumerate(parts):
        condition = found.setdefault((each[-4], int(each[-3])), {})
        condition[each[-2], each[-1]] = index
    images = sorted(set().union(*found.values()))
    for (kind, severity), condition in found.items():
        if missing := [image for image in images if image not in condition]:
            listed = abridged(["/".join(image) for image in missing], 3)
            raise DataError(
                f"{files.name} lacks {len(missing)} of {len(images)} images under {kind} "
                f"{severity}: {listed}; every corruption needs the same images"
            )
    classes = sorted({name for name, _ in images}, key=os.fsencode)
    label = {name: i for i, name in enumerate(classes)}
    images.sort(key=lambda image: (label[image[0]], os.fsencode(image[1])))
    labels = [label[name] for name, _ in images]
    return CorruptedFiles(
        files.name,
        {
            (kind, severity): ListedSet(
                files,
                [condition[image] for image in images],
                labels,
                classes,
                f"{files.name} ({kind} {severity})",
            )
            for (kind, severity), condition in sorted(found.items())
        },
    )
