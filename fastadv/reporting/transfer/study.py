"""What the sections of a study have in common: its cells, its tests, its panels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastadv.reporting.figures.lines import Panel, Point
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.page.html import Table
from fastadv.reporting.transfer.cells import Cell, with_most_images
from fastadv.reporting.transfer.comparisons import Comparison, study_comparisons
from fastadv.reporting.transfer.settings import Setting, setting_labels

INTERVAL_NOTE = (
    "Intervals of accuracies are 95 % and cover both other seeds (t) and another draw of "
    "test images (Wilson's, for top-1; all seeds have the same images), their half-widths "
    "added as squares. They do not cover training the source again."
)
FEW = 6  # findings, or names, listed one by one


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

    @cached_property
    def comparisons(self) -> dict[str, list[Comparison]]:
        """What the sections test, by question; see `study_comparisons`."""
        return study_comparisons(self.cells)

    @property
    def test_note(self) -> str:
        """How differences are tested, and what that covers."""
        tested = {
            (each.robust, each.standard)
            for found in self.comparisons.values()
            for each in found
            if each.p is not None
        }
        return (
            "Differences are tested by a paired t-test over seeds (same subset, validation "
            "split, order and test images); their intervals are 95 %, not corrected, their "
            f"p-values corrected by Holm's method for all {len(tested)} tests of this "
            "report. Both speak of repeating the transfer on these test images: neither "
            "of other test images, nor of training the sources again."
        )

    def left_out(
        self,
        cells: Iterable[Cell],
        shown: Collection[Cell],
        why: str,
        needs_eps: bool = True,
    ) -> list[str]:
        """What a section does not show, in at most one paragraph.

        Args:
            cells: what it could be expected to show.
            shown: what it does.
            why: the reason, in words.
            needs_eps: whether cells of unknown eps are left out for that alone.
        """
        places = {(c.setting, c.arch) for c in shown}
        several = len({c.arch for c in self.cells if c.threat is not None}) > 1
        unknown: dict[str, None] = {}
        others: dict[str, None] = {}
        for c in cells:
            if needs_eps and c.threat is None:
                unknown[c.source] = None
            elif (c.setting, c.arch) not in places:
                arch = f", {c.arch}" if several else ""
                others[self.labels[c.setting] + arch] = None
        reasons = (("eps unknown", unknown), (why, others))
        found = [f"Left out ({r}): {_listed(list(n))}." for r, n in reasons if n]
        return [" ".join(found)] if found else []

    @property
    def most_note(self) -> list[str]:
        """That `most` are not all `cells`, where that is so."""
        if len(self.most) == len(self.cells):
            return []
        return ["Of every setting only the most training images are shown here."]

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


def _listed(names: Sequence[str]) -> str:
    """All names where they are few; else the first, and how many more."""
    more = len(names) - FEW
    return "; ".join(names[:FEW]) + (f" and {more} more" if more > 0 else "")


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
    """Names lines by threat, and by architecture where there are several.

    Not those of sources that go by their own name.
    """
    several = len({cell.arch for cell in cells if cell.threat is not None}) > 1
    return lambda cell: (
        f"{cell.arch}, {cell.label}" if several and cell.threat else cell.label
    )


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
    """Colours by `name` of the line; see `source_colors`."""
    eps = {name(c): radius(c) for c in cells}
    return source_colors(eps, eps, {name(c) for c in cells if c.threat is None})


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
