"""Opening of detection sets by their path, whatever layout they have."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastadv.data.counter import derive_key, permutation
from fastadv.detection import coco, maskfolder, voc
from fastadv.detection.sets import DetectionSet, Files
from fastadv.errors import DataError

_LAYOUTS = (
    "{} is in none of the layouts known: annotations/instances_train*.json and "
    "instances_val*.json (COCO), train/_annotations.coco.json, Annotations/*.xml with "
    "JPEGImages/ and ImageSets/Main/*.txt (VOC), or images/ beside masks/"
)


@dataclass(frozen=True)
class DetectionSplits:
    """The images to train on and those to test on.

    Attributes:
        name: Name of the set.
        layout: `coco`, `voc` or `masks`.
        train: The images to train on.
        test: The images to test on.
    """

    name: str
    layout: str
    train: DetectionSet
    test: DetectionSet


def open_detection(
    path: str | Path,
    *,
    masks: bool | None = None,
    test_share: float = 0.3,
    split_seed: int = 0,
    origin: int = 1,
    class_name: str = "object",
) -> DetectionSplits:
    """Open a folder or a zip archive of images with objects.

    Args:
        path: The folder or the archive, in COCO's layout, in VOC's, or images beside
            instance masks.
        masks: Whether targets have masks: True refuses a set without them, False leaves
            them out, None gives them where there are some. VOC segments a part of its
            images, so there only True gives masks, and the images that have them.
        test_share: Share of the images to test on, where the set has no splits of its own.
        split_seed: Seed of that choice.
        origin: The coordinate of the first pixel in VOC's files: 1, or 0 as some tools
            write.
        class_name: Name of the only class of instance masks.

    Raises:
        DataError: The layout is none of these, or the set cannot be used; the message says
            why.
        ValueError: `test_share` is not between 0 and 1, or `origin` is neither 0 nor 1.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share} must be between 0 and 1")
    if origin not in (0, 1):
        raise ValueError(f"origin={origin} must be 0 or 1")
    root = Path(path).expanduser()
    files = Files(root)
    name = root.stem if root.suffix.lower() == ".zip" else root.resolve().name

    def divided(found: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
        if "all" not in found:
            return {split: list(members) for split, members in found.items()}
        return _divided(
            name, sorted(found["all"], key=os.fsencode), test_share, split_seed
        )

    found: dict[str, DetectionSet] = {}
    if (json_files := coco.find_splits(files)) is not None:
        layout = "coco"
        for split, file in json_files.items():
            found[split] = coco.read_coco(files, name, split, file, masks=masks)
    elif (xml_files := voc.find_splits(files, masks=bool(masks))) is not None:
        layout, split_files = "voc", divided(xml_files)
        found = voc.read_voc(files, name, split_files, origin=origin, masks=bool(masks))
    elif (pairs := maskfolder.find_splits(files)) is not None:
        layout = "masks"
        masks_of = {
            image: mask for part in pairs.values() for image, mask in part.items()
        }
        for split, images in divided(pairs).items():
            mine = {image: masks_of[image] for image in images}
            found[split] = maskfolder.read_masks(files, name, split, mine, class_name)
    else:
        raise DataError(_LAYOUTS.format(root))
    for each in found.values():
        each.has_masks = each.has_masks and masks is not False
    train, test = found["train"], found["test"]
    if train.classes != test.classes or train.category_ids != test.category_ids:
        raise DataError(
            f"{root}: the classes of train {train.classes} are not those of test "
            f"{test.classes}; give both files the same list of categories"
        )
    train.has_masks = test.has_masks = train.has_masks and test.has_masks
    if not any((each.iscrowd == 0).any() for each in train.annotated):
        raise DataError(f"{root}: no image to train on has an object")
    return DetectionSplits(name, layout, train, test)


def _divided(
    name: str, members: Sequence[str], share: float, seed: int
) -> dict[str, list[str]]:
    """Return two splits of a set that has none, by a seeded draw."""
    n = len(members)
    held = max(1, round(share * n))
    if held >= n:
        raise DataError(f"{name} has {n} images, too few to hold out {held}")
    order = permutation(derive_key(seed, "detection split"), n)
    parts = {"train": np.sort(order[held:]), "test": np.sort(order[:held])}
    return {split: [members[i] for i in part] for split, part in parts.items()}
