"""Reading of images beside instance masks: pixels of value k are object k, 0 is none."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.detection.sets import (
    AnnotatedImage,
    DetectionSet,
    Files,
    Masks,
    Objects,
    Report,
)
from fastadv.errors import DataError, first_few

_IMAGES = ("images", "PNGImages", "JPEGImages")
_MASKS = ("masks", "PedMasks")
_TEST = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class InstanceImage:
    """The shapes of objects as the values of an image.

    Attributes:
        file: Path of the image of values.
        values: The value of each object.
    """

    file: str
    values: tuple[int, ...]

    def draw(self, files: Files, height: int, width: int) -> NDArray[np.uint8]:
        """Return one mask for each object, 0 or 1, uint8 [N, H, W] of the mask's size."""
        values = read_values(files, self.file)
        wanted = np.array(self.values, dtype=values.dtype)
        masks: NDArray[np.uint8] = (values == wanted[:, None, None]).astype(np.uint8)
        return masks

    def chosen(self, rows: Sequence[int]) -> Masks:
        """Return the shapes of some of the objects."""
        return InstanceImage(self.file, tuple(self.values[row] for row in rows))

    def key(self) -> Any:
        """Return values that JSON can hold, the same for equal shapes."""
        return [self.file, list(self.values)]


def read_values(files: Files, file: str) -> NDArray[np.int32]:
    """Return an image of values, int32 [H, W].

    Raises:
        DataError: The file is no image, or has colours instead of one value per pixel.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(files.read(file))) as opened:
            values = np.array(opened)
    except (OSError, SyntaxError, ValueError, DataError) as error:
        raise DataError(f"the mask {file} cannot be decoded: {error}") from None
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise DataError(
            f"the mask {file} is {values.dtype} of shape {list(values.shape)}; a mask has "
            "one whole number per pixel, 0 for none and k for object k"
        )
    return values.astype(np.int32)


def find_splits(files: Files) -> dict[str, dict[str, str]] | None:
    """Return the mask of each image for each split, or None if there are no masks.

    A folder `images` (or PNGImages, JPEGImages) lies beside one of the same file names
    called `masks` (or PedMasks, with names that end in `_mask`). Both lie at the top, which
    gives one split, `all`, or below `train` and `test` (or `val`).

    Raises:
        DataError: An image has no mask.
    """
    masks = _by_folder(files, _MASKS)
    if not masks:
        return None
    images = _by_folder(files, _IMAGES)
    found: dict[str, dict[str, str]] = {}
    for top, by_stem in masks.items():
        pairs, alone = {}, []
        for stem, image in images.get(top, {}).items():
            mask = by_stem.get(stem) or by_stem.get(f"{stem}_mask")
            if mask is None:
                alone.append(image)
            else:
                pairs[image] = mask
        if alone:
            raise DataError(
                f"{len(alone)} images have no mask: {first_few(alone, 5)}; add one (all 0 "
                "where there is no object)"
            )
        if pairs:
            found[PurePosixPath(top).name if top else "all"] = pairs
    test = next((found[word] for word in _TEST if word in found), None)
    if "train" in found and test is not None:
        return {"train": found["train"], "test": test}
    return {"all": next(iter(found.values()))} if len(found) == 1 else None


def read_masks(
    files: Files, name: str, split: str, pairs: dict[str, str], class_name: str
) -> DetectionSet:
    """Read one split of images with instance masks; all objects are of one class.

    The box of an object is the smallest that holds its pixels.

    Args:
        files: The files of the set.
        name: Name of the set.
        split: Name of the split.
        pairs: Path of the mask of each image.
        class_name: Name of the class.

    Raises:
        DataError: A mask cannot be read or is of another size than its image.
    """
    report = Report()
    annotated = [
        _annotated(files, image, mask, number, report)
        for number, (image, mask) in enumerate(sorted(pairs.items()))
    ]
    return DetectionSet(
        name, split, {1: class_name}, annotated, files, report=report, has_masks=True
    )


def _annotated(
    files: Files, image: str, mask: str, number: int, report: Report
) -> AnnotatedImage:
    values = read_values(files, mask)
    height, width = values.shape
    actual = _size(files, image)
    if actual != (width, height):
        raise DataError(
            f"the mask {mask} is {width} x {height} pixels, its image {actual[0]} x "
            f"{actual[1]}; both must have one size"
        )
    found = np.unique(values)
    found = found[found > 0]
    objects = Objects(image, height, width, report)
    for value in found:
        rows, columns = np.nonzero(values == value)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        objects.add([float(edge) for edge in box], 1, area=float(len(rows)))
    shapes = InstanceImage(mask, tuple(int(value) for value in found))
    return objects.annotated(image, number, shapes)


def _size(files: Files, image: str) -> tuple[int, int]:
    """Return (width, height) of an image by its header."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(files.read(image))) as opened:
            return opened.size
    except (OSError, DataError) as error:
        raise DataError(f"{image} cannot be opened: {error}") from None


def _by_folder(files: Files, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the images in folders of some names: path above -> stem -> path."""
    found: dict[str, dict[str, str]] = {}
    for path in files.images.members:
        parts = PurePosixPath(path)
        if parts.parent.name in names:
            top = str(parts.parent.parent)
            found.setdefault("" if top == "." else top, {})[parts.stem] = path
    return found
