"""Reliability diagrams: how often decisions are right, by how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastadv.reporting.figures.palette import (
    INK,
    MUTED,
    house_style,
    new_figure,
)
from fastadv.statistics import wilson

MOST_DIAGRAMS = 12
_COLUMNS = 4


@dataclass(frozen=True)
class Diagram:
    """One reliability diagram.

    Attributes:
        title: Title above it.
        color: Colour of its points.
        count: Number of images of each bin, int [bins].
        confidence: Mean confidence in [0, 1], float [bins]; NaN in empty bins.
        accuracy: Share that is right, float [bins]; NaN in empty bins.
    """

    title: str
    color: str
    count: NDArray[np.integer]
    confidence: NDArray[np.floating]
    accuracy: NDArray[np.floating]


def draw_reliability(diagrams: Sequence[Diagram]) -> Figure:
    """Draw reliability diagrams, four in a row; no more than `MOST_DIAGRAMS`.

    Points are bins, with 95 % intervals of their accuracy; bars below are shares of the
    images. Below the diagonal, a network is surer than it is right.

    Args:
        diagrams: At least one.
    """
    diagrams = diagrams[:MOST_DIAGRAMS]
    columns = min(_COLUMNS, len(diagrams))
    rows = math.ceil(len(diagrams) / columns)
    with house_style():
        figure = new_figure(0.6 + 2.6 * columns, 0.5 + 2.7 * rows)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax in axes[len(diagrams) :]:
            ax.set_visible(False)
        for index, (ax, diagram) in enumerate(zip(axes, diagrams, strict=False)):
            bins = len(diagram.count)
            middles = 100 * (np.arange(bins) + 0.5) / bins
            shares = 100 * diagram.count / max(int(diagram.count.sum()), 1)
            ax.bar(middles, shares, 92 / bins, color=MUTED, alpha=0.25)
            ax.plot([0, 100], [0, 100], color=INK, lw=0.8, ls="--")
            used = diagram.count > 0
            x, y = 100 * diagram.confidence[used], 100 * diagram.accuracy[used]
            ends = [
                wilson(share / 100 * count, count)
                for share, count in zip(y, diagram.count[used], strict=True)
            ]
            low, high = (100 * np.array(each) for each in zip(*ends, strict=True))
            ax.vlines(x, low, high, color=diagram.color, lw=1)
            ax.plot(x, y, "o", color=diagram.color, ms=4, clip_on=False)
            ax.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
            ax.set_title(diagram.title, fontsize=9, loc="left")
            if index + columns >= len(diagrams):
                ax.set_xlabel("confidence (%)")
            if index % columns == 0:
                ax.set_ylabel("right (%)")
    return figure
