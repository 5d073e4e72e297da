"""Bars of accuracy, one group beside the other. Needs no torch.

Every axis shows percent. Curves over the course of a training are in `training`, lines
against anything else in `lines`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastadv.reporting.figures.palette import (
    INK,
    MUTED,
    PAPER,
    horizontal_grid,
    house_style,
    new_figure,
    wrapped,
)

MOST_GROUPS = 72
_PER_LINE = 8  # groups in one panel; more are drawn in further panels below it
_LABELLED = 36  # bars of a figure up to which each has its value written into it
_LETTERS = 22  # Of the label of a group, in one line.
_ROOM = 8  # percent; a lower bar has no room for its value, which then stands above


@dataclass(frozen=True)
class Bar:
    """One bar, with its whisker and a published value beside it. All in percent.

    Attributes:
        value: Height of the bar.
        low: Lower end of the whisker; None draws no whisker.
        high: Upper end of the whisker; None draws no whisker.
        published: Height of a hollow diamond on the bar; None draws none.
    """

    value: float
    low: float | None = None
    high: float | None = None
    published: float | None = None


def grouped_bars(
    groups: Mapping[str, Mapping[str, Bar]],
    colors: Mapping[str, str],
    y_label: str = "accuracy (%)",
) -> Figure:
    """Draw groups of bars side by side, eight to a panel; no more than `MOST_GROUPS`.

    Args:
        groups: Bars by the name of their series, by the label of their group. A series
            that a group lacks leaves its place empty.
        colors: Colour of each series, in the order of the bars within a group.
        y_label: Title of the y axis.

    Raises:
        ValueError: There is nothing to draw.
    """
    if not groups:
        raise ValueError("there are no groups of bars to draw; give at least one")
    labels = list(groups)[:MOST_GROUPS]
    panels = [labels[i : i + _PER_LINE] for i in range(0, len(labels), _PER_LINE)]
    widest = len(panels[0])
    bars = [bar for label in labels for bar in groups[label].values()]
    diamonds = any(bar.published is not None for bar in bars)
    with house_style():
        width = 1.2 + widest * (0.45 + 0.4 * len(colors))
        figure = new_figure(min(11.2, max(4.6, width)), 0.7 + 2.8 * len(panels))
        axes = figure.subplots(len(panels), 1, squeeze=False, sharey=True)
        for ax, panel in zip(axes[:, 0], panels, strict=True):
            # Diamonds stand where the values would be written; a table has those.
            labelled = len(bars) <= _LABELLED and not diamonds
            _draw(ax, {label: groups[label] for label in panel}, colors, labelled)
            ax.set_xlim(-0.6, widest - 0.4)
            ax.set_ylabel(y_label)
        handles = [
            Line2D([], [], color=c, lw=7, label=wrapped(n, 30))
            for n, c in colors.items()
        ]
        columns = min(4, len(handles))
        figure.legend(handles=handles, loc="outside upper left", ncols=columns)
        whiskers = any(bar.low is not None for bar in bars)
        notes = {"whiskers: 95 % interval": whiskers, "diamonds: published": diamonds}
        note = "; ".join(text for text, holds in notes.items() if holds)
        if note:
            figure.supxlabel(note, color=MUTED, fontsize=8, x=0.01, ha="left")
    return figure


def _lines(label: str) -> str:
    """Break the lines of a label that are wider than a group."""
    return "\n".join(wrapped(line, _LETTERS) for line in label.splitlines())


def _draw(
    ax: Axes,
    groups: Mapping[str, Mapping[str, Bar]],
    colors: Mapping[str, str],
    labelled: bool,
) -> None:
    """Draw the groups of one panel; bars begin at 0 and end below 100."""
    width = 0.8 / len(colors)
    for place, (series, color) in enumerate(colors.items()):
        offset = (place - (len(colors) - 1) / 2) * width
        for position, group in enumerate(groups.values()):
            if series not in group:
                continue
            bar, x = group[series], position + offset
            ax.bar(x, bar.value, 0.92 * width, color=color)
            if bar.low is not None and bar.high is not None:
                # Not errorbar's yerr: it refuses intervals that leave out the value.
                ax.vlines(x, bar.low, bar.high, color=INK, linewidth=1.1)
            if bar.published is not None:
                ax.plot(x, bar.published, marker="D", mfc="none", mec=INK, ms=5)
            if labelled:
                # In the foot: at the tip of the whisker it would be read as the height.
                inside = bar.value >= _ROOM
                y = 0 if inside else max(bar.value, bar.high or 0)
                look: Any = {
                    "ha": "center",
                    "fontsize": 7,
                    "textcoords": "offset points",
                }
                look["color"] = PAPER if inside else MUTED
                ax.annotate(f"{bar.value:.1f}", (x, y), (0, 3), **look)
    horizontal_grid(ax)
    ax.set_ylim(0, 108)
    ax.set_yticks(range(0, 101, 20))
    ax.set_xticks(range(len(groups)), [_lines(label) for label in groups])
