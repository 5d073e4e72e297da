"""What a set of images with objects is, and what was left out when it was read.

Targets follow torchvision: boxes in pixels from the upper left corner, labels from 1, since
0 is the background.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.data.decoding import BadImage, decode_rgb
from fastadv.data.sets.folders import open_all
from fastadv.errors import DataError, first_few

Target = dict[str, Any]
"""The objects of an image by torchvision's names; see `DetectionSet.target`."""

_NAMED = 5  # names in a message


class MasksMissing(DataError):
    """Raised where masks are wanted of a set, or of objects, that have none."""


class Masks(Protocol):
    """The shapes of the objects of an image."""

    def draw(self, files: Files, height: int, width: int) -> NDArray[np.uint8]:
        """Return one mask for each object, 0 or 1, uint8 [N, height, width]."""

    def chosen(self, rows: Sequence[int]) -> Masks:
        """Return the shapes of some of the objects."""

    def key(self) -> Any:
        """Return values that JSON can hold, the same for equal shapes."""


class Files:
    """The files below a folder or in a zip archive, by their paths.

    Args:
        root: The folder, or the archive.

    Attributes:
        root: The folder, or the archive.
        images: All images, as a set that reads their bytes by number.

    Raises:
        DataError: There are no images, or the archive is unusable.
    """

    def __init__(self, root: Path) -> None:
        if not root.exists():
            raise DataError(f"there is no folder or archive {root}; check the path")
        if not root.is_dir() and root.suffix.lower() != ".zip":
            raise DataError(
                f"{root} is neither a folder nor a .zip archive; give the one that holds "
                "images and annotations"
            )
        self.root = root
        self.images = open_all(root)
        self._numbers = {name: i for i, name in enumerate(self.images.members)}

    def __contains__(self, image: str) -> bool:
        return image in self._numbers

    def read(self, image: str) -> bytes:
        """Return the encoded bytes of the image at a path.

        Raises:
            BadImage: There is none, or it cannot be read.
        """
        if image not in self._numbers:
            raise BadImage(f"{self.root.name}:{image}", "there is no such file")
        return self.images.read(self._numbers[image])

    def size(self, image: str) -> int:
        """Return the number of bytes of the image at a path."""
        return self._sizes[self._numbers[image]]

    @cached_property
    def _sizes(self) -> Sequence[int]:
        return self.images.sizes()

    @cached_property
    def texts(self) -> frozenset[str]:
        """The paths of all files that are no images."""
        if self._archive is None:
            found = (p for p in self.root.rglob("*") if p.is_file())
            names = [p.relative_to(self.root).as_posix() for p in found]
        else:
            names = [i.filename for i in self._archive.infolist() if not i.is_dir()]
        return frozenset(name for name in names if name not in self._numbers)

    @cached_property
    def _archive(self) -> zipfile.ZipFile | None:
        return None if self.root.is_dir() else zipfile.ZipFile(self.root)

    def __getstate__(self) -> dict[str, Any]:
        # Processes that decode read images alone, and must not share a position.
        return {k: v for k, v in self.__dict__.items() if k != "_archive"}

    def read_text(self, name: str) -> bytes:
        """Return the bytes of a file that is no image.

        Raises:
            DataError: It cannot be read.
        """
        try:
            if self._archive is None:
                return (self.root / name).read_bytes()
            return self._archive.read(name)
        except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read {self.root}/{name}: {error}") from error


@dataclass
class Report:
    """What was left out or changed while a set was read, by reason.

    Attributes:
        found: Names of the images or annotations by reason, in the order of reading.
    """

    found: dict[str, list[str]] = field(default_factory=dict)

    def note(self, reason: str, name: str) -> None:
        """Count one case of `reason` and keep its name."""
        self.found.setdefault(reason, []).append(name)

    def counts(self) -> dict[str, int]:
        """Return the number of cases by reason."""
        return {reason: len(names) for reason, names in self.found.items()}

    def lines(self) -> list[str]:
        """Return a line for each reason: the number of cases and the first names."""
        return [
            f"{len(names)} x {reason}: {first_few(names, _NAMED)}"
            for reason, names in self.found.items()
        ]


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image and its objects, before any pixel is read.

    Attributes:
        image: Path of the image.
        image_id: Number of the image in its file of annotations, or its position.
        height: Height in pixels.
        width: Width in pixels.
        boxes: Corners (x1, y1, x2, y2) in pixels, float32 [N, 4].
        labels: Labels from 1, int64 [N].
        iscrowd: 1 for regions that hold a crowd or that evaluation ignores, uint8 [N].
        area: Area of each object in square pixels, float32 [N].
        masks: Shapes of the objects; None if the set has none.
    """

    image: str
    image_id: int
    height: int
    width: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    iscrowd: NDArray[np.uint8]
    area: NDArray[np.float32]
    masks: Masks | None = None

    def key(self) -> list[Any]:
        """Return values that JSON can hold, the same for equal annotations."""
        arrays = (self.boxes, self.labels, self.iscrowd, self.area)
        shapes = None if self.masks is None else self.masks.key()
        return [self.image, self.image_id, *(a.tolist() for a in arrays), shapes]


@dataclass
class Objects:
    """The objects of one image while they are read; impossible boxes are left out.

    Args:
        name: Name of the image in the report.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        report: Where objects that are left out are counted.
    """

    name: str
    height: int
    width: int
    report: Report
    rows: list[int] = field(default_factory=list)
    _read: int = 0
    _boxes: list[list[float]] = field(default_factory=list)
    _others: list[tuple[int, int, float]] = field(default_factory=list)

    def add(
        self,
        box: Sequence[float],
        label: int,
        *,
        iscrowd: bool = False,
        area: float | None = None,
    ) -> None:
        """Add an object, unless its box is impossible; `rows` numbers those that stay.

        Args:
            box: Corners (x1, y1, x2, y2) in pixels; what lies outside of the image is cut
                off.
            label: Label from 1.
            iscrowd: Whether the region is ignored in training and in evaluation.
            area: Area of the object in square pixels; None takes that of the box.
        """
        row, self._read = self._read, self._read + 1
        where = f"{self.name} object {row + 1}"
        if len(box) != 4 or not np.isfinite(np.asarray(box, dtype=np.float64)).all():
            self.report.note("a box that is not four numbers, left out", where)
            return
        x1, y1, x2, y2 = map(float, box)
        if x2 <= x1 or y2 <= y1:
            self.report.note("a box of no size, left out", where)
            return
        inside = [max(x1, 0.0), max(y1, 0.0), min(x2, self.width), min(y2, self.height)]
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            self.report.note("a box outside of the image, left out", where)
            return
        moved = max(abs(a - b) for a, b in zip(inside, (x1, y1, x2, y2), strict=True))
        if moved > 1:  # less is the rounding of many tools
            self.report.note("a box that reached beyond the image, cut off", where)
        size = (inside[2] - inside[0]) * (inside[3] - inside[1])
        self.rows.append(row)
        self._boxes.append(inside)
        self._others.append((label, int(iscrowd), size if area is None else area))

    def annotated(
        self, image: str, image_id: int, masks: Masks | None = None
    ) -> AnnotatedImage:
        """Return the image with its objects; `masks` has shapes of all that were added."""
        labels, crowds, areas = (
            zip(*self._others, strict=True) if self.rows else ((),) * 3
        )
        return AnnotatedImage(
            image=image,
            image_id=image_id,
            height=self.height,
            width=self.width,
            boxes=np.array(self._boxes, dtype=np.float32).reshape(-1, 4),
            labels=np.array(labels, dtype=np.int64),
            iscrowd=np.array(crowds, dtype=np.uint8),
            area=np.array(areas, dtype=np.float32),
            masks=None if masks is None else masks.chosen(self.rows),
        )


class DetectionSet(torch.utils.data.Dataset[tuple[Tensor, Target]]):
    """One split of a set of images with objects.

    Args:
        name: The set.
        split: The split, such as `train`.
        categories: Name of each class by its number in the file of annotations; label k
            is the k-th.
        annotated: The images.
        files: Where images and masks are read.
        report: What was left out.
        has_masks: Whether targets have masks.

    Attributes:
        classes: Names of the classes; label k is `classes[k - 1]`.
        category_ids: Number of each class in the file of annotations.

    Raises:
        DataError: There are no classes, a label is outside of them, or masks are missing.
    """

    def __init__(
        self,
        name: str,
        split: str,
        categories: Mapping[int, str],
        annotated: Sequence[AnnotatedImage],
        files: Files,
        *,
        report: Report | None = None,
        has_masks: bool = False,
    ) -> None:
        classes = list(categories.values())
        if not classes:
            raise DataError(
                f"{name}/{split} has no classes; its annotations name no object at all"
            )
        for each in annotated:
            wrong = each.labels[(each.labels < 1) | (each.labels > len(classes))]
            if len(wrong):
                raise DataError(
                    f"{name}/{split}: {each.image} has the label {wrong[0]}; labels are "
                    f"1 to {len(classes)}, since 0 is the background"
                )
            if has_masks and each.masks is None:
                raise DataError(f"{name}/{split}: {each.image} has no masks")
        self.name, self.split = name, split
        self.classes, self.category_ids = classes, list(categories)
        self.annotated, self.files = list(annotated), files
        self.report, self.has_masks = report or Report(), has_masks

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return image `index`, uint8 [3, H, W] RGB, and its target.

        Raises:
            BadImage: The image or its masks cannot be decoded.
            DataError: The image is of another size than its annotations say.
        """
        return self.image(index), self.target(index)

    def image(self, index: int) -> Tensor:
        """Return image `index`, uint8 [3, H, W] RGB in 0..255; see `__getitem__`."""
        each = self.annotated[index]
        pixels = decode_rgb(self.files.read(each.image), self.describe(index))
        if pixels.shape[:2] != (each.height, each.width):
            raise BadImage(
                self.describe(index),
                f"it is {pixels.shape[1]} x {pixels.shape[0]} pixels, its annotations "
                f"are for {each.width} x {each.height}",
            )
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def target(self, index: int) -> Target:
        """Return the objects of image `index` by torchvision's names.

        Returns:
            `boxes` float32 [N, 4] as (x1, y1, x2, y2) in pixels, `labels` int64 [N] from
            1, `iscrowd` uint8 [N], `area` float32 [N] in square pixels, `image_id` int,
            and where the set has masks `masks` uint8 [N, H, W] of 0 and 1.

        Raises:
            DataError: The masks are of another size than the image.
        """
        each = self.annotated[index]
        target: Target = {
            "boxes": torch.from_numpy(each.boxes.copy()),
            "labels": torch.from_numpy(each.labels.copy()),
            "iscrowd": torch.from_numpy(each.iscrowd.copy()),
            "area": torch.from_numpy(each.area.copy()),
            "image_id": each.image_id,
        }
        if self.has_masks and each.masks is not None:
            try:
                drawn = each.masks.draw(self.files, each.height, each.width)
            except DataError as error:
                raise DataError(f"{self.describe(index)}: {error}") from None
            if drawn.shape != (len(each.labels), each.height, each.width):
                raise DataError(
                    f"{self.describe(index)} has masks of {drawn.shape[2]} x "
                    f"{drawn.shape[1]} pixels, the image is {each.width} x {each.height}"
                )
            target["masks"] = torch.from_numpy(drawn)
        return target

    def describe(self, index: int) -> str:
        """Return the name of image `index` in messages."""
        return f"{self.name}:{self.annotated[index].image}"

    def subset(self, indices: Iterable[int]) -> DetectionSet:
        """Return the set of the images at `indices`, in that order."""
        return DetectionSet(
            self.name,
            self.split,
            dict(zip(self.category_ids, self.classes, strict=True)),
            [self.annotated[i] for i in indices],
            self.files,
            report=self.report,
            has_masks=self.has_masks,
        )

    def without_empty(self) -> DetectionSet:
        """Return the images that have an object which is no crowd."""
        objects = [bool((each.iscrowd == 0).any()) for each in self.annotated]
        return self.subset(i for i, some in enumerate(objects) if some)

    @cached_property
    def fingerprint(self) -> str:
        """A key of the content, hex: file names and sizes, classes and annotations."""
        first = [self.split, self.classes, self.category_ids, self.has_masks]
        digest = hashlib.sha256(json.dumps(first).encode())
        for each in self.annotated:
            digest.update(json.dumps(each.key()).encode())
            digest.update(b"%d\n" % self.files.size(each.image))
        return digest.hexdigest()[:32]

    def __repr__(self) -> str:
        return (
            f"DetectionSet({self.name}/{self.split}: {len(self)} images, "
            f"{len(self.classes)} classes, {'' if self.has_masks else 'no '}masks)"
        )
