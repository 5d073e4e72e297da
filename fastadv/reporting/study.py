"""What the sections of a study have in common: its cells, and how findings are worded.

A finding calls a difference significant only after a paired t-test over seeds, corrected
by Holm's method for all comparisons of its section.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastadv.reporting.cells import (
    Cell,
    Setting,
    setting_labels,
    with_most_images,
)
from fastadv.reporting.comparisons import Comparison
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
    "Intervals are 95 %: t over seeds, or of the draw of test images (Wilson's, for top-1) "
    "where there is one seed or all seeds agree exactly."
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

    def title(self, cell: Cell) -> str:
        """Setting and number of images of a cell, as the title of a panel."""
        return f"{self.labels[cell.setting]}, n = {cell.n}"

    def differs(self, cell: Cell) -> str | None:
        """In what a cell differs from its published counterpart; None for nothing."""
        return ", ".join(cell.unlike_published(self.names)) or None

    def table(self, cells: Iterable[Cell]) -> Table:
        """One line per cell, with what was published for it."""
        columns = [
            "setting", "arch", "source", "n", "seeds", "accuracy", "published",
            "ours - published", "not as published",
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
                    self.differs(cell),
                ]
            )
        return make_table(columns, rows, "Percent.")

    def pivot(
        self,
        cells: Iterable[Cell],
        line: Mapping[str, Callable[[Cell], object]],
        column: Callable[[Cell], str],
        order: Callable[[Cell], Any],
    ) -> Table:
        """Means of cells by what a figure has on its axis.

        Args:
            cells: in order of the lines.
            line: what one line of the table has in common, by title; the setting too.
            column: title of the column of a cell.
            order: of the columns.
        """
        found: dict[tuple[object, ...], dict[str, str]] = {}
        places = {}
        for cell in cells:
            key = (self.labels[cell.setting], *(each(cell) for each in line.values()))
            places[column(cell)] = order(cell)
            found.setdefault(key, {})[column(cell)] = f"{cell.mean:.2f}"
        columns = sorted(places, key=lambda title: places[title])
        rows = [[*key, *(of.get(c) for c in columns)] for key, of in found.items()]
        caption = (
            "Means over seeds, percent; intervals are in the table of all numbers."
        )
        return make_table(["setting", *line, *columns], rows, caption)


def family_title(
    cells: Iterable[Cell], family: Callable[[Cell], Setting]
) -> Callable[[Cell], str]:
    """Names panels of settings that are alike but for what is on the x axis.

    Args:
        cells: with the settings to name.
        family: the setting of a cell without what is on the x axis.
    """
    labels = setting_labels(map(family, cells))
    return lambda cell: f"{labels[family(cell)]}, n = {cell.n}"


def wins_finding(found: Sequence[Comparison]) -> str:
    """In how many comparisons the robust source is ahead, and what of it is certain."""
    total, tested = len(found), [each for each in found if each.adjusted is not None]
    mean = lead(mean_interval([each.difference for each in found])[0])
    if total == 1:
        text = f"The robust source is {mean} in the one comparison there is. "
    else:
        ahead = sum(each.difference > 0 for each in found)
        behind = sum(each.difference < 0 for each in found)
        text = (
            f"The robust source is ahead in {ahead} of {total} comparisons and behind in "
            f"{behind}; on average it is {mean}. "
        )
    untested = {each.untested for each in found} - {""}
    if not tested:
        return text + f"This is {' or '.join(sorted(untested))}."
    up = sum(each.significant and each.difference > 0 for each in tested)
    down = sum(each.significant and each.difference < 0 for each in tested)
    if up + down:
        text += f"Significant: {up} in its favour, {down} against it."
    else:
        most = max(len(each.seeds) for each in tested)
        of = "The difference is not" if total == 1 else "None of the differences is"
        text += f"{of} significant at this sample size ({most} seeds)."
    if untested:
        count = total - len(tested)
        text += f" {count} of {total}: {' or '.join(sorted(untested))}."
    return text


def lead(points: float) -> str:
    """A difference in words."""
    size = f"{abs(points):.1f}"
    if float(size) == 0:
        return "level (less than 0.05 points apart)"
    return f"{size} points {'ahead' if points > 0 else 'behind'}"


def rise_finding(panels: Iterable[Panel], span: str) -> list[str]:
    """In how many lines accuracy rises from one end to the other, and by what.

    Args:
        panels: drawn.
        span: the ends in words, as `the smallest to the largest network`.
    """
    rises = [
        points[max(points)].y - points[min(points)].y
        for panel in panels
        for points in panel.series.values()
        if len(points) > 1
    ]
    if not rises:
        return []
    mean, lines = sum(rises) / len(rises), "line" if len(rises) == 1 else "lines"
    return [
        f"From {span}, accuracy rises in {sum(r > 0 for r in rises)} and falls in "
        f"{sum(r < 0 for r in rises)} of {len(rises)} {lines}, by {mean:+.1f} points on "
        "average. This is not tested."
    ]


def pair_label(each: Comparison) -> str:
    """Of a comparison the robust source, and the standard one where there are several."""
    beside = f" - {each.standard.label}" if each.standard.named else ""
    return each.robust.label + beside


def comparison_cells(study: Study, each: Comparison) -> dict[str, object]:
    """What a table says of a comparison: difference, test, published counterpart."""
    theirs = published_difference(study, each)
    interval = f" [{each.low:+.1f}, {each.high:+.1f}]" if each.p is not None else ""
    remarks = [each.untested] if each.untested else []
    if theirs is not None and study.differs(each.robust):
        remarks.append(f"not as published: {study.differs(each.robust)}")
    return {
        "seeds": len(each.seeds),
        "difference": f"{each.difference:+.2f}{interval}",
        "p": format_p(each.p),
        "p (Holm)": format_p(each.adjusted),
        "published": None if theirs is None else f"{theirs:+.2f}",
        "ours - published": None
        if theirs is None
        else f"{each.difference - theirs:+.2f}",
        "remarks": "; ".join(remarks) or None,
    }


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
        return f"{size} ({each.untested})"
    p = format_p(each.adjusted) or ""
    after = f"p {p if p.startswith('<') else f'= {p}'} after correction"
    if each.significant:
        return f"{size} ({after})"
    return f"{size} (not significant with {len(each.seeds)} seeds, {after})"


def make_panels(
    study: Study,
    cells: Sequence[Cell],
    title: Callable[[Cell], str],
    name: Callable[[Cell], str],
    place: Callable[[Cell], float],
    least: int,
) -> list[Panel]:
    """One panel per title that has points at `least` places.

    Args:
        study: knows the published numbers.
        cells: what is drawn.
        title: of the panel a cell is in.
        name: of the line it is on.
        place: of it on the x axis.
        least: places.
    """
    panels = []
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(title(cell), []).append(cell)
    for heading, group in groups.items():
        series: dict[str, dict[float, Point]] = {}
        published: dict[str, dict[float, float]] = {}
        for cell in group:
            line, x = name(cell), place(cell)
            series.setdefault(line, {})[x] = Point(*cell.interval())
            theirs = study.published(cell)
            if theirs is not None:
                published.setdefault(line, {})[x] = theirs
        if len({x for points in series.values() for x in points}) >= least:
            panels.append(Panel(heading, series, published))
    return panels


def line_name(cells: Iterable[Cell]) -> Callable[[Cell], str]:
    """Names lines by threat, and by architecture where there are several."""
    several = len({cell.arch for cell in cells}) > 1
    return lambda cell: f"{cell.arch}, {cell.label}" if several else cell.label


def name_within(
    cells: Iterable[Cell], name: Callable[[Cell], str]
) -> Callable[[Cell], str]:
    """`name`, and the source where another one would be at its place of the line."""
    places = Counter((c.setting, c.n, c.arch, c.threat) for c in cells)
    crowded = {place[2:] for place, count in places.items() if count > 1}
    return lambda c: (
        f"{name(c)} ({c.source})" if (c.arch, c.threat) in crowded else name(c)
    )


def line_colors(cells: Iterable[Cell], name: Callable[[Cell], str]) -> dict[str, str]:
    """Colours by `name` of the line: blue for standard sources, warm for robust ones."""
    eps = {name(c): radius(c) for c in cells}
    return source_colors(eps, eps)


def arch_colors(names: Iterable[str]) -> dict[str, str]:
    """Colours of lines that are architectures."""
    archs = list(dict.fromkeys(names))
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
    return format_interval(*cell.interval())


def format_interval(mean: float, low: float, high: float) -> str:
    """Mean and interval."""
    return f"{mean:.2f} [{low:.1f}, {high:.1f}]"


def radius(cell: Cell) -> float:
    """Radius of the pretraining, 0 where it is unknown."""
    return cell.threat[1] if cell.threat else 0.0


def format_p(p: float | None) -> str | None:
    """A p-value with two digits."""
    if p is None:
        return None
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
