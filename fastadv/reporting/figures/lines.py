"""Panels of lines and points: accuracy against anything, published numbers beside ours.

Ours are filled and joined by full lines, with 95 % intervals; published ones are hollow
and joined by dotted lines. All values are percent, or points of percent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastadv.reporting.figures.palette import (
    INK,
    MUTED,
    horizontal_grid,
    house_style,
    new_figure,
    wrapped,
)
from fastadv.statistics import Line

MOST_PANELS = 12  # of one figure; drawing takes longer than all the rest of a report
_COLUMNS = 3
_CHARACTERS = 40  # of a title, in one line of a panel
_LINE = 0.155  # inches of a line of text of nine points
_HOLLOW: dict[str, Any] = {"ls": ":", "marker": "D", "mfc": "none", "ms": 4}


@dataclass(frozen=True)
class Point:
    """A value and the ends of its interval."""

    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Cloud:
    """Named points, and the line through them."""

    names: Sequence[str]
    x: Sequence[float]
    y: Sequence[float]
    line: Line | None


@dataclass(frozen=True)
class Panel:
    """One pair of axes with lines on it, or with clouds.

    Attributes:
        title: Title above the axes.
        series: Points by their position on the x axis, by the name of their line.
        published: Published values by position, by the name of the line they belong to.
        clouds: Named points by the name of their group, instead of lines.
    """

    title: str
    series: Mapping[str, Mapping[float, Point]] = field(default_factory=dict)
    published: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    clouds: Mapping[str, Cloud] = field(default_factory=dict)


def draw_panels(
    panels: Sequence[Panel],
    colors: Mapping[str, str],
    x_label: str,
    y_label: str,
    ticks: Mapping[float, str] | None = None,
    *,
    zero: bool = False,
) -> Figure:
    """Draw panels, three in a row; no more than `MOST_PANELS`.

    Args:
        panels: At least one, all with lines or all with clouds; each shows the part of
            the x axis it has points at.
        colors: Colour of each line or group, in the order of the legend.
        x_label: Title of the x axis, below the last row of panels.
        y_label: Title of the y axis, left of the first column of panels.
        ticks: Label of each position on the x axis; None numbers the axis.
        zero: Draw a line at 0, for differences.
    """
    panels = panels[:MOST_PANELS]
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = 2.7 if panels[0].clouds else 2.5
    used = {name for panel in panels for name in (*panel.series, *panel.clouds)}
    handles = [
        Line2D([], [], color=color, marker="o", markersize=4, label=wrapped(name, 30))
        for name, color in colors.items()
        if name in used
    ]
    if any(panel.published for panel in panels):
        handles.append(Line2D([], [], color=MUTED, label="published", **_HOLLOW))
    with house_style():
        figure = new_figure(max(5.2, 1.0 + 3.1 * columns), 0.9 + height * rows)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for index, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
            horizontal_grid(ax)
            ax.set_title(wrapped(panel.title, _CHARACTERS), fontsize=9)
            if index + columns >= len(panels):
                ax.set_xlabel(x_label)
            if index % columns == 0:
                ax.set_ylabel(y_label)
            if panel.clouds:
                _draw_clouds(ax, panel.clouds, colors)
            else:
                _draw_lines(ax, panel, colors, zero)
            if ticks is not None:
                _set_ticks(ax, panel, ticks)
        ncols = min(4, len(handles), max(2, int(figure.get_figwidth() / 2.6)))
        figure.legend(handles=handles, loc="outside upper left", ncols=ncols)
        if len(panels) > _COLUMNS:
            _place_panels(figure, axes[: len(panels)], columns, ncols)
    return figure


def panel_caption(text: str, count: int, most: int = MOST_PANELS) -> str:
    """Return a caption that states where only the first `most` of `count` are drawn."""
    if count <= most:
        return text
    return (
        f"{text} The first {most} of {count} are drawn; all numbers are in the tables."
    )


def _place_panels(
    figure: Figure, axes: Sequence[Axes], columns: int, legend_columns: int
) -> None:
    """Give every panel its place from the number of lines and characters around it.

    matplotlib's own layout measures every text of every panel four times, which takes
    three quarters of the time of a figure with many panels.
    """
    width, height = figure.get_size_inches()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    legend = math.ceil(len(labels) / legend_columns) * _LINE * _most_lines(labels)
    title = _LINE * _most_lines([ax.get_title(loc="left") for ax in axes]) + 0.08
    turned = max(map(_height_of_ticks, axes))
    top, bottom = legend + title + 0.25, turned + 0.3
    rows = math.ceil(len(axes) / columns)
    left, right, between = 0.65, 0.12, 0.5
    wide = (width - left - right - between * (columns - 1)) / columns
    high = (height - top - bottom - (turned + title) * (rows - 1)) / rows
    figure.set_layout_engine("none")
    for index, ax in enumerate(axes):
        x = left + (wide + between) * (index % columns)
        y = height - top - high - (high + turned + title) * (index // columns)
        ax.set_position((x / width, y / height, wide / width, high / height))
        ax.yaxis.set_label_coords(-0.45 / wide, 0.5)


def _most_lines(texts: Sequence[str]) -> int:
    return max((text.count("\n") + 1 for text in texts), default=0)


def _height_of_ticks(ax: Axes) -> float:
    """Return the inches below the axes that the tick labels of x need."""
    labels = [label for label in ax.get_xticklabels() if label.get_rotation()]
    longest = max((len(label.get_text()) for label in labels), default=0)
    return 0.25 + 0.055 * longest


def _set_ticks(ax: Axes, panel: Panel, ticks: Mapping[float, str]) -> None:
    """Label the positions of the x axis that the panel has points at.

    A tick without points would only make the panel wider. Labels are turned where there
    are many or they would run into each other.
    """
    places = sorted({x for points in panel.series.values() for x in points})
    texts = [ticks[x] for x in places]
    nearest = min((b - a for a, b in itertools.pairwise(places)), default=0)
    # A panel is about 36 of its tick labels' characters wide.
    needed = (max(map(len, texts)) + 1) / 36 * (places[-1] - places[0])
    rotation = 0 if len(places) <= 7 and nearest >= needed else 45
    ax.set_xticks(places, texts, rotation=rotation, fontsize=8)


def _draw_lines(ax: Axes, panel: Panel, colors: Mapping[str, str], zero: bool) -> None:
    if zero:
        ax.axhline(0, color=INK, linewidth=0.8)
    # Lines stand side by side: intervals of several would hide each other.
    xs = sorted({x for points in panel.series.values() for x in points})
    gap = min((b - a for a, b in itertools.pairwise(xs)), default=1.0)
    step = min(0.08, 0.4 / max(1, len(panel.series))) * min(1.0, gap)
    for index, (name, points) in enumerate(panel.series.items()):
        aside = (index - (len(panel.series) - 1) / 2) * step
        places = [x + aside for x in sorted(points)]
        ordered = [points[x] for x in sorted(points)]
        low, high = [p.low for p in ordered], [p.high for p in ordered]
        ax.vlines(places, low, high, color=colors[name], linewidth=1)
        values = [p.y for p in ordered]
        ax.plot(places, values, color=colors[name], marker="o", ms=4, linewidth=1.4)
    for name, published in panel.published.items():
        places = sorted(published)
        values = [published[x] for x in places]
        ax.plot(places, values, color=colors[name], lw=1, **_HOLLOW)
    ax.margins(x=0.08, y=0.12)
    if not zero and ax.get_ylim()[1] > 100:
        ax.set_ylim(top=100)


def _draw_clouds(
    ax: Axes, clouds: Mapping[str, Cloud], colors: Mapping[str, str]
) -> None:
    ax.locator_params(axis="x", nbins=5)
    for group, cloud in clouds.items():
        ax.plot(cloud.x, cloud.y, "o", color=colors[group], ms=4)
        if len(clouds) == 1:
            style: Any = {"textcoords": "offset points", "fontsize": 7, "color": MUTED}
            for name, x, y in zip(cloud.names, cloud.x, cloud.y, strict=True):
                ax.annotate(name, (x, y), (4, 3), **style)
        if cloud.line is not None:
            ends = [min(cloud.x), max(cloud.x)]
            fitted = [cloud.line.intercept + cloud.line.slope * x for x in ends]
            ax.plot(ends, fitted, color=colors[group], lw=1, ls="--")
    ax.margins(0.12)
