"""Rows of images with what they show written beside and under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from fastadv.reporting.figures.palette import INK, MUTED, house_style, new_figure

_CELL = 1.25  # Inches of one image.
_SIDE = 224  # Pixels per side above which images are reduced.
_LETTERS = 17  # Letters that fit under an image.
_BESIDE = 24  # Letters of a line that fit beside a row.


@dataclass(frozen=True)
class PictureRow:
    """One row of images.

    Attributes:
        name: Name of the row in bold, for example the network.
        note: What its images are, below the name; lines are split at line breaks.
        images: uint8 [n, C, H, W].
        under: Text under each image; empty for none.
        drawn: Whether each image is drawn, bool [n]; None draws all of them.
    """

    name: str
    note: str
    images: NDArray[np.uint8]
    under: Sequence[str] = ()
    drawn: NDArray[np.bool_] | None = None

    def part(self, which: slice) -> PictureRow:
        """Return the row with some of its images."""
        return PictureRow(
            self.name,
            self.note,
            self.images[which],
            self.under[which],
            None if self.drawn is None else self.drawn[which],
        )


def draw_gallery(
    title: str, rows: Sequence[PictureRow], columns: Sequence[str] = ()
) -> Figure:
    """Draw rows of images below each other.

    Images are enlarged without smoothing, and reduced to at most 224 pixels per side.

    Args:
        title: Title of the figure.
        rows: At least one row; all have as many images.
        columns: Text above each column; empty for none.

    Raises:
        ValueError: Rows have different numbers of images, or there is none.
    """
    counts = {len(row.images) for row in rows}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            f"rows have {sorted(counts)} images; give as many, in each row"
        )
    (count,) = counts
    label = 2.0
    with house_style():
        heights = [_CELL + (0.25 if row.under else 0.08) for row in rows]
        top = 0.55 if columns else 0.35
        width = max(label + count * _CELL, 0.078 * len(title))
        height = top + sum(heights)
        figure = new_figure(width, height)
        figure.set_layout_engine("none")
        figure.text(
            0.05 / width, 1 - 0.12 / height, title, fontsize=10, va="top", color=INK
        )
        bottom = height - top
        for position, (row, tall) in enumerate(zip(rows, heights, strict=True)):
            middle = (bottom - _CELL / 2) / height
            _beside(figure, row, middle, (label - 0.1) / width, height)
            for i, image in enumerate(row.images):
                left = label + i * _CELL
                center = (left + _CELL / 2) / width
                if position == 0 and columns:
                    place: Any = {"ha": "center", "va": "bottom", "fontsize": 9}
                    y = (bottom + 0.04) / height
                    figure.text(center, y, _short(columns[i]), color=INK, **place)
                side = _CELL - 0.06
                box = (left / width, (bottom - side) / height)
                ax = figure.add_axes((*box, side / width, side / height))
                ax.set_axis_off()
                if row.drawn is None or row.drawn[i]:
                    ax.imshow(_pixels(image), interpolation="none")
                else:
                    ax.text(
                        0.5, 0.5, "not finite", ha="center", color=MUTED, fontsize=8
                    )
                if row.under:
                    y = (bottom - side - 0.03) / height
                    figure.text(
                        center, y, row.under[i], ha="center", va="top", fontsize=8,
                        color=MUTED,
                    )  # fmt: skip
            bottom -= tall
    return figure


def _beside(
    figure: Figure, row: PictureRow, y: float, right: float, height: float
) -> None:
    """Write the name and the note of a row to its left."""
    lines = row.note.splitlines()
    step = 0.155 / height
    y += step * len(lines) / 2
    name = _short(row.name, _BESIDE)
    figure.text(right, y, name, ha="right", va="center", weight="bold", fontsize=9)
    for number, line in enumerate(lines, start=1):
        figure.text(
            right, y - number * step, line, ha="right", va="center", fontsize=8,
            color=MUTED,
        )  # fmt: skip


def _short(text: str, most: int = _LETTERS) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _pixels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image [C, H, W] as [H, W, 3], with sides of at most 224 pixels."""
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    if max(pixels.shape[:2]) > _SIDE:
        small = Image.fromarray(pixels)
        small.thumbnail((_SIDE, _SIDE))
        pixels = np.asarray(small)
    return pixels
