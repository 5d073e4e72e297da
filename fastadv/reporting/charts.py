"""Charts of numbers: transfer, training curves, accuracy under attack. Needs no torch.

Accuracies in results rows are percent, those in run logs and summaries are fractions
of 1; every axis shows percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastadv.reporting.palette import (
    INK,
    MUTED,
    horizontal_grid,
    house_style,
    new_figure,
    source_colors,
)

Row = Mapping[str, Any]

_MODE_NAMES = {"fixed_feature": "fixed features", "full_network": "full network"}
# Rows that differ in one of these are different experiments, never averaged together.
_SETTINGS = ("metric", "protocol", "resolution", "num_train")
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
    palette = _palette(eps, colors, eps)
    modes = list(dict.fromkeys(mode for mode, _ in groups))
    with house_style():
        figure, panels = _panels(modes, [mode for mode, _ in groups], len(palette))
        for mode, ax in zip(modes, panels, strict=True):
            of_mode = {label: bars for (m, label), bars in groups.items() if m == mode}
            _draw_groups(ax, of_mode, palette)
            ax.set_title(_MODE_NAMES.get(mode, mode))
        panels[0].set_ylabel("accuracy (%)")
        _finish(figure, panels, palette, _whisker_note(groups.values()))
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
        key = (str(row["mode"]), str(row["dataset"]), settings)
        found.setdefault(key, {}).setdefault(names[_source(row)], []).append(row)
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
    notes = []
    if any(bar.seeds == 1 and bar.low is not None for bar in bars):
        notes.append("95 % confidence interval")
    if any(bar.seeds > 1 for bar in bars):
        notes.append("lowest to highest seed, bar at the mean")
    return f"whiskers: {'; '.join(notes)}" if notes else ""


# ---- accuracy under attack ----


def accuracy_under_attack(
    summary: Mapping[str, Mapping[str, float]],
    *,
    attack: str = "PGD",
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw clean accuracy beside accuracy under attack, one bar per source.

    Args:
        summary: by source, `clean_acc` and `robust_acc` as fractions of 1, and `n`, the
            number of images, from which whiskers are drawn (Wilson, 95 %).
        attack: what the second group is called.
        colors: by source, from `source_colors`; chosen here when None.

    Raises:
        ValueError: nothing to draw, an accuracy missing or outside 0..1.
    """
    if not summary:
        raise ValueError("summary is empty; give the accuracies of at least one source")
    groups: dict[str, dict[str, Bar]] = {}
    for source, values in summary.items():
        for key, label in (("clean_acc", "clean images"), ("robust_acc", attack)):
            if not 0 <= values.get(key, math.nan) <= 1:
                raise ValueError(
                    f"{key} of {source!r} is {values.get(key)}; expected a fraction "
                    "from 0 to 1"
                )
            bar = fraction_bar(values[key], values.get("n"))
            groups.setdefault(label, {})[source] = bar
    palette = _palette(summary, colors, None)
    with house_style():
        figure = new_figure(max(4.2, 1.6 + 1.3 * len(palette)), 2.9)
        ax = figure.subplots()
        _draw_groups(ax, groups, palette)
        ax.set_ylabel("accuracy (%)")
        _finish(figure, [ax], palette, _whisker_note(groups.values()))
    return figure


def fraction_bar(fraction: float, n: float | None) -> Bar:
    """A bar of a fraction counted on `n` images, with Wilson's 95 % interval."""
    if not n:
        return Bar(100 * fraction, None, None, 1)
    z = 1.959964
    center = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    spread = fraction * (1 - fraction) / n + z * z / (4 * n * n)
    half = z / (1 + z * z / n) * math.sqrt(spread)
    return Bar(100 * fraction, 100 * (center - half), 100 * (center + half), 1)


# ---- training ----


def training_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw training loss, and clean and robust validation accuracy, against epochs.

    Args:
        runs: events of `log.jsonl` by the name of the run. `train` events give `loss`,
            `val` events `clean_acc` and `robust_acc` as fractions of 1.
        colors: by run, from `source_colors`; chosen here when None.

    Raises:
        ValueError: no run has a `train` or `val` event.
    """
    if not any(e.get("event") in ("train", "val") for log in runs.values() for e in log):
        raise ValueError(
            "no run has a train or val event to draw; give the parsed lines of log.jsonl"
        )
    palette = _palette(runs, colors, None)
    with house_style():
        figure = new_figure(8.4, 3.1)
        loss, accuracy = figure.subplots(1, 2)
        for name, events in runs.items():
            epochs = _epochs(events)
            _curve(loss, events, epochs, ("train", "loss"), palette[name], "-", 1)
            for key, style in (("clean_acc", "-"), ("robust_acc", "--")):
                _curve(accuracy, events, epochs, ("val", key), palette[name], style, 100)
        loss.set_title("training loss (on adversarial images for robust runs)")
        accuracy.set_title("validation accuracy (%)")
        accuracy.set_ylim(0, 100)
        for ax in (loss, accuracy):
            horizontal_grid(ax)
            ax.set_xlabel("epoch")
            ax.set_xlim(left=0)
        loss.set_ylim(bottom=0)
        handles = [Line2D([], [], color=palette[name], label=name) for name in runs]
        styles = (("clean", "-"), ("under attack", "--"))
        handles += [
            Line2D([], [], color=MUTED, linestyle=style, label=label)
            for label, style in styles
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure


def _epochs(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Epochs done at each event: by its step where steps are logged, else its epoch."""
    train = [e["epoch"] for e in events if e.get("event") == "train" and "epoch" in e]
    last_step = max((e.get("step") or 0 for e in events), default=0)
    if not train or not last_step:
        return [float(e.get("epoch", 0)) for e in events]
    count = max(train) + (1 if min(train) == 0 else 0)  # counted from 0, or from 1
    return [(e.get("step") or 0) * count / last_step for e in events]


def _curve(
    ax: Axes,
    events: Sequence[Mapping[str, Any]],
    epochs: Sequence[float],
    what: tuple[str, str],
    color: str,
    style: str,
    factor: float,
) -> None:
    event, key = what
    points = [
        (x, factor * e[key])
        for x, e in zip(epochs, events, strict=True)
        if e.get("event") == event and e.get(key) is not None
    ]
    if points:
        marker = "o" if len(points) <= 12 else ""
        x, y = zip(*points, strict=True)
        ax.plot(x, y, style, color=color, marker=marker, markersize=3, linewidth=1.5)


# ---- parts ----


def _palette(
    names: Iterable[str],
    colors: Mapping[str, str] | None,
    eps: Mapping[str, float | None] | None,
) -> dict[str, str]:
    names = list(names)
    own = source_colors(names, eps)
    return {name: (colors or {}).get(name, own[name]) for name in names}


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


def _draw_groups(
    ax: Axes, groups: Mapping[str, Mapping[str, Bar]], palette: Mapping[str, str]
) -> None:
    """Draw one bar per (group, source); a missing one leaves its place empty."""
    width = 0.8 / len(palette)
    written = len(groups) * len(palette) <= _ROOM
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
            if written:
                label = f"{bar.value:.1f}"
                ax.annotate(
                    label,
                    (x, top),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
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


def _finish(
    figure: Figure, panels: Sequence[Axes], palette: Mapping[str, str], note: str
) -> None:
    """Bars begin at zero and end below 100; legend above, note on whiskers below."""
    for ax in panels:
        horizontal_grid(ax)
        ax.set_ylim(0, 108)
        ax.set_yticks(range(0, 101, 20))
    handles = [Line2D([], [], color=c, linewidth=7, label=n) for n, c in palette.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)))
    if note:
        figure.supxlabel(note, color=MUTED, fontsize=8, x=0.01, ha="left")
