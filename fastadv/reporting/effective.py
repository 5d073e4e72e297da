"""The section on effective robustness: accuracy beyond what standard accuracy predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastadv.reporting.figures.palette import (
    MUTED,
    house_style,
    new_figure,
    source_colors,
    wrapped,
)
from fastadv.reporting.page.html import Section, Table
from fastadv.results.row import Row
from fastadv.results.shift_settings import EffectiveSetting
from fastadv.results.table import Arrays
from fastadv.statistics.effective import Scale, from_scale, to_scale

_TICKS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99)  # percent
_STANDARD = "standard networks"


def effective_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "effective_robustness".

    Args:
        rows: Rows of that kind, oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours; this section needs none.
        arrays: Reads the arrays of a row.
    """
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.setting_key, {})[row.source.name] = row
    lines: list[list[object]] = []
    figures: list[tuple[Figure, str]] = []
    for of_source in found.values():
        drawn = {}
        for name, row in of_source.items():
            setting = cast(EffectiveSetting, row.setting)
            kept = arrays(row)
            own = kept.get("own", np.array([np.nan, np.nan]))
            lines.append(
                [
                    row.target.name,
                    name,
                    *(None if np.isnan(v) else f"{v:.1f}%" for v in own),
                    _with_interval(row),
                    len(setting.fitted),
                    setting.shift_label,
                    setting.standard_label,
                ]
            )
            if kept:
                drawn[name] = (row, kept)
        if drawn:
            setting = cast(EffectiveSetting, row.setting)
            caption = (
                f"Accuracy under shift against standard accuracy, on {setting.scale} "
                "scales: the line fitted to standard networks, and the 95 % interval of a "
                f"further one. {setting.shift_label}."
            )
            figures.append((_draw(drawn, setting), caption))
    columns = [
        "target", "source", "standard", "under shift", "effective robustness",
        "networks fitted", "shift", "standard accuracy on",
    ]  # fmt: skip
    return [
        Section(
            "Effective robustness",
            [
                "Effective robustness is the accuracy under shift beyond what a line "
                "through standard networks predicts from standard accuracy (Taori et al. "
                "2020), in points. Its interval is that of a further standard network of "
                "the same standard accuracy: one that leaves out 0 says that the network "
                "is unlike standard ones. It assumes that the line holds at its standard "
                "accuracy, which only networks of about that accuracy can show."
            ],
            figures,
            [Table(columns, lines, "Effective robustness, points of accuracy.")],
        )
    ]


def _with_interval(row: Row) -> str:
    """Return the number of a row, with its interval where it has one."""
    if row.low is None or row.high is None:
        return f"{row.value:+.1f}"
    return f"{row.value:+.1f} [{row.low:+.1f}, {row.high:+.1f}]"


def _draw(
    drawn: Mapping[str, tuple[Row, Mapping[str, NDArray[Any]]]],
    setting: EffectiveSetting,
) -> Figure:
    eps = {name: row.source.eps for name, (row, _) in drawn.items()}
    colors = source_colors(eps, eps)
    scale = cast(Scale, setting.scale)
    _, first = next(iter(drawn.values()))
    with house_style():
        figure = new_figure(6.4, 4.6)
        ax = figure.subplots()
        x, middle, low, high = first["line"]
        ax.fill_between(x, low, high, color=MUTED, alpha=0.15, lw=0)
        ax.plot(x, middle, color=MUTED, lw=1, ls="--")
        ax.plot(first["standard"], first["shifted"], "o", color=MUTED, label=_STANDARD)
        for name, (_, kept) in drawn.items():
            standard, shifted = kept["own"]
            ax.plot(standard, shifted, "D", color=colors[name], label=name)
        values = [*first["standard"], *(kept["own"][0] for _, kept in drawn.values())]
        _set_scale(ax, "x", scale, values)
        values = [*first["shifted"], *low, *high]
        values += [kept["own"][1] for _, kept in drawn.values()]
        _set_scale(ax, "y", scale, values)
        ax.set_xlabel(wrapped(f"standard accuracy (%): {setting.standard_label}", 60))
        ax.set_ylabel(wrapped(f"accuracy under shift (%): {setting.shift_label}", 60))
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def _set_scale(
    ax: Axes, axis: Literal["x", "y"], scale: Scale, values: Sequence[float]
) -> None:
    """Scale an axis of percentages so that the line is straight."""

    def forward(percent: NDArray[np.float64]) -> NDArray[np.float64]:
        return to_scale(np.clip(np.asarray(percent) / 100, 1e-4, 1 - 1e-4), scale)

    def back(value: NDArray[np.float64]) -> NDArray[np.float64]:
        return 100 * from_scale(value, scale)

    set_scale: Any = getattr(ax, f"set_{axis}scale")
    set_scale("function", functions=(forward, back))
    ends = forward(np.array([min(values), max(values)]))
    room = 0.08 * float(ends[1] - ends[0] or 1)
    low, high = back(np.array([ends[0] - room, ends[1] + room]))
    getattr(ax, f"set_{axis}lim")(float(low), float(high))
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    getattr(ax, f"set_{axis}ticks")(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.grid(axis=axis)
