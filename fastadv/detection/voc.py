"""Reading of Pascal VOC's layout: an XML file for each image, and lists of splits."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from fastadv.data.decoding import BadImage
from fastadv.detection.maskfolder import InstanceImage, read_values
from fastadv.detection.sets import (
    AnnotatedImage,
    DetectionSet,
    Files,
    MasksMissing,
    Objects,
    Report,
)
from fastadv.errors import DataError

_TRAIN = ("trainval", "train")
_TEST = ("test", "val")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp")


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, ...]  # as the file has it
    ignored: bool


@dataclass(frozen=True)
class _Described:
    """An XML file as it was read; `size` is (width, height) or None."""

    xml: str
    image: str
    size: tuple[int, int] | None
    objects: tuple[_Object, ...]


def find_splits(files: Files, *, masks: bool = False) -> dict[str, list[str]] | None:
    """Return the XML files of `train` and `test`, or None if the layout is not VOC's.

    With `masks`, the lists are those of ImageSets/Segmentation where there are some, since
    VOC segments a part of its images. Several years beside each other are read together:
    `trainval` of all of them trains (else `train`), `test` of those that have one tests
    (else `val`). Without lists in ImageSets/Main there is one split, `all`.
    """
    tops = sorted(
        {name.partition("Annotations/")[0] for name in _xml_files(files)},
        key=os.fsencode,
    )
    if not tops:
        return None
    lists: dict[str, list[str]] = {}
    for top in tops:
        folder = f"{top}ImageSets/Segmentation/"
        if not masks or not any(name.startswith(folder) for name in files.texts):
            folder = f"{top}ImageSets/Main/"
        for word in (*_TRAIN, *_TEST):
            if f"{folder}{word}.txt" in files.texts:
                text = files.read_text(f"{folder}{word}.txt").decode(errors="replace")
                stems = [line.split()[0] for line in text.splitlines() if line.split()]
                lists.setdefault(word, []).extend(
                    f"{top}Annotations/{stem}.xml" for stem in stems
                )
    train = next((lists[word] for word in _TRAIN if word in lists), None)
    test = next((lists[word] for word in _TEST if word in lists), None)
    if train is None or test is None:
        return {"all": _xml_files(files)}
    if "test" not in lists and "train" in lists:
        train = lists["train"]  # `trainval` holds `val`
    return {"train": train, "test": test}


def read_voc(
    files: Files,
    name: str,
    splits: dict[str, list[str]],
    *,
    origin: int = 1,
    masks: bool = False,
) -> dict[str, DetectionSet]:
    """Read the splits of a set in VOC's layout, with one list of classes.

    Classes are in bytewise order, which is VOC's own. Objects marked difficult train like
    others, as in Detectron2, and are ignored in evaluation (`iscrowd`), as VOC's protocol
    has it.

    Args:
        files: The files of the set.
        name: Name of the set.
        splits: XML files of each split.
        origin: The coordinate of the first pixel: 1 as in VOC, or 0. A box from xmin to
            xmax holds both pixels.
        masks: Read the shapes of objects in SegmentationObject/NAME.png, where pixels of
            value k are the k-th object of the XML file and 255 is a border that belongs to
            none. Images and objects without a shape are left out.

    Raises:
        DataError: An XML file cannot be read, no image is there, a coordinate below
            `origin` shows that boxes count from 0, or masks are of another size than
            their image.
    """
    described: dict[str, list[_Described]] = {}
    reports = {split: Report() for split in splits}
    for split, paths in splits.items():
        report, found = reports[split], []
        for path in paths:
            if path not in files.texts:
                report.note("a missing file of annotations, left out", path)
                continue
            each = _described(files, path, ignores=split == "test")
            if each is None:
                report.note("a missing image file, left out", path)
            elif masks and _shapes_of(each) not in files:
                report.note("an image without segmented objects, left out", each.image)
            else:
                found.append(each)
        described[split] = found
        if not found and masks and report.found:
            raise MasksMissing(
                f"{name}/{split}: none of its {len(paths)} images has segmented objects; "
                "expected SegmentationObject/NAME.png, or leave out `masks`"
            )
        if not found:
            raise DataError(
                f"{name}/{split}: none of its {len(paths)} images is there with its file "
                "of annotations; expected Annotations/NAME.xml and JPEGImages/NAME.jpg"
            )
    everything = [each for found in described.values() for each in found]
    classes = sorted(
        {one.name for each in everything for one in each.objects}, key=os.fsencode
    )
    _check_origin(everything, origin)
    labels = {each: number for number, each in enumerate(classes, start=1)}
    return {
        split: DetectionSet(
            name,
            split,
            dict(enumerate(classes, start=1)),
            [
                _annotated(files, each, number, labels, origin, reports[split], masks)
                for number, each in enumerate(found)
            ],
            files,
            report=reports[split],
            has_masks=masks,
        )
        for split, found in described.items()
    }


def _annotated(
    files: Files,
    described: _Described,
    number: int,
    labels: Mapping[str, int],
    origin: int,
    report: Report,
    masks: bool,
) -> AnnotatedImage:
    width, height = described.size or _image_size(files, described.image)
    objects = Objects(described.image, height, width, report)
    pixels = _pixels(files, described, height, width) if masks else None
    shown = []  # the value of each object that has pixels
    for value, one in enumerate(described.objects, start=1):
        if pixels is not None and not pixels[value : value + 1].any():
            where = f"{described.image} object {value}"
            report.note("an object without pixels of its own, left out", where)
            continue
        shown.append(value)
        x1, y1, x2, y2 = one.box
        # The last pixel belongs to the box, so its far edge is one further.
        objects.add(
            (x1 - origin, y1 - origin, x2 - origin + 1, y2 - origin + 1),
            labels[one.name],
            iscrowd=one.ignored,
            area=None if pixels is None else float(pixels[value]),
        )
    shapes = InstanceImage(_shapes_of(described), tuple(shown)) if masks else None
    return objects.annotated(described.image, number, shapes)


def _shapes_of(described: _Described) -> str:
    """Return the path of the image whose values are the objects of another one."""
    top, _, stem = described.xml.removesuffix(".xml").rpartition("Annotations/")
    return f"{top}SegmentationObject/{stem}.png"


def _pixels(
    files: Files, described: _Described, height: int, width: int
) -> NDArray[np.int64]:
    """Return the number of pixels of each value of an image's segmentation."""
    values = read_values(files, _shapes_of(described))
    if values.shape != (height, width):
        raise DataError(
            f"the mask {_shapes_of(described)} is {values.shape[1]} x {values.shape[0]} "
            f"pixels, its image {width} x {height}; both must have one size"
        )
    return np.bincount(values.ravel()).astype(np.int64)


def _check_origin(described: Sequence[_Described], origin: int) -> None:
    for each in described:
        for one in each.objects:
            if origin == 1 and min(one.box[:2]) == 0:
                raise DataError(
                    f"{each.xml} has a box that begins at 0, so its coordinates count "
                    "from 0 and not from 1 as those of VOC; use `origin=0`"
                )


def _described(files: Files, path: str, *, ignores: bool) -> _Described | None:
    """Return what an XML file says, or None if its image is not there.

    With `ignores`, objects marked difficult are to be ignored.
    """
    try:
        root = ElementTree.fromstring(files.read_text(path))
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is not XML: {error}") from None
    objects = tuple(_object(each, path, ignores) for each in root.iter("object"))
    top, _, stem = path.removesuffix(".xml").rpartition("Annotations/")
    named = (root.findtext("filename") or "").strip()
    folder = f"{top}JPEGImages/"
    names = [named, *(stem + suffix for suffix in _SUFFIXES)]
    if named and not PurePosixPath(named).suffix:
        names[1:1] = [named + suffix for suffix in _SUFFIXES]
    candidates = [folder + each for each in names if each]
    candidates += [f"{top}images/{each}" for each in names if each]
    image = next((each for each in candidates if each in files), None)
    if image is None:
        return None
    try:
        size = (
            int(float(root.findtext("size/width") or 0)),
            int(float(root.findtext("size/height") or 0)),
        )
    except ValueError:
        size = (0, 0)
    return _Described(path, image, size if min(size) > 0 else None, objects)


def _object(element: ElementTree.Element, path: str, ignores: bool) -> _Object:
    name = " ".join((element.findtext("name") or "").split())
    if not name:
        raise DataError(f"{path} has an object without a name; add it")
    values = []
    for corner in _CORNERS:
        text = element.findtext(f"bndbox/{corner}")
        try:
            values.append(float(text or ""))
        except ValueError:
            raise DataError(
                f"{path}: the object {name!r} has {corner}={text!r}, which is no number"
            ) from None
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return _Object(name, tuple(values), difficult and ignores)


def _image_size(files: Files, image: str) -> tuple[int, int]:
    """Return (width, height) of an image by its header."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(files.read(image))) as opened:
            return opened.size
    except (OSError, BadImage) as error:
        raise DataError(
            f"{image} cannot be opened, and its annotations do not state its size: {error}"
        ) from None


def _xml_files(files: Files) -> list[str]:
    return [
        name
        for name in sorted(files.texts, key=os.fsencode)
        if name.endswith(".xml") and PurePosixPath(name).parent.name == "Annotations"
    ]
