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

from fastadv.reporting.figures.lines import (
    Labels,
    Panel,
    Point,
    line_panels,
    panel_caption,
)
from fastadv.reporting.transfer.comparisons import Comparison
from fastadv.reporting.transfer.study import Study, T

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
    """Make an axis on which `values` are evenly spaced, whatever their size.

    Args:
        label: Title of the axis.
        key: Returns the value of an item.
        values: All values, in order.
        text: Returns the label of a value.
    """
    place = {value: float(i) for i, value in enumerate(values)}
    ticks = {place[value]: text(value) for value in values}
    return Axis(label, lambda item: place[key(item)], ticks)


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
    colors: Callable[[Sequence[T]], Mapping[str, str]],
    *,
    least: int = 2,
) -> Curves[T] | None:
    """Draw one panel per title that has points at `least` places of the axis.

    Args:
        study: Knows the published numbers.
        items: Cells, or comparisons, of which the differences are drawn.
        axis: The x axis.
        panel: Returns the title of the panel that an item is in.
        line: Returns the name of the line that an item is on.
        colors: Returns the colours of lines, given the items drawn.
        least: Smallest number of places with points.

    Returns:
        The figure and what is in it; None if no panel has enough points.
    """
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(panel(item), []).append(item)
    groups = {
        title: group
        for title, group in groups.items()
        if len(set(map(axis.place, group))) >= least
    }
    if not groups:
        return None
    panels = [_panel(study, *group, axis, line) for group in groups.items()]
    drawn = [item for item in items if panel(item) in groups]
    differences = isinstance(drawn[0], Comparison)
    y_label = "robust - standard (points)" if differences else "accuracy (%)"
    labels = Labels(axis.label, y_label, axis.ticks)
    figure = line_panels(panels, colors(drawn), labels, zero=differences)
    return Curves(figure, panels, drawn)


def _panel(
    study: Study,
    title: str,
    items: Iterable[T],
    axis: Axis[T],
    line: Callable[[T], str],
) -> Panel:
    series: dict[str, dict[float, Point]] = {}
    published: dict[str, dict[float, float]] = {}
    for item in items:
        name, x = line(item), axis.place(item)
        series.setdefault(name, {})[x] = Point(*item.interval())
        theirs = item.published(study.names)
        if theirs is not None:
            published.setdefault(name, {})[x] = theirs
    return Panel(title, series, published)
