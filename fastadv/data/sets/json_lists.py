"""Lists of labels in JSON, as rows and a header: the forms that data sets come with."""

from __future__ import annotations

from typing import Any

from fastadv.data.sets.endings import is_image
from fastadv.errors import DataError

Rows = tuple[list[list[str]], list[str]]


def rows_of_json(found: Any, path: str) -> Rows:
    """Return the rows of a JSON document that lists images, and their header or nothing.

    A document is a list of objects; a list of pairs; an object of labels, or of objects, by
    file; or the images, annotations and categories of COCO. Others have no rows.

    Args:
        found: What json.load returned.
        path: Name of the file, for messages.

    Raises:
        DataError: A list like COCO's has several classes for an image.
    """
    if isinstance(found, dict):
        if isinstance(found.get("images"), list) and "annotations" in found:
            return _coco(found, path)
        inner = [each for each in found.values() if isinstance(each, list)]
        if len(found) == 1 and inner:  # {"labels": [[file, label], ...]}
            return rows_of_json(inner[0], path)
        return _by_file(found)
    if not isinstance(found, list) or not found:
        return [], []
    if all(isinstance(each, dict) for each in found):
        return objects(found)
    pairs = all(isinstance(each, list) and len(each) == 2 for each in found)
    if not pairs or any(
        isinstance(cell, dict | list) for each in found for cell in each
    ):
        return [], []
    return [[_text(cell) for cell in each] for each in found], []


def objects(found: list[dict[str, Any]]) -> Rows:
    """Return a row for each of some objects, and the keys that any of them has."""
    header = list(dict.fromkeys(key for each in found for key in each))
    return [[_text(each.get(key)) for key in header] for each in found], header


def _by_file(found: dict[str, Any]) -> Rows:
    """Return the rows of an object whose keys are files.

    Other keys, as those of a list of class names, are none.
    """
    if sum(map(is_image, found)) * 2 <= len(found):
        return [], []
    if all(isinstance(value, dict) for value in found.values()):
        return objects([{"file": key} | value for key, value in found.items()])
    return [[key, _text(value)] for key, value in found.items()], []


def _coco(found: dict[str, Any], path: str) -> Rows:
    names = {
        each.get("id"): _text(each.get("name")) for each in found.get("categories", [])
    }
    classes: dict[Any, set[Any]] = {}
    for each in found["annotations"]:
        classes.setdefault(each.get("image_id"), set()).add(each.get("category_id"))
    several = [image for image, ids in classes.items() if len(ids) > 1]
    if several:
        raise DataError(
            f"{path} gives {len(several)} of {len(found['images'])} images several classes, "
            f"like image {several[0]}; an image has one class here. Detection sets are for "
            "fastadv-detect"
        )
    rows = []
    for image in found["images"]:
        number = next(iter(classes.get(image.get("id"), ())), None)
        label = names.get(number, _text(number))
        rows.append([_text(image.get("file_name")), label])
    return rows, ["file", "label"]


def _text(value: Any) -> str:
    return "" if value is None else str(value)
