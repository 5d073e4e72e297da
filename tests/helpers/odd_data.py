"""Small data sets as people bring them: files of one colour in any layout."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from fastadv.data.sets.image_set import ImageSet


def picture(value: int, kind: str = "PNG") -> bytes:
    """Return an encoded image whose red channel is `value` everywhere."""
    out = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 255 - value)).save(out, kind)
    return out.getvalue()


def write(root: Path, *paths: str, text: dict[str, str] | None = None) -> Path:
    """Write images called `.../NUMBER.ending`, whose red value is the number, and texts.

    A path may be given as `a/b/{1,2,3}.png`.
    """
    for path in paths:
        head, brace, rest = path.partition("{")
        inner, _, tail = rest.partition("}")
        for each in inner.split(",") if brace else [""]:
            name = f"{head}{each}{tail}"
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            digits = "".join(c for c in target.stem if c.isdigit()) or "0"
            target.write_bytes(picture(int(digits)))
    for name, content in (text or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def content(images: ImageSet) -> dict[str, list[int]]:
    """Return the red values of the images of each class, of classes that have any."""
    found: dict[str, list[int]] = {}
    for i in range(len(images)):
        name = images.classes[int(images.labels[i])]
        found.setdefault(name, []).append(int(images.load(i)[0, 0, 0]))
    return {name: sorted(values) for name, values in found.items()}
