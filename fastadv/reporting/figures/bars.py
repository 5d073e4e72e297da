"""Bars of robust sources beside standard ones, with what was published for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from fastadv.reporting.figures.charts import Bar, draw_groups, finish
from fastadv.reporting.figures.palette import (
    INK,
    house_style,
    new_figure,
    source_colors,
)
from fastadv.reporting.transfer.cells import Cell
from fastadv.reporting.transfer.comparisons import Comparison

_PER_LINE = 8  # groups in one panel


def comparison_bars(
    groups: Mapping[str, Comparison], published: Callable[[Cell], float | None]
) -> Figure:
    """Draw a standard and a robust bar per group, and published values as diamonds.

    Args:
        groups: by label.
        published: the published value of a cell in percent, or None.
    """
    palette = source_colors(["standard", "robust"])
    labels = list(groups)
    lines = [labels[i : i + _PER_LINE] for i in range(0, len(labels), _PER_LINE)]
    widest = max(map(len, lines))
    diamonds = any(
        published(cell) is not None
        for pair in groups.values()
        for cell in (pair.robust, pair.standard)
    )
    with house_style():
        figure = new_figure(max(4.6, 1.2 + 1.25 * widest), 0.7 + 2.8 * len(lines))
        axes = figure.subplots(len(lines), 1, squeeze=False, sharey=True)
        panels = [row[0] for row in axes]
        for ax, line in zip(panels, lines, strict=True):
            bars = {label: _bars(groups[label]) for label in line}
            # Diamonds stand where the values would be written; the table has those.
            draw_groups(ax, bars, palette, **({"room": 0} if diamonds else {}))
            ax.set_xlim(-0.6, widest - 0.4)
            for position, label in enumerate(line):
                pair = groups[label]
                for offset, cell in ((-0.2, pair.standard), (0.2, pair.robust)):
                    value = published(cell)
                    if value is not None:
                        x = position + offset
                        ax.plot(x, value, marker="D", mfc="none", mec=INK, ms=5)
            ax.set_ylabel("accuracy (%)")
        note = "whiskers: 95 % interval"
        if diamonds:
            note += "; diamonds: published"
        finish(figure, panels, palette, note)
    return figure


def _bars(pair: Comparison) -> dict[str, Bar]:
    return {
        name: Bar(*cell.interval(), len(cell.rows))
        for name, cell in (("standard", pair.standard), ("robust", pair.robust))
    }
