"""Matrices as coloured cells: similarities of layers, influences of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastadv.reporting.figures.palette import (
    INK,
    PAPER,
    house_style,
    new_figure,
    wrapped,
)

_COLUMNS = 3
_LETTERS = 38  # Of a title above a matrix, in one line.
_WRITTEN = 12  # Cells in a row up to which their values are written into them.


@dataclass(frozen=True)
class Matrix:
    """A matrix to draw.

    Attributes:
        title: Title above it.
        values: float [rows, columns].
        rows: Names of the rows, or one name for all of them as a single text.
        columns: Names of the columns, likewise.
    """

    title: str
    values: NDArray[np.floating]
    rows: Sequence[str]
    columns: Sequence[str]


def draw_matrices(
    matrices: Sequence[Matrix],
    ends: tuple[float, float],
    label: str,
    *,
    digits: int = 2,
) -> Figure:
    """Draw matrices, up to three in a row, on one scale of colours.

    Colours run from white to blue; a scale that reaches below zero is red there. Values
    are written into the cells of small matrices.

    Args:
        matrices: At least one.
        ends: Values at the ends of the scale; those outside are drawn as its ends.
        label: What the values are.
        digits: Decimals of the values that are written into cells.
    """
    columns = min(_COLUMNS, len(matrices))
    rows = math.ceil(len(matrices) / columns)
    colors = colormaps["RdBu" if ends[0] < 0 else "Blues"]
    named = [m.rows for m in matrices if not isinstance(m.rows, str)]
    height = max(3.1, 0.25 * max(map(len, named), default=0))
    with house_style():
        figure = new_figure(1.2 + 3.2 * columns, 0.3 + height * rows)
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax in axes.flat[len(matrices) :]:
            ax.set_visible(False)
        for ax, matrix in zip(axes.flat, matrices, strict=False):
            image = ax.imshow(
                matrix.values,
                cmap=colors,
                vmin=ends[0],
                vmax=ends[1],
                interpolation="none",
                aspect="auto",
            )
            ax.set_title(wrapped(matrix.title, _LETTERS))
            for axis, names, name_axis in (
                (ax.yaxis, matrix.rows, ax.set_ylabel),
                (ax.xaxis, matrix.columns, ax.set_xlabel),
            ):
                if isinstance(names, str):
                    axis.set_ticks([])
                    name_axis(names)
                else:
                    axis.set_ticks(range(len(names)), list(names))
            if not isinstance(matrix.columns, str):
                ax.tick_params(axis="x", labelrotation=45)
            if matrix.values.shape[1] <= _WRITTEN and not isinstance(matrix.rows, str):
                for (i, j), value in np.ndenumerate(matrix.values):
                    dark = colors((value - ends[0]) / (ends[1] - ends[0]))[1] < 0.5
                    color = PAPER if dark else INK
                    ax.text(
                        j,
                        i,
                        f"{value:.{digits}f}",
                        ha="center",
                        va="center",
                        color=color,
                    )
        figure.colorbar(image, ax=axes, label=label, shrink=0.6, aspect=30)
    return figure
