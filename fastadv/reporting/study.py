"""What the sections of a study have in common: its cells, and how findings are worded.

A finding calls a difference significant only after a paired t-test over seeds, corrected
by Holm's method for all comparisons of its section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fastadv.reporting.cells import (
    Cell,
    Comparison,
    Setting,
    setting_labels,
    with_most_images,
)
from fastadv.reporting.html import Table
from fastadv.reporting.lines import Panel, Point
from fastadv.reporting.palette import source_colors
from fastadv.statistics import mean_interval

TEST_NOTE = (
    "Differences are tested by a paired t-test over seeds (same subset, validation split "
    "and order), corrected by Holm's method for all comparisons of this section; they "
    "speak of repeating the transfer, not of training the sources again."
)
INTERVAL_NOTE = (
    "Intervals are 95 %: t over seeds, or Wilson's of the test images where there is one "
    "seed."
)
_FEW = 6  # findings listed one by one


@dataclass(frozen=True)
class Study:
    """A results table, ready to be drawn.

    Attributes:
        cells: from `make_cells`.
        names: published name of a data set by ours, where they differ.
    """

    cells: Sequence[Cell]
    names: Mapping[str, str]

    def published(self, cell: Cell) -> float | None:
        """The published number of a cell."""
        return cell.published(self.names)

    @cached_property
    def labels(self) -> dict[Setting, str]:
        """Short names of the settings."""
        return setting_labels(cell.setting for cell in self.cells)

    @cached_property
    def most(self) -> list[Cell]:
        """The cells with the most training images of their setting."""
        return with_most_images(self.cells)

    def table(self, cells: Iterable[Cell]) -> Table:
        """One line per cell, with what was published for it."""
        columns = [
            "setting", "arch", "source", "n", "seeds", "accuracy", "published",
            "ours - published",
        ]  # fmt: skip
        rows = []
        for cell in dict.fromkeys(cells):
            theirs = self.published(cell)
            rows.append(
                [
                    self.labels[cell.setting],
                    cell.arch,
                    cell.label,
                    cell.n,
                    len(cell.rows),
                    format_value(cell),
                    None if theirs is None else f"{theirs:.2f}",
                    None if theirs is None else f"{cell.mean - theirs:+.2f}",
                ]
            )
        return make_table(columns, rows, "Percent.")


def wins_finding(found: Sequence[Comparison]) -> str:
    """In how many comparisons the robust source is ahead, and what of it is certain."""
    total, tested = len(found), [each for each in found if each.adjusted is not None]
    ahead = sum(each.difference > 0 for each in found)
    mean = mean_interval([each.difference for each in found])[0]
    text = (
        f"The robust source is ahead in {ahead} of {total} comparison(s), by "
        f"{mean:+.1f} points on average. "
    )
    if not tested:
        return text + "With one seed each, none of these differences can be tested."
    up = sum(each.significant and each.difference > 0 for each in tested)
    down = sum(each.significant and each.difference < 0 for each in tested)
    if not up + down:
        seeds = max(len(each.seeds) for each in tested)
        return text + (
            f"None of the differences is significant at this sample size ({seeds} seeds)."
        )
    return text + f"Significant: {up} in its favour, {down} against it."


def published_difference(study: Study, each: Comparison) -> float | None:
    """What was published for the robust less the standard source, points."""
    robust, standard = study.published(each.robust), study.published(each.standard)
    return None if robust is None or standard is None else robust - standard


def brief(summary: str, lines: Mapping[Comparison, str]) -> list[str]:
    """All lines where they are few; else the summary and the significant ones."""
    if len(lines) <= _FEW:
        return [summary, *lines.values()]
    certain = [line for each, line in lines.items() if each.significant]
    more = len(certain) - _FEW
    left_out = [f"{more} more significant one(s) are in the table."] if more > 0 else []
    return [summary, *certain[:_FEW], *left_out]


def verdict(each: Comparison) -> str:
    """How far apart the two are, and whether that is certain; reads on with `than`."""
    size = f"{abs(each.difference):.1f} points "
    size += "higher" if each.difference >= 0 else "lower"
    if each.adjusted is None:
        return f"{size}, from a single seed and so not tested,"
    if each.significant:
        return f"{size} (p = {format_p(each.adjusted)} after correction)"
    return (
        f"{size}, not significant at this sample size ({len(each.seeds)} seeds, p = "
        f"{format_p(each.adjusted)} after correction),"
    )


def make_panels(
    study: Study,
    cells: Sequence[Cell],
    name: Callable[[Cell], str],
    place: Callable[[Cell], float],
    least: int,
) -> list[Panel]:
    """One panel per setting that has a line of `least` points."""
    panels = []
    for setting in dict.fromkeys(cell.setting for cell in cells):
        series: dict[str, dict[float, Point]] = {}
        published: dict[str, dict[float, float]] = {}
        for cell in cells:
            if cell.setting != setting:
                continue
            line, x = name(cell), place(cell)
            series.setdefault(line, {})[x] = Point(*cell.interval())
            theirs = study.published(cell)
            if theirs is not None:
                published.setdefault(line, {})[x] = theirs
        if any(len(points) >= least for points in series.values()):
            panels.append(Panel(study.labels[setting], series, published))
    return panels


def line_name(cells: Iterable[Cell]) -> Callable[[Cell], str]:
    """Names lines by threat, and by architecture where there are several."""
    several = len({cell.arch for cell in cells}) > 1
    return lambda cell: f"{cell.arch}, {cell.label}" if several else cell.label


def line_colors(cells: Sequence[Cell]) -> dict[str, str]:
    """Colours by name of the line, as `line_name` says it."""
    name = line_name(cells)
    eps = {name(c): radius(c) for c in cells}
    return source_colors(eps, eps)


def label_colors(cells: Sequence[Cell]) -> dict[str, str]:
    """Colours by threat."""
    eps = {c.label: radius(c) for c in cells}
    return source_colors(eps, eps)


def arch_colors(cells: Sequence[Cell]) -> dict[str, str]:
    """Colours by architecture."""
    archs = list(dict.fromkeys(cell.arch for cell in cells))
    # Not by the threat: every line has all of them.
    shades = source_colors(
        [f"standard {i}" if i % 2 == 0 else str(i) for i in range(len(archs))]
    )
    return dict(zip(archs, shades.values(), strict=True))


def make_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str
) -> Table:
    """A table without the columns that are empty in every row."""
    kept = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    return Table(
        [columns[i] for i in kept], [[row[i] for i in kept] for row in rows], caption
    )


def format_value(cell: Cell) -> str:
    """Mean and interval of a cell."""
    mean, low, high = cell.interval()
    return f"{mean:.2f} [{low:.1f}, {high:.1f}]"


def radius(cell: Cell) -> float:
    """Radius of the pretraining, 0 where it is unknown."""
    return cell.threat[1] if cell.threat else 0.0


def format_p(p: float | None) -> str | None:
    """A p-value with two digits."""
    if p is None:
        return None
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"
