"""A study: the cells of a results table, their tests, and the tables made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from fastadv.errors import first_few
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.page.html import Table
from fastadv.reporting.transfer.cells import Cell, with_most_images
from fastadv.reporting.transfer.comparisons import Comparisons, study_comparisons
from fastadv.reporting.transfer.condition import Condition, condition_labels
from fastadv.reporting.transfer.pairing import Pairing
from fastadv.reporting.transfer.pairs import Comparison
from fastadv.results.row import Row
from fastadv.statistics.crossed import LEAST_RUNS, LEAST_SEEDS

FEW = 6  # findings, or names, listed one by one
Item = Cell | Comparison
T = TypeVar("T", Cell, Comparison)


@dataclass(frozen=True)
class Study:
    """A results table, ready to be drawn.

    Attributes:
        cells: Cells from `make_cells`.
        names: Published name of a data set by ours, where they differ.
        pairing: Estimates differences; None knows no verdicts on test images.
        evaluations: Rows of kind "evaluation": what sources reach on their own data.
    """

    cells: Sequence[Cell]
    names: Mapping[str, str]
    pairing: Pairing | None = None
    evaluations: Sequence[Row] = ()

    @cached_property
    def labels(self) -> dict[Condition, str]:
        """Short names of the conditions."""
        return condition_labels(cell.condition for cell in self.cells)

    @cached_property
    def most(self) -> list[Cell]:
        """The cells with the most training images of their condition."""
        return with_most_images(self.cells)

    @cached_property
    def tests(self) -> Comparisons:
        """All comparisons, corrected; see `study_comparisons`."""
        return study_comparisons(self.cells, self.pairing)

    @property
    def interval_note(self) -> str:
        """How intervals of accuracies are made."""
        few = " With fewer than three seeds the interval is that of the test images alone."
        return (
            "Intervals of accuracies are 95 %. They combine two sources of error, other "
            "seeds (t-interval) and other test images (Wilson's interval, for top-1 "
            "accuracy), by the root of the sum of their squares. Training the source "
            "again is covered only where several source runs were averaged."
        ) + few * any(len(cell.rows) < LEAST_SEEDS for cell in self.cells)

    @property
    def test_note(self) -> str:
        """How differences are tested, and what that covers."""
        tests = self.tests
        every = [each for found in tests.groups.values() for each in found]
        runs = any(len(r.cells) > 1 for each in every for r in each.key)
        about = (
            "Sources of one architecture, kind and radius count as runs of one training."
            if runs
            else "With one source run per radius, claims are about those very networks, "
            "not about other networks that are trained in the same way."
        )
        return (
            "Differences are paired by seed (same subset, order and test images) and "
            "tested over all that was drawn several times, as crossed random factors: "
            f"seeds (at least {LEAST_SEEDS}), source runs (at least {LEAST_RUNS} per "
            "radius), and test images where the verdicts on them were kept; the tables "
            f"say which. {about} Primary is one test per target, of the best robust "
            f"radius against standard training; Holm's correction counts {tests.counted} "
            f"p-value(s). All other differences are exploratory, and corrected for "
            f"{tests.exploratory} p-value(s) of their own. Where the best of several "
            "radii is tested, each of them counts. Intervals are 95 % and not corrected."
        )

    @property
    def more_tests(self) -> str:
        """What is said of tests after the section that describes them."""
        return (
            'The tests are those described under "Robust against standard". Here they are '
            "exploratory, but for pairs that are primary, too: Holm's correction counts "
            f"{self.tests.exploratory} p-value(s) of this report."
        )

    @property
    def most_note(self) -> list[str]:
        """A sentence where `most` are not all `cells`, else nothing."""
        if len(self.most) == len(self.cells):
            return []
        return ["Of every setting only the most training images are shown here."]

    def left_out(
        self,
        cells: Iterable[Cell],
        drawn: Collection[Item],
        why: str,
        needs_eps: bool = True,
    ) -> list[str]:
        """Name those of `cells` that a section does not show, in at most one paragraph.

        Args:
            cells: Cells that the section could be expected to show.
            drawn: Cells or comparisons that it shows.
            why: The reason, as a short phrase.
            needs_eps: Whether cells of unknown eps are left out for that alone.
        """
        places = {(item.condition, item.arch) for item in drawn}
        several = len({c.arch for c in self.cells if c.threat is not None}) > 1
        reasons: dict[str, dict[str, None]] = {"eps unknown": {}, why: {}}
        for c in cells:
            if needs_eps and c.threat is None and c.condition.mode != "scratch":
                reasons["eps unknown"][c.source] = None
            elif (c.condition, c.arch) not in places:
                arch = f", {c.arch}" if several else ""
                reasons[why][self.labels[c.condition] + arch] = None
        found = []
        for reason, names in reasons.items():
            if names:
                few = first_few([*names], FEW, "; ")
                found.append(f"Left out ({reason}): {few}.")
        return [" ".join(found)] if found else []

    def place(self, item: Item) -> dict[str, object]:
        """Return the columns of a table that identify a cell or comparison."""
        return {
            "setting": self.labels[item.condition],
            "arch": item.arch,
            "source": item.label,
            "n": item.n,
        }

    def title(self, item: Item) -> str:
        """Return condition and number of images of an item, as the title of a panel."""
        return f"{self.labels[item.condition]}, n = {item.n}"

    def table(self, cells: Iterable[Cell]) -> Table:
        """Make a table of one line per cell, with what was published for it."""
        lines = [
            self.place(cell)
            | {"seeds": len(cell.rows), "accuracy": format_interval(*cell.interval())}
            | published_columns(cell.mean, cell.published(self.names))
            | {
                "published is": (r := cell.published_record(self.names)) and r.selected,
                "rerun by others": _decimals(cell.rerun(self.names)),
                "not as published": ", ".join(cell.unlike_published(self.names))
                or None,
            }
            for cell in dict.fromkeys(cells)
        ]
        return make_table(lines, "Percent.")

    def pivot(
        self,
        cells: Iterable[Cell],
        line: Mapping[str, Callable[[Cell], object]],
        column: Callable[[Cell], str],
        order: Callable[[Cell], Any],
    ) -> Table:
        """Make a table of the means of cells, by what a figure has on its x axis.

        Args:
            cells: Cells in the order of the lines.
            line: What the cells of a line have in common, by title of its column; the
                condition is added.
            column: Title of the column that a cell is in.
            order: Sort key of the columns.
        """
        found: dict[tuple[object, ...], dict[str, object]] = {}
        places = {}
        for cell in cells:
            first: dict[str, object] = {"setting": self.labels[cell.condition]}
            first |= {title: each(cell) for title, each in line.items()}
            places[column(cell)] = order(cell)
            of_line = found.setdefault(tuple(first.values()), first)
            of_line[column(cell)] = f"{cell.mean:.2f}"
        columns = ["setting", *line, *sorted(places, key=lambda title: places[title])]
        return make_table(
            [{c: of_line.get(c) for c in columns} for of_line in found.values()],
            "Means over seeds, percent; intervals are in the table of all numbers.",
        )


def make_table(lines: Sequence[Mapping[str, object]], caption: str) -> Table:
    """Make a table of lines by column title, without columns that are None in all."""
    columns = list(lines[0]) if lines else []
    kept = [c for c in columns if any(line[c] is not None for line in lines)]
    return Table(kept, [[line[c] for c in kept] for line in lines], caption)


# ---- names and colours of lines ----


def family_title(
    cells: Iterable[Cell], family: Callable[[Item], Condition]
) -> Callable[[Item], str]:
    """Return a function that names the panel of an item by its family.

    `family` returns the condition of an item without what is on the x axis.
    """
    labels = condition_labels(map(family, cells))
    return lambda item: f"{labels[family(item)]}, n = {item.n}"


def line_name(cells: Iterable[Cell]) -> Callable[[Cell], str]:
    """Return a function that names lines by threat, and by architecture if there are several.

    Sources that go by their own name are not given the architecture.
    """
    several = len({cell.arch for cell in cells if cell.threat is not None}) > 1
    return lambda cell: (
        f"{cell.arch}, {cell.label}" if several and cell.threat else cell.label
    )


def name_within(
    cells: Iterable[Cell], name: Callable[[Cell], str]
) -> Callable[[Cell], str]:
    """Return `name`, with the source where another one would be at the same place."""
    places = Counter((c.condition, c.n, c.arch, c.threat, c.kind) for c in cells)
    crowded = {place[2:] for place, count in places.items() if count > 1}
    return lambda c: (
        f"{name(c)} ({c.source})" if (c.arch, c.threat, c.kind) in crowded else name(c)
    )


def line_colors(items: Iterable[T], name: Callable[[T], str]) -> dict[str, str]:
    """Choose colours by the name of the line; see `source_colors`."""
    items = list(items)
    eps = {name(item): item.radius for item in items}
    grey = {
        name(item)
        for item in items
        if item.threat is None or (isinstance(item, Cell) and not item.plain)
    }
    return source_colors(eps, eps, grey)


def arch_colors(items: Iterable[T], name: Callable[[T], str]) -> dict[str, str]:
    """Choose colours by the name of the line where every line has all threats."""
    names = list(dict.fromkeys(map(name, items)))
    # Blue and warm colours in turn.
    shades = source_colors(
        f"standard {i}" if i % 2 == 0 else f"{i}" for i in range(len(names))
    )
    return dict(zip(names, shades.values(), strict=True))


def published_columns(
    ours: float, theirs: float | None, sign: str = ""
) -> dict[str, object]:
    """Return the columns on a published number; with `sign` "+" it has its sign, too."""
    if theirs is None:
        return dict.fromkeys(("published", "ours - published"))
    return {
        "published": f"{theirs:{sign}.2f}",
        "ours - published": f"{ours - theirs:+.2f}",
    }


def _decimals(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def format_interval(mean: float, low: float, high: float) -> str:
    """Write a mean with two decimals, and its interval with one."""
    return f"{mean:.2f} [{low:.1f}, {high:.1f}]"


def format_p(p: float | None) -> str | None:
    """Write a p-value with two digits."""
    if p is None:
        return None
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
