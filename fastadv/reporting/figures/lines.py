"""Panels of lines and points: accuracy against anything, published numbers beside ours.

Ours are filled and joined by full lines, with 95 % intervals; published ones are hollow
and joined by dotted lines. Percent or points of percent throughout.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastadv.reporting.figures.palette import (
    INK,
    MUTED,
    horizontal_grid,
    house_style,
    new_figure,
)
from fastadv.statistics import Line

_COLUMNS = 3
_CHARACTERS = 40  # of a title, in one line of a panel


@dataclass(frozen=True)
class Point:
    """A value with its interval."""

    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: above it.
        series: points by position on the x axis, by name.
        published: values by position, by name of the series they belong to.
    """

    title: str
    series: Mapping[str, Mapping[float, Point]]
    published: Mapping[str, Mapping[float, float]] = field(default_factory=dict)


def line_panels(
    panels: Sequence[Panel],
    *,
    colors: Mapping[str, str],
    ticks: Mapping[float, str],
    x_label: str,
    y_label: str,
    zero: bool = False,
) -> Figure:
    """Draw panels of lines, three in a row.

    Args:
        panels: at least one; each shows the part of the x axis it has points at.
        colors: by name of the series; their order is the legend's.
        ticks: label of each position on the x axis.
        x_label: of the last row.
        y_label: of the first column.
        zero: draw a line at 0 (differences).
    """
    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    with house_style():
        figure = new_figure(max(5.2, 1.0 + 3.1 * columns), 0.9 + 2.5 * lines)
        axes = figure.subplots(lines, columns, squeeze=False)
        for index, ax in enumerate(axes.flat):
            if index >= len(panels):
                ax.set_visible(False)
                continue
            panel = panels[index]
            _draw(ax, panel, colors, zero)
            used = {x for points in panel.series.values() for x in points}
            # Of a tick without points the panel would only get wider.
            own = {x: ticks[x] for x in sorted(used)}
            upright = len(own) <= 7 and not _touch(own)
            ax.set_xticks(
                list(own),
                list(own.values()),
                rotation=0 if upright else 45,
                fontsize=8,
            )
            if index + columns >= len(panels):
                ax.set_xlabel(x_label)
            if index % columns == 0:
                ax.set_ylabel(y_label)
        shown = [n for n in colors if any(n in panel.series for panel in panels)]
        legend(figure, {n: colors[n] for n in shown}, any(p.published for p in panels))
    return figure


def _touch(ticks: Mapping[float, str]) -> bool:
    """Whether labels of neighbouring ticks would run into each other."""
    places = list(ticks)
    pairs = list(itertools.pairwise(places))
    if not pairs:
        return False
    widest = max(len(label) for label in ticks.values())
    # A panel is about 36 of its tick labels' characters wide.
    return min(b - a for a, b in pairs) < (widest + 1) / 36 * (places[-1] - places[0])


def legend(figure: Figure, colors: Mapping[str, str], published: bool) -> None:
    """Names of the series above the panels, and what hollow points are."""
    handles = [
        Line2D([], [], color=color, marker="o", markersize=4, label=name)
        for name, color in colors.items()
    ]
    if published:
        handles.append(
            Line2D(
                [],
                [],
                color=MUTED,
                ls=":",
                marker="D",
                mfc="none",
                ms=4,
                label="published",
            )
        )
    figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)))


def _wrapped(title: str) -> str:
    """A title of as many lines as a panel is too narrow for."""
    joined = title.replace(" = ", "\u00a0=\u00a0")
    return "\n".join(textwrap.wrap(joined, _CHARACTERS)).replace("\u00a0", " ")


def _draw(ax: Axes, panel: Panel, colors: Mapping[str, str], zero: bool) -> None:
    horizontal_grid(ax)
    ax.set_title(_wrapped(panel.title), fontsize=9)
    if zero:
        ax.axhline(0, color=INK, linewidth=0.8)
    for index, (name, points) in enumerate(panel.series.items()):
        places = sorted(points)
        # Side by side: intervals of several lines would hide each other.
        aside = (index - (len(panel.series) - 1) / 2) * min(
            0.08, 0.4 / len(panel.series)
        )
        for x in places:
            ax.vlines(
                x + aside,
                points[x].low,
                points[x].high,
                color=colors[name],
                linewidth=1,
            )
        values = [points[x].y for x in places]
        shifted = [x + aside for x in places]
        ax.plot(shifted, values, color=colors[name], marker="o", ms=4, linewidth=1.4)
    for name, published in panel.published.items():
        places = sorted(published)
        values = [published[x] for x in places]
        ax.plot(
            places,
            values,
            color=colors[name],
            ls=":",
            marker="D",
            mfc="none",
            ms=4,
            lw=1,
        )
    ax.margins(x=0.08, y=0.12)
    if not zero and ax.get_ylim()[1] > 100:
        ax.set_ylim(top=100)


@dataclass(frozen=True)
class Cloud:
    """Named points, and the line through them."""

    names: Sequence[str]
    x: Sequence[float]
    y: Sequence[float]
    line: Line | None


def cloud_panels(
    panels: Mapping[str, Mapping[str, Cloud]],
    *,
    colors: Mapping[str, str],
    x_label: str,
    y_label: str,
) -> Figure:
    """Draw named points and their least-squares lines, three panels in a row.

    Args:
        panels: clouds by name of the group, by title.
        colors: by group.
        x_label: of the last row, percent.
        y_label: of the first column, percent.
    """
    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    with house_style():
        figure = new_figure(max(5.2, 1.0 + 3.1 * columns), 0.9 + 2.7 * lines)
        axes = figure.subplots(lines, columns, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for index, (title, clouds) in enumerate(panels.items()):
            ax = axes.flat[index]
            horizontal_grid(ax)
            ax.set_title(_wrapped(title), fontsize=9)
            ax.locator_params(axis="x", nbins=5)
            for group, cloud in clouds.items():
                _draw_cloud(ax, cloud, colors[group], named=len(clouds) == 1)
            if index + columns >= len(panels):
                ax.set_xlabel(x_label)
            if index % columns == 0:
                ax.set_ylabel(y_label)
            ax.margins(0.12)
        shown = [g for g in colors if any(g in clouds for clouds in panels.values())]
        legend(figure, {g: colors[g] for g in shown}, False)
    return figure


def _draw_cloud(ax: Axes, cloud: Cloud, color: str, named: bool) -> None:
    ax.plot(cloud.x, cloud.y, "o", color=color, ms=4)
    if named:
        for name, x, y in zip(cloud.names, cloud.x, cloud.y, strict=True):
            ax.annotate(
                name,
                (x, y),
                (4, 3),
                textcoords="offset points",
                fontsize=7,
                color=MUTED,
            )
    if cloud.line is not None:
        ends = [min(cloud.x), max(cloud.x)]
        fitted = [cloud.line.intercept + cloud.line.slope * x for x in ends]
        ax.plot(ends, fitted, color=color, lw=1, ls="--")
