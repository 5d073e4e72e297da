"""Robust against standard sources: pairs of cells, tested over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastadv.reporting.transfer.cells import Cell, Place, with_most_images
from fastadv.reporting.transfer.condition import Condition
from fastadv.statistics import holm, mean_interval, paired_t


@dataclass(frozen=True, eq=False)
class Comparison(Place):
    """A robust source against the standard one of its architecture.

    It has the condition, architecture, threat and number of images of the robust cell.

    Attributes:
        robust: Cell of the robust source.
        standard: Cell of the standard source, under the same condition.
        by: What the best of several sources was chosen on, `val` or `test`; empty where
            there was only one of each.
        seeds: Seeds that both cells have; the differences are paired by them.
        difference: Mean of robust - standard over those seeds, points of percent.
        low: Lower end of the 95 % t-interval of the difference; equal to the difference
            where it was not tested.
        high: Upper end of that interval.
        p: p-value of the paired t-test over seeds; None for one seed, and for
            differences that agree exactly.
        adjusted: `p` after Holm's correction for all comparisons of a report.
    """

    robust: Cell
    standard: Cell
    by: str
    seeds: tuple[int, ...]
    difference: float
    low: float
    high: float
    p: float | None
    adjusted: float | None = None

    @property
    def label(self) -> str:
        """Label of the robust source, and of the standard one where it has a name."""
        beside = f" - {self.standard.label}" if self.standard.named else ""
        return self.robust.label + beside

    def interval(self) -> tuple[float, float, float]:
        """Return the difference and the ends of its interval, points of percent."""
        return self.difference, self.low, self.high

    def published(self, names: Mapping[str, str]) -> float | None:
        """Return the published difference, in points; see `Cell.published`."""
        robust, standard = self.robust.published(names), self.standard.published(names)
        return None if robust is None or standard is None else robust - standard

    def unlike_published(self, names: Mapping[str, str]) -> list[str]:
        """Return the differences of either cell from its published counterpart."""
        cells = (self.robust, self.standard)
        return list(
            dict.fromkeys(how for c in cells for how in c.unlike_published(names))
        )

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.adjusted is not None and self.adjusted < 0.05

    @property
    def untested(self) -> str:
        """Why there is no p-value; empty where there is one."""
        if self.p is not None:
            return ""
        why = "a single seed" if len(self.seeds) == 1 else "the seeds agree exactly"
        return f"not tested: {why}"


def compare(cells: Sequence[Cell]) -> list[Comparison]:
    """Pair the best robust and the best standard source per condition, arch and n.

    The best is chosen by validation accuracy; only where there is none, by the test
    accuracy itself, which flatters it.
    """
    found = []
    for group in _places(cells).values():
        standard = [c for c in group if c.standard]
        robust = [c for c in group if c.robust]
        if not standard or not robust:
            continue
        judged = all(c.validation is not None for c in (*robust, *standard))
        by = "val" if judged and group[0].condition.select_on == "val" else "test"
        if len(robust) == len(standard) == 1:
            by = ""
        best, usual = (
            max(each, key=lambda c: c.validation or 0.0 if judged else c.mean)
            for each in (robust, standard)
        )
        found += compare_pair(best, usual, by)
    return found


def _places(cells: Iterable[Cell]) -> dict[tuple[Condition, str, int], list[Cell]]:
    """Group cells that may be compared; networks from scratch have no source."""
    groups: dict[tuple[Condition, str, int], list[Cell]] = {}
    for cell in cells:
        if cell.condition.mode != "scratch":
            key = (cell.condition, cell.arch, cell.n)
            groups.setdefault(key, []).append(cell)
    return groups


def compare_pair(robust: Cell, standard: Cell, by: str = "") -> list[Comparison]:
    """Compare two cells, paired by seed; an empty list if they share none."""
    ours, theirs = robust.values, standard.values
    seeds = tuple(seed for seed in ours if seed in theirs)
    if not seeds:
        return []
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    place = (robust.condition, robust.arch, robust.threat, robust.n)
    tested = (*mean_interval(differences), paired_t(differences))
    return [Comparison(*place, robust, standard, by, seeds, *tested)]


def with_sides(cells: Sequence[Cell]) -> list[Cell]:
    """Return cells under conditions that were also run on images reduced in size first."""
    reduced = {native(c) for c in cells if c.condition.downscale}
    return with_most_images([c for c in cells if native(c) in reduced], native)


def native(item: Place) -> Condition:
    """Return the condition without the side that images were reduced to."""
    return replace(item.condition, downscale=0)


def image_pairs(cells: Sequence[Cell]) -> list[Comparison]:
    """Pair every robust source with every standard one, where images vary in number."""
    places = _places(cells)
    pairs = [
        pair
        for cell in cells
        if cell.robust
        for peer in places.get((cell.condition, cell.arch, cell.n), [])
        if peer.standard
        for pair in compare_pair(cell, peer)
    ]
    sizes = Counter(condition for condition, _ in {(p.condition, p.n) for p in pairs})
    return [pair for pair in pairs if sizes[pair.condition] > 1]


def study_comparisons(cells: Sequence[Cell]) -> dict[str, list[Comparison]]:
    """Make all comparisons that a report tests, by question, corrected together.

    Returns:
        `best`: the best robust source under each condition; `l2`, `linf`: the best one
        of that norm; `sides`: where images were also reduced in size; `images`: every
        pair where the number of images varies. A pair that answers several questions
        has one p-value everywhere.
    """
    most = with_most_images(cells)
    of_norm = {
        norm: [c for c in most if c.threat is None or c.threat[0] in (norm, None)]
        for norm in ("l2", "linf")
    }
    groups = (
        {"best": compare(most)}
        | {norm: compare(found) for norm, found in of_norm.items()}
        | {"sides": compare(with_sides(cells)), "images": image_pairs(cells)}
    )
    every = [each for group in groups.values() for each in group]
    raw = {(c.robust, c.standard): c.p for c in every if c.p is not None}
    # Holm's correction, for the number of distinct pairs in all groups.
    adjusted = dict(zip(raw, holm(list(raw.values())), strict=True))
    return {
        name: [replace(c, adjusted=adjusted.get((c.robust, c.standard))) for c in group]
        for name, group in groups.items()
    }
