"""Robust against standard sources: pairs of cells, tested over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fastadv.reporting.transfer.cells import Cell, with_most_images
from fastadv.reporting.transfer.settings import Setting
from fastadv.statistics import holm, mean_interval, paired_t


@dataclass(frozen=True, eq=False)
class Comparison:
    """A robust source against the standard one of its architecture.

    Attributes:
        robust, standard: what is compared.
        by: what chose the robust one: `val`, `test`, or `` where there was one only.
        seeds: those both have; the differences are paired by them.
        difference: mean of robust - standard, points.
        low, high: its 95 % t-interval; equal to it where nothing was tested.
        p: of the paired t-test over seeds; None for one seed, and for differences
            that agree exactly.
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
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.adjusted is not None and self.adjusted < 0.05

    @property
    def untested(self) -> str:
        """Why there is no p-value; empty where there is one."""
        if self.p is not None:
            return ""
        if len(self.seeds) == 1:
            return "not tested: a single seed"
        return "not tested: the seeds agree exactly"


def compare(cells: Sequence[Cell]) -> list[Comparison]:
    """The best robust source against the best standard one, per setting, arch and n.

    The best is chosen by validation accuracy; only where there is none, by the test
    accuracy itself, which flatters it.
    """
    groups: dict[tuple[Setting, str, int], list[Cell]] = {}
    for cell in cells:
        if cell.setting.mode == "scratch":  # has nothing of its source
            continue
        groups.setdefault((cell.setting, cell.arch, cell.n), []).append(cell)
    found = []
    for group in groups.values():
        standard = [c for c in group if c.threat is not None and not c.robust]
        robust = [c for c in group if c.robust]
        if not standard or not robust:
            continue
        judged = all(c.validation is not None for c in (*robust, *standard))
        merit = partial(_merit, judged=judged)
        on_val = judged and group[0].setting.select_on == "val"
        by = "val" if on_val else "test"
        if len(robust) == len(standard) == 1:
            by = ""
        pair = compare_pair(max(robust, key=merit), max(standard, key=merit), by)
        if pair is not None:
            found.append(pair)
    return found


def _merit(cell: Cell, judged: bool) -> float:
    return (cell.validation if judged else cell.mean) or 0.0


def compare_pair(robust: Cell, standard: Cell, by: str = "") -> Comparison | None:
    """Two cells, paired by seed; None if they share none."""
    ours, theirs = robust.values, standard.values
    seeds = tuple(seed for seed in ours if seed in theirs)
    if not seeds:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean, low, high = mean_interval(differences)
    p = paired_t(differences)
    return Comparison(robust, standard, by, seeds, mean, low, high, p)


def with_sides(cells: Sequence[Cell]) -> list[Cell]:
    """Those of settings that were also run on images reduced to fewer pixels first."""
    reduced = {native(c) for c in cells if c.setting.downscale}
    return with_most_images([c for c in cells if native(c) in reduced], native)


def native(cell: Cell) -> Setting:
    """The setting of a cell without the side its images were reduced to."""
    return replace(cell.setting, downscale=0)


def image_pairs(cells: Sequence[Cell]) -> list[Comparison]:
    """Every robust source against every standard one, where images vary in number."""
    standard: dict[tuple[Setting, str, int], list[Cell]] = {}
    for c in cells:
        if c.threat is not None and not c.robust and c.setting.mode != "scratch":
            standard.setdefault((c.setting, c.arch, c.n), []).append(c)
    pairs = []
    sizes: dict[Setting, set[int]] = {}
    for cell in cells:
        if not cell.robust:
            continue
        for peer in standard.get((cell.setting, cell.arch, cell.n), []):
            pair = compare_pair(cell, peer)
            if pair is not None:
                pairs.append(pair)
                sizes.setdefault(cell.setting, set()).add(cell.n)
    return [pair for pair in pairs if len(sizes[pair.robust.setting]) > 1]


def study_comparisons(cells: Sequence[Cell]) -> dict[str, list[Comparison]]:
    """All that a report tests, by question, corrected together.

    Returns:
        `best`: the best robust source of each setting; `l2`, `linf`: of one norm;
        `sides`: where images were also reduced; `images`: every pair where their number
        varies. A pair that several ask for has one p-value everywhere.
    """
    most = with_most_images(cells)
    of_norm = {
        norm: [c for c in most if c.threat is None or c.threat[0] in (norm, None)]
        for norm in ("l2", "linf")
    }
    return corrected(
        {"best": compare(most)}
        | {norm: compare(found) for norm, found in of_norm.items()}
        | {"sides": compare(with_sides(cells)), "images": image_pairs(cells)}
    )


def corrected(
    groups: Mapping[str, Sequence[Comparison]],
) -> dict[str, list[Comparison]]:
    """The same with Holm's correction for the number of distinct pairs."""
    raw = {
        (c.robust, c.standard): c.p
        for group in groups.values()
        for c in group
        if c.p is not None
    }
    adjusted = dict(zip(raw, holm(list(raw.values())), strict=True))
    return {
        name: [replace(c, adjusted=adjusted.get((c.robust, c.standard))) for c in group]
        for name, group in groups.items()
    }
