"""Reading of COCO's layout: one JSON file for each split, beside folders of images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.detection.sets import (
    DetectionSet,
    Files,
    Masks,
    MasksMissing,
    Objects,
    Report,
)
from fastadv.errors import ConfigError, DataError, first_few
from fastadv.groups import grouped

_TEST = ("val", "valid", "validation", "test")
_CORNERS = 3  # of the smallest polygon


@dataclass(frozen=True)
class Outlines:
    """Shapes as COCO writes them.

    Attributes:
        shapes: For each object a list of polygons (x1, y1, x2, y2, ...) in pixels, or a
            run-length encoding with `size` (height, width) and `counts`; None where there
            is no shape, which gives an empty mask.
    """

    shapes: tuple[Any, ...]

    def draw(self, files: Files, height: int, width: int) -> NDArray[np.uint8]:
        """Return one mask for each object, 0 or 1, uint8 [N, height, width].

        Raises:
            DataError: A run-length encoding is for another size of image.
            ConfigError: faster-coco-eval is not installed.
        """
        tools = coco_masks()
        masks = np.zeros((len(self.shapes), height, width), dtype=np.uint8)
        for mask, shape in zip(masks, self.shapes, strict=True):
            if shape is None:
                continue
            if isinstance(shape, Mapping):
                size = [int(side) for side in shape["size"]]
                if size != [height, width]:
                    raise DataError(
                        f"a mask is for an image of {size[1]} x {size[0]} pixels, the "
                        f"image is {width} x {height}; correct the annotations"
                    )
                counts = shape["counts"]
                packed = dict(shape)
                if isinstance(counts, list):
                    packed = tools.frPyObjects(packed, height, width)
                mask[:] = tools.decode(packed)
            else:
                parts = tools.frPyObjects(shape, height, width)
                mask[:] = tools.decode(tools.merge(parts))
        return masks

    def chosen(self, rows: Sequence[int]) -> Masks:
        """Return the shapes of some of the objects."""
        return Outlines(tuple(self.shapes[row] for row in rows))

    def key(self) -> Any:
        """Return values that JSON can hold, the same for equal shapes."""
        return list(self.shapes)


def coco_masks() -> Any:
    """Return the module of faster-coco-eval that draws masks.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise ConfigError(
            "masks of COCO annotations need faster-coco-eval, which is not installed: "
            "pip install 'fastadv[detect]'. Boxes alone need nothing: `masks=False`"
        ) from None
    return mask


def find_splits(files: Files) -> dict[str, str] | None:
    """Return the file of annotations of `train` and `test`, or None if it is not COCO's.

    Accepted are `annotations/instances_train2017.json` and alike, `annotations/train.json`
    and `train/_annotations.coco.json`; the test split is val, valid, validation or test,
    the first that is there.
    """
    found: dict[str, str] = {}
    for name in sorted(files.texts):
        path = PurePosixPath(name)
        if path.suffix != ".json":
            continue
        words = path.stem
        if words == "_annotations.coco":
            words = path.parent.name
        elif path.parent.name != "annotations":
            continue
        words = words.removeprefix("instances_").rstrip("0123456789_-")
        found.setdefault(words, name)
    test = next((found[word] for word in _TEST if word in found), None)
    if "train" not in found or test is None:
        return None
    return {"train": found["train"], "test": test}


def read_coco(
    files: Files, name: str, split: str, file: str, *, masks: bool | None = None
) -> DetectionSet:
    """Read one split of a set in COCO's layout.

    Regions of crowds stay in the targets, marked `iscrowd`. Numbers of categories may have
    gaps: labels are 1 to C in the order of the numbers, and `category_ids` keeps them.

    Args:
        files: The files of the set.
        name: Name of the set.
        split: Name of the split.
        file: Path of the JSON file.
        masks: Whether targets have masks; None gives them where every object has one.

    Raises:
        DataError: The file is not of this form, or masks are wanted and some are missing.
    """
    known = _parsed(files, file)
    categories = _categories(known["categories"], file)
    labels = {number: position + 1 for position, number in enumerate(categories)}
    images = {each["id"]: each for each in known["images"]}
    if len(images) != len(known["images"]):
        raise DataError(f"{file}: two images have the same id; make ids unique")
    report = Report()
    of_image = grouped(known["annotations"], lambda each: each.get("image_id"))
    for lost in of_image.keys() - images.keys():
        for _ in of_image[lost]:
            report.note("an annotation of an unknown image, left out", f"image {lost}")
    shapeless = list(_without_shape(known["annotations"]))
    if masks and shapeless:
        raise MasksMissing(
            f"{file}: {len(shapeless)} objects have no segmentation (annotations "
            f"{first_few(shapeless, 5)}), so there are no masks to train on; use "
            "`masks=False` for boxes alone, or complete the file"
        )
    has_masks = not shapeless if masks is None else masks
    annotated = []
    folders = _image_folders(file)
    for position, (number, image) in enumerate(images.items()):
        path = _find_image(files, folders, str(image["file_name"]))
        if path is None:
            report.note("a missing image file, left out", str(image["file_name"]))
            continue
        size = image.get("height"), image.get("width")
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise DataError(
                f"{file}: the image {path} has no height and width; add them"
            )
        image_id = number if isinstance(number, int) else position
        objects = Objects(path, image["height"], image["width"], report)
        own = of_image.get(number, [])
        _add_all(objects, own, labels, file)
        shapes = tuple(_shape(each.get("segmentation")) for each in own)
        drawn = Outlines(shapes) if has_masks else None
        annotated.append(objects.annotated(path, image_id, drawn))
    if not annotated:
        raise DataError(
            f"{file}: none of its {len(images)} images is there; expected them in "
            f"{', '.join(folder + '/' if folder else 'the top folder' for folder in folders)}"
        )
    return DetectionSet(
        name, split, categories, annotated, files, report=report, has_masks=has_masks
    )


def _add_all(
    objects: Objects,
    annotations: Sequence[Mapping[str, Any]],
    labels: Mapping[Any, int],
    file: str,
) -> None:
    for each in annotations:
        category = each.get("category_id")
        if category not in labels:
            raise DataError(
                f"{file}: annotation {each.get('id')} is of category {category}, which "
                "its list of categories does not hold; add it there"
            )
        box = [float(v) if isinstance(v, (int, float)) else np.nan for v in _box(each)]
        if len(box) == 4:
            box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        objects.add(
            box,
            labels[category],
            iscrowd=bool(each.get("iscrowd", 0)),
            area=each.get("area"),
        )


def _box(annotation: Mapping[str, Any]) -> Sequence[Any]:
    box = annotation.get("bbox")
    return box if isinstance(box, list) else []


def _shape(value: Any) -> Any:
    """Return a usable shape, or None."""
    if isinstance(value, Mapping):
        return value if {"size", "counts"} <= value.keys() else None
    if isinstance(value, list):
        polygons = [p for p in value if isinstance(p, list) and len(p) >= 2 * _CORNERS]
        return polygons or None
    return None


def _without_shape(annotations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for each in annotations:
        if not each.get("iscrowd", 0) and _shape(each.get("segmentation")) is None:
            yield str(each.get("id"))


def _parsed(files: Files, file: str) -> dict[str, Any]:
    try:
        known = json.loads(files.read_text(file))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from None
    parts = ("images", "annotations", "categories")
    lists = isinstance(known, dict) and all(
        isinstance(known.get(part), list) for part in parts
    )
    if not lists:
        raise DataError(
            f"{file} is no file of COCO's instances: it needs lists named images, "
            "annotations and categories"
        )
    for each in known["images"]:
        if not isinstance(each, dict) or not {"id", "file_name"} <= each.keys():
            raise DataError(f"{file}: an image has no id or no file_name: {each!r:.80}")
    if not all(isinstance(each, dict) for each in known["annotations"]):
        raise DataError(f"{file}: an annotation is no object of JSON; correct the file")
    return dict(known)


def _categories(listed: Sequence[Any], file: str) -> dict[int, str]:
    try:
        pairs = sorted((int(each["id"]), str(each["name"])) for each in listed)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{file}: a category has no id or no name; add it") from None
    categories = dict(pairs)
    if len(categories) != len(pairs):
        raise DataError(f"{file}: two categories have the same id; make ids unique")
    return categories


def _image_folders(file: str) -> list[str]:
    """Return the folders in which the images of a file of annotations may lie."""
    path = PurePosixPath(file)
    if path.stem == "_annotations.coco":
        return [_text(path.parent)]
    split = path.stem.removeprefix("instances_")
    above = path.parent.parent
    below = (split, f"images/{split}", "images", split.rstrip("0123456789_-"), "")
    return list(dict.fromkeys(_text(above / each) for each in below))


def _find_image(files: Files, folders: Sequence[str], name: str) -> str | None:
    plain = name.replace("\\", "/")
    candidates = (f"{folder}/{plain}" if folder else plain for folder in folders)
    return next((path for path in candidates if path in files), None)


def _text(path: PurePosixPath) -> str:
    return "" if str(path) == "." else str(path)
