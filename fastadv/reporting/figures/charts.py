"""Bars of results: transfer, and accuracy under attack. Needs no torch.

Accuracies in results rows are percent, those in summaries fractions of 1; every axis
shows percent. Curves over the course of a training are in `curves`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastadv.reporting.figures.palette import (
    INK,
    MUTED,
    completed,
    horizontal_grid,
    house_style,
    new_figure,
)
from fastadv.statistics import wilson

Row = Mapping[str, Any]

_MODE_NAMES = {"fixed_feature": "fixed features", "full_network": "full network"}
# Rows that differ in one of these are different experiments, never averaged together.
_SETTINGS = ("metric", "protocol", "select_on", "resolution", "num_train")
_SIDE_BY_SIDE = 6  # groups that fit in one line of panels; more are stacked
_ROOM = 36  # bars in a panel up to which each has its value written above


@dataclass(frozen=True)
class Bar:
    """One bar: its height and the ends of its whisker, in percent.

    Attributes:
        value: the value of the one seed, or the mean of several.
        low: lower end: of the confidence interval, or the lowest seed; None for none.
        high: upper end likewise.
        seeds: how many rows are behind it.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int


# ---- transfer ----


def transfer_bars(
    rows: Iterable[Row], *, colors: Mapping[str, str] | None = None
) -> Figure:
    """Draw accuracy on each data set, one bar per source, one panel per mode.

    A whisker is the 95 % confidence interval of the row; where a bar is the mean of
    several seeds, it reaches from the lowest to the highest of them. Rows are one
    experiment when they differ in seed only.

    Args:
        rows: of the results table; `source`, `dataset`, `mode` and `value` are needed,
            `ci_low`, `ci_high`, `arch`, `source_eps` and the settings are used.
        colors: by source, from `source_colors`; chosen here when None.

    Raises:
        ValueError: no rows, or a row without one of the needed fields.
    """
    rows = list(rows)
    _check_rows(rows)
    names = source_labels(rows)
    groups = group_rows(rows, names)
    eps = {names[_source(row)]: row.get("source_eps") for row in rows}
    palette = completed(colors, eps, eps)
    modes = list(dict.fromkeys(mode for mode, _ in groups))
    with house_style():
        figure, panels = _panels(modes, [mode for mode, _ in groups], len(palette))
        for mode, ax in zip(modes, panels, strict=True):
            of_mode = {label: bars for (m, label), bars in groups.items() if m == mode}
            draw_groups(ax, of_mode, palette)
            ax.set_title(_MODE_NAMES.get(mode, mode))
        panels[0].set_ylabel("accuracy (%)")
        finish(figure, panels, palette, _whisker_note(groups.values()))
    return figure


def _check_rows(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("there are no results to draw; give at least one row")
    for number, row in enumerate(rows):
        missing = [k for k in ("source", "dataset", "mode", "value") if k not in row]
        if missing:
            raise ValueError(
                f"row {number} has no {', '.join(missing)}; it has "
                f"{', '.join(sorted(row))}. Give rows of the results table"
            )


def _source(row: Row) -> tuple[str, str]:
    return str(row["source"]), str(row.get("arch", ""))


def source_labels(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """Label by (source, arch): the source's name, with the arch where names repeat."""
    keys = list(dict.fromkeys(map(_source, rows)))
    names = [name for name, _ in keys]
    return {
        key: f"{key[0]} ({key[1]})" if names.count(key[0]) > 1 else key[0]
        for key in keys
    }


def group_rows(
    rows: Sequence[Row], names: Mapping[tuple[str, str], str]
) -> dict[tuple[str, str], dict[str, Bar]]:
    """Collect the bars of each (mode, group label) by source label.

    The label of a group is its data set, and below it every setting (training images,
    resolution, ...) in which groups of that data set and mode differ.
    """
    found: dict[tuple[str, str, tuple[str, ...]], dict[str, list[Row]]] = {}
    for row in rows:
        settings = tuple(str(row.get(key, "")) for key in _SETTINGS)
        group = (str(row["mode"]), str(row["dataset"]), settings)
        found.setdefault(group, {}).setdefault(names[_source(row)], []).append(row)
    groups = {}
    for mode, dataset, settings in found:
        peers = [s for m, d, s in found if (m, d) == (mode, dataset)]
        lines = [dataset]
        for position, key in enumerate(_SETTINGS):
            if len({peer[position] for peer in peers}) > 1:
                lines.append(f"{key} {settings[position]}".replace("_", " "))
        by_source = found[mode, dataset, settings]
        groups[mode, "\n".join(lines)] = {
            name: merge_seeds(of_source) for name, of_source in by_source.items()
        }
    return groups


def merge_seeds(rows: Sequence[Row]) -> Bar:
    """One bar of the rows of one experiment: see `Bar`."""
    values = [float(row["value"]) for row in rows]
    mean = math.fsum(values) / len(values)
    if len(values) > 1:
        return Bar(mean, min(values), max(values), len(values))
    low, high = rows[0].get("ci_low"), rows[0].get("ci_high")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return Bar(mean, None, None, 1)
    return Bar(mean, float(low), float(high), 1)


def _whisker_note(groups: Iterable[Mapping[str, Bar]]) -> str:
    bars = [bar for group in groups for bar in group.values()]
    interval = any(bar.seeds == 1 and bar.low is not None for bar in bars)
    spread = any(bar.seeds > 1 for bar in bars)
    if interval and spread:
        return (
            "whiskers: 95 % confidence interval of one seed, or lowest to highest of "
            "several, bar at their mean"
        )
    if spread:
        return "whiskers: lowest to highest seed, bar at the mean"
    return "whiskers: 95 % confidence interval" if interval else ""


# ---- accuracy under attack ----


def accuracy_under_attack(
    summary: Mapping[str, Mapping[str, Any]],
    *,
    attack: str = "PGD",
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw clean accuracy beside accuracy under attack, one bar per source.

    Args:
        summary: by source, `clean_acc` and `robust_acc` as fractions of 1. Whiskers are
            `clean_ci` and `robust_ci` (low, high), or Wilson's 95 % intervals where
            only `n`, the number of images, is there.
        attack: what the second group is called.
        colors: by source, from `source_colors`; chosen here when None.

    Raises:
        ValueError: nothing to draw, an accuracy missing or outside 0..1.
    """
    if not summary:
        raise ValueError("summary is empty; give the accuracies of at least one source")
    groups: dict[str, dict[str, Bar]] = {}
    for source, values in summary.items():
        for kind, label in (("clean", "clean images"), ("robust", attack)):
            share = values.get(f"{kind}_acc")
            if share is None or not 0 <= share <= 1:
                raise ValueError(
                    f"{kind}_acc of {source!r} is {share}; expected a fraction from 0 "
                    "to 1"
                )
            n = values.get("n")
            ends = values.get(f"{kind}_ci") or (wilson(share * n, n) if n else None)
            low, high = (100 * end for end in ends) if ends else (None, None)
            groups.setdefault(label, {})[source] = Bar(100 * share, low, high, 1)
    palette = completed(colors, summary)
    with house_style():
        figure = new_figure(min(9.0, max(4.2, 1.6 + 1.3 * len(palette))), 2.9)
        ax = figure.subplots()
        draw_groups(ax, groups, palette)
        ax.set_ylabel("accuracy (%)")
        finish(figure, [ax], palette, _whisker_note(groups.values()))
    return figure


# ---- parts ----


def _panels(
    modes: Sequence[str], groups: Sequence[str], sources: int
) -> tuple[Figure, list[Axes]]:
    """Panels side by side while all groups fit in one line, else one below another."""
    counts = [groups.count(mode) for mode in modes]
    if sum(counts) <= _SIDE_BY_SIDE:
        figure = new_figure(max(5.0, 1.2 + sum(counts) * (0.5 + 0.45 * sources)), 3.2)
        ratios = [count + 0.3 for count in counts]
        axes = figure.subplots(
            1, len(modes), sharey=True, squeeze=False, width_ratios=ratios
        )
        return figure, list(axes[0])
    width = min(11.0, max(7.0, 1.0 + max(counts) * (0.25 + 0.32 * sources)))
    figure = new_figure(width, 0.5 + 2.6 * len(modes))
    axes = figure.subplots(len(modes), 1, sharey=True, squeeze=False)
    return figure, [row[0] for row in axes]


def draw_groups(
    ax: Axes,
    groups: Mapping[str, Mapping[str, Bar]],
    palette: Mapping[str, str],
    *,
    room: int = _ROOM,
) -> None:
    """Draw one bar per (group, source); a missing one leaves its place empty.

    Args:
        ax: where to.
        groups: bars by source, by label of the group.
        palette: colours by source, in the order of the bars.
        room: up to so many bars, each has its value written above.
    """
    width = 0.8 / len(palette)
    bars_drawn = len(groups) * len(palette)
    for place, (source, color) in enumerate(palette.items()):
        offset = (place - (len(palette) - 1) / 2) * width
        for position, bars in enumerate(groups.values()):
            bar = bars.get(source)
            if bar is None:
                continue
            x = position + offset
            ax.bar(x, bar.value, 0.92 * width, color=color)
            top = bar.value
            if bar.low is not None and bar.high is not None:
                # Not errorbar's yerr: it refuses intervals that leave out the value.
                ax.vlines(x, bar.low, bar.high, color=INK, linewidth=1.1)
                top = max(top, bar.high)
            if bars_drawn <= room:
                label = f"{bar.value:.1f}"
                ax.annotate(
                    label,
                    (x, top),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7 if bars_drawn <= room // 2 else 6,
                    color=MUTED,
                )
    crowded = len(groups) > 8
    ax.set_xticks(
        range(len(groups)),
        list(groups),
        rotation=30 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor" if crowded else "default",
    )
    ax.set_xlim(-0.6, len(groups) - 0.4)


def finish(
    figure: Figure, panels: Sequence[Axes], palette: Mapping[str, str], note: str
) -> None:
    """Bars begin at zero and end below 100; legend above, note on whiskers below."""
    for ax in panels:
        horizontal_grid(ax)
        ax.set_ylim(0, 108)
        ax.set_yticks(range(0, 101, 20))
    handles = [Line2D([], [], color=c, lw=7, label=n) for n, c in palette.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)))
    if note:
        figure.supxlabel(note, color=MUTED, fontsize=8, x=0.01, ha="left")
