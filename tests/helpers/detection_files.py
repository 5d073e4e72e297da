"""Small detection sets on disk: coloured rectangles on grey, in each layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]
COLOURS = ((220, 30, 30), (30, 30, 220), (30, 200, 30))


def draw(
    path: Path, boxes: Sequence[Box], labels: Sequence[int], size: tuple[int, int]
) -> None:
    """Write an image of `size` (width, height) with a rectangle for each box."""
    pixels = np.full((size[1], size[0], 3), 120, dtype=np.uint8)
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        pixels[y1:y2, x1:x2] = COLOURS[label - 1]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def random_objects(
    rng: np.random.Generator, size: tuple[int, int], classes: int
) -> tuple[list[Box], list[int]]:
    """Return one or two boxes of 16 to 40 pixels per side, and their labels."""
    boxes, labels = [], []
    for _ in range(int(rng.integers(1, 3))):
        width, height = rng.integers(16, 41, 2)
        x, y = rng.integers(0, size[0] - width), rng.integers(0, size[1] - height)
        boxes.append((int(x), int(y), int(x + width), int(y + height)))
        labels.append(int(rng.integers(1, classes + 1)))
    return boxes, labels


def polygon(box: Box) -> list[list[float]]:
    x1, y1, x2, y2 = box
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def write_coco(
    root: Path, images: int = 6, size: tuple[int, int] = (96, 80), seed: int = 0
) -> Path:
    """Write a set of two classes, whose categories are 3 and 90, with masks."""
    rng = np.random.default_rng(seed)
    for split in ("train2017", "val2017"):
        listed: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(images):
            boxes, labels = random_objects(rng, size, 2)
            name = f"{number:012d}.jpg"
            draw(root / split / name, boxes, labels, size)
            listed.append(
                {
                    "id": 100 + number,
                    "file_name": name,
                    "width": size[0],
                    "height": size[1],
                }
            )
            for box, label in zip(boxes, labels, strict=True):
                x1, y1, x2, y2 = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 100 + number,
                        "category_id": (3, 90)[label - 1],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "segmentation": polygon(box),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": 90, "name": "tooth brush"}, {"id": 3, "name": "car"}]
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps(
                {"images": listed, "annotations": annotations, "categories": categories}
            )
        )
    return root


def edit_coco(root: Path, split: str = "train2017", **changes: Any) -> dict[str, Any]:
    """Return the annotations of a split after writing changed parts of them."""
    file = root / "annotations" / f"instances_{split}.json"
    known: dict[str, Any] = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(known))
    return known


def voc_object(name: str, box: Sequence[object], **more: object) -> str:
    x1, y1, x2, y2 = box
    extra = "".join(f"<{key}>{value}</{key}>" for key, value in more.items())
    return (
        f"<object><name>{name}</name>{extra}<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
    )


def write_voc_image(
    top: Path, stem: str, objects: Sequence[str], size: tuple[int, int] = (50, 40)
) -> None:
    """Write an image and its XML file, which states the size of the image."""
    draw(top / "JPEGImages" / f"{stem}.jpg", [], [], size)
    text = (
        f"<annotation><filename>{stem}.jpg</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
    )
    (top / "Annotations").mkdir(exist_ok=True)
    (top / "Annotations" / f"{stem}.xml").write_text(text)


def write_voc_list(
    top: Path, split: str, stems: Sequence[str], kind: str = "Main"
) -> None:
    path = top / "ImageSets" / kind / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{stem}\n" for stem in stems))


def write_voc_shapes(top: Path, stem: str, values: np.ndarray) -> None:
    """Write the segmentation of an image, uint8 [H, W], as VOC does: with a palette."""
    path = top / "SegmentationObject" / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = Image.fromarray(values, "P")
    shapes.putpalette([channel for k in range(256) for channel in (k, 255 - k, 7)])
    shapes.save(path)


def write_masks(
    root: Path,
    images: int = 6,
    size: tuple[int, int] = (96, 80),
    seed: int = 0,
    objects: int = 2,
) -> Path:
    """Write images beside masks, with one or two objects that do not overlap fully."""
    rng = np.random.default_rng(seed)
    for number in range(images):
        boxes = random_objects(rng, size, 1)[0][:objects]
        draw(root / "images" / f"{number}.jpg", boxes, [1] * len(boxes), size)
        values = np.zeros((size[1], size[0]), dtype=np.uint8)
        for value, (x1, y1, x2, y2) in enumerate(boxes, start=1):
            values[y1:y2, x1:x2] = value
        path = root / "masks" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return root
