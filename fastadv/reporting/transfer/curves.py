"""Curves of a study: cells, or differences of cells, against anything.

Every section of curves is drawn here. It chooses what to draw, the axis, and how panels
and lines are named; what was drawn comes back, for the text beside the figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from matplotlib.figure import Figure

from fastadv.groups import grouped
from fastadv.reporting.figures.lines import (
    Cloud,
    Panel,
    Point,
    draw_panels,
    panel_caption,
)
from fastadv.reporting.transfer.pairs import Comparison
from fastadv.reporting.transfer.study import Study, T, line_colors

V = TypeVar("V", int, float, str)


@dataclass(frozen=True)
class Axis(Generic[T]):
    """The x axis of a figure.

    Attributes:
        label: Title of the axis.
        place: Returns the position of an item.
        ticks: Label of each position.
    """

    label: str
    place: Callable[[T], float]
    ticks: Mapping[float, str]


def even_axis(
    label: str, key: Callable[[T], V], values: Sequence[V], text: Callable[[V], str]
) -> Axis[T]:
    """Make an axis on which `values`, in order, are evenly spaced, whatever their size.

    `key` returns the value of an item, and `text` the label of a value.
    """
    ticks = {float(i): text(value) for i, value in enumerate(values)}
    return Axis(label, lambda item: values.index(key(item)), ticks)


def log_axis(label: str, key: Callable[[T], int], items: Iterable[T]) -> Axis[T]:
    """Make a logarithmic axis of whole numbers, with a tick at each that occurs."""
    ticks = {math.log2(value): str(value) for value in map(key, items)}
    return Axis(label, lambda item: math.log2(key(item)), ticks)


@dataclass(frozen=True)
class Curves(Generic[T]):
    """A figure of curves, and what is in it.

    Attributes:
        figure: The figure.
        panels: The panels that have enough points.
        items: The cells or comparisons in those panels.
    """

    figure: Figure
    panels: Sequence[Panel]
    items: Sequence[T]

    def captioned(self, text: str) -> tuple[Figure, str]:
        """Return the figure with its caption."""
        return self.figure, panel_caption(text, len(self.panels))


def draw_curves(
    study: Study,
    items: Sequence[T],
    axis: Axis[T],
    panel: Callable[[T], str],
    line: Callable[[T], str],
    colors: Callable[
        [Sequence[T], Callable[[T], str]], Mapping[str, str]
    ] = line_colors,
    *,
    least: int = 2,
) -> Curves[T] | None:
    """Draw one panel per title that has points at `least` places of the axis.

    Args:
        study: The study, which has the published numbers.
        items: Cells, or comparisons, of which the differences are drawn.
        axis: The x axis.
        panel: Returns the title of the panel that an item is in.
        line: Returns the name of the line that an item is on.
        colors: Returns the colours of lines, given the items drawn and `line`.
        least: Smallest number of places with points.

    Returns:
        The figure and what is in it; None if no panel has enough points.
    """
    panels = []
    for title, group in grouped(items, panel).items():
        series: dict[str, dict[float, Point]] = {}
        published: dict[str, dict[float, float]] = {}
        for item in group:
            name, x = line(item), axis.place(item)
            series.setdefault(name, {})[x] = Point(*item.interval())
            theirs = item.published(study.names)
            if theirs is not None:
                published.setdefault(name, {})[x] = theirs
        if len(set(map(axis.place, group))) >= least:
            panels.append(Panel(title, series, published))
    if not panels:
        return None
    titles = {each.title for each in panels}
    drawn = [item for item in items if panel(item) in titles]
    differences = isinstance(drawn[0], Comparison)
    y_label = "robust - standard (points)" if differences else "accuracy (%)"
    axes = (axis.label, y_label, axis.ticks)
    figure = draw_panels(panels, colors(drawn, line), *axes, zero=differences)
    return Curves(figure, panels, drawn)


def draw_clouds(
    clouds: Mapping[str, Mapping[str, Cloud]],
    colors: Mapping[str, str],
    labels: tuple[str, str],
    caption: str,
) -> tuple[Figure, str]:
    """Draw clouds by the name of their group, by the title of their panel.

    `labels` are the titles of the two axes.
    """
    panels = [Panel(title, clouds=groups) for title, groups in clouds.items()]
    return draw_panels(panels, colors, *labels), panel_caption(caption, len(panels))
