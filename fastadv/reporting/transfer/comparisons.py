"""Robust against standard sources: what is paired, and what the pairs are tested over.

One family of tests is primary: on each target, the best robust radius against standard
training. All other pairs are exploratory, and corrected apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from fastadv.groups import grouped
from fastadv.reporting.transfer.cells import RANK, Cell, Place, with_most_images
from fastadv.reporting.transfer.condition import Condition
from fastadv.reporting.transfer.pairing import Pairing
from fastadv.reporting.transfer.pairs import Comparison, Runs
from fastadv.statistics import holm


@dataclass(frozen=True)
class Comparisons:
    """All comparisons that a report tests.

    Attributes:
        primary: One per target: the best robust radius against standard training, the
            mean of all architectures that have both.
        groups: Comparisons by question. `best`: the best robust radius under each
            condition; `l2`, `linf`: the best one of that norm; `sides`: where images
            were also reduced in size; `images`: every pair where the number of images
            varies. A pair that answers several questions has one p-value everywhere.
        exploratory: Number of p-values that the correction of all other pairs counts.
    """

    primary: list[Comparison] = field(default_factory=list)
    groups: dict[str, list[Comparison]] = field(default_factory=dict)
    exploratory: int = 0

    @property
    def counted(self) -> int:
        """Number of p-values that the correction of the primary family counts."""
        return sum(each.among for each in self.primary if each.p is not None)


def compare(cells: Sequence[Cell], pairing: Pairing | None = None) -> list[Comparison]:
    """Pair the best robust radius and the standard sources per condition, arch and n.

    The best is chosen by validation accuracy; only where there is none, by the test
    accuracy itself, which flatters it. Sources that were trained alike count as runs of
    one training and are averaged, never chosen among.

    Args:
        cells: Cells to compare.
        pairing: Estimates differences; by default without verdicts on test images.
    """
    found = []
    for standard, robust in _sides(cells):
        [chosen], by = _choose([robust], [standard])
        pair = (chosen, standard)
        found += _compare([pair], *pair, by, len(robust), pairing)
    return found


def _sides(cells: Iterable[Cell]) -> Iterator[tuple[Runs, list[Runs]]]:
    """Yield the standard source runs and the robust ones, by radius, of every place.

    A place is a condition, an architecture and a number of images; those without one of
    the sides are left out. Networks from scratch have no source.
    """
    usual = [c for c in cells if c.plain and c.condition.mode != "scratch"]
    for place in grouped(usual, lambda c: (c.condition, c.arch, c.n)).values():
        alike = grouped(place, lambda c: c.threat if c.robust else "standard")
        runs = [
            Runs(of[0].condition, of[0].arch, of[0].threat, of[0].n, tuple(of))
            for of in alike.values()
        ]
        standard = [each for each in runs if each.first.standard]
        robust = [each for each in runs if not each.first.standard]
        if standard and robust:
            yield standard[0], robust


def _choose(
    robust: Sequence[Sequence[Runs]], standard: Sequence[Runs]
) -> tuple[list[Runs], str]:
    """Choose one radius of those that all architectures have.

    Args:
        robust: Robust sources of each architecture.
        standard: Standard sources of each architecture.

    Returns:
        The sources of that radius by architecture, and what it was chosen on: `val`,
        `test`, or nothing where there is only one.
    """
    by_radius = [{runs.threat: runs for runs in of_arch} for of_arch in robust]
    radii = [
        [of_arch[radius] for of_arch in by_radius]
        for radius in by_radius[0]
        if all(radius in of_arch for of_arch in by_radius)
    ]
    every = [runs for each in radii for runs in each]
    judged = all(runs.validation is not None for runs in (*every, *standard))

    def merit(runs: Sequence[Runs]) -> float:
        return fmean((r.validation or 0.0) if judged else r.mean for r in runs)

    validated = judged and every[0].condition.select_on == "val"
    by = "" if len(radii) == 1 else "val" if validated else "test"
    return max(radii, key=merit), by


def _compare(
    pairs: Sequence[tuple[Runs, Runs]],
    robust: Runs,
    standard: Runs,
    by: str,
    among: int,
    pairing: Pairing | None,
) -> list[Comparison]:
    """Compare two sides, paired by seed; an empty list if they share no seed."""
    sides = [(ours.cells, theirs.cells) for ours, theirs in pairs]
    found = (pairing or Pairing()).estimate(sides, robust.condition.metric)
    if found is None:
        return []
    seeds, estimate, refused = found
    if by != "test" and estimate.over == ("test images",):
        among = 1  # other images chose, and these networks are what the claim is about
    place = (robust.condition, robust.arch, robust.threat, robust.n)
    return [Comparison(*place, robust, standard, by, among, seeds, estimate, refused)]


def primary_comparisons(
    cells: Sequence[Cell], pairing: Pairing | None = None
) -> list[Comparison]:
    """Compare the best robust radius with standard training, once per target.

    The targets are those of one way to transfer: fixed features on images as they are
    where the table has that, else what trains least. Architectures that have standard and
    robust sources are averaged; the radius is one that all of them have, chosen by their
    mean validation accuracy.

    Args:
        cells: Cells with the most training images of their condition.
        pairing: Estimates differences; by default without verdicts on test images.
    """
    places = grouped(_sides(cells), lambda sides: sides[0].condition)
    if not places:
        return []
    targets = Counter(way(c) for c in {(c.target, way(c)): c for c in places}.values())
    chosen = min(targets, key=lambda w: (w.downscale, RANK[w.mode], -targets[w]))
    found: dict[str, list[Comparison]] = {}
    for condition, of_archs in places.items():
        if way(condition) == chosen and condition.target not in found:
            found[condition.target] = _over_archs(of_archs, pairing)
    return [replace(each, primary=True) for of in found.values() for each in of]


def _over_archs(
    of_archs: Sequence[tuple[Runs, list[Runs]]], pairing: Pairing | None
) -> list[Comparison]:
    """Compare the mean of architectures; the first alone if they share no radius."""
    radii = [{runs.threat for runs in robust} for _, robust in of_archs]
    if not set.intersection(*radii):
        of_archs, radii = of_archs[:1], radii[:1]
    standards = [standard for standard, _ in of_archs]
    chosen, by = _choose([robust for _, robust in of_archs], standards)
    pairs = list(zip(chosen, standards, strict=True))
    robust, standard = pairs[0]
    if len(pairs) > 1:
        name = f"mean of {len(pairs)} architectures"
        robust, standard = (
            replace(side[0], arch=name, cells=tuple(c for r in side for c in r.cells))
            for side in (chosen, standards)
        )
    among = len(set.intersection(*radii))
    return _compare(pairs, robust, standard, by, among, pairing)


def way(condition: Condition) -> Condition:
    """Return how a condition transfers, without the target and what is chosen for it."""
    return replace(
        condition, dataset="", version="", metric="", resolution=0, epochs=0, recipe=()
    )


def with_sides(cells: Sequence[Cell]) -> list[Cell]:
    """Return cells under conditions that were also run on images reduced in size first."""
    reduced = {native(c) for c in cells if c.condition.downscale}
    return with_most_images([c for c in cells if native(c) in reduced], native)


def native(item: Place) -> Condition:
    """Return the condition without the side that images were reduced to."""
    return replace(item.condition, downscale=0)


def image_pairs(
    cells: Sequence[Cell], pairing: Pairing | None = None
) -> list[Comparison]:
    """Pair every robust radius with standard training, where images vary in number."""
    pairs = []
    for standard, robust in _sides(cells):
        for runs in robust:
            pairs += _compare([(runs, standard)], runs, standard, "", 1, pairing)
    sizes = Counter(condition for condition, _ in {(p.condition, p.n) for p in pairs})
    return [pair for pair in pairs if sizes[pair.condition] > 1]


def study_comparisons(
    cells: Sequence[Cell], pairing: Pairing | None = None
) -> Comparisons:
    """Make all comparisons that a report tests, and correct both families."""
    pairing = pairing or Pairing()  # one: several groups share an estimate
    most = with_most_images(cells)
    of_norm = {
        norm: [c for c in most if c.threat is None or c.threat[0] in (norm, None)]
        for norm in ("l2", "linf")
    }
    primary = primary_comparisons(most, pairing)
    groups = (
        {"best": compare(most, pairing)}
        | {norm: compare(found, pairing) for norm, found in of_norm.items()}
        | {"sides": compare(with_sides(cells), pairing)}
        | {"images": image_pairs(cells, pairing)}
    )
    first = _corrected(primary)
    others = [c for group in groups.values() for c in group if c.key not in first]
    adjusted = first | _corrected(others)
    return Comparisons(
        primary=[replace(c, adjusted=first.get(c.key)) for c in primary],
        groups={
            name: [
                replace(c, primary=c.key in first, adjusted=adjusted.get(c.key))
                for c in group
            ]
            for name, group in groups.items()
        },
        exploratory=sum(_choices(others).values()),
    )


def _choices(found: Sequence[Comparison]) -> dict[tuple[Runs, Runs], int]:
    """Return the number of radii each tested pair was chosen among."""
    among: dict[tuple[Runs, Runs], int] = {}
    for each in found:
        if each.p is not None:
            among[each.key] = max(each.among, among.get(each.key, 1))
    return among


def _corrected(found: Sequence[Comparison]) -> dict[tuple[Runs, Runs], float]:
    """Return the p-values of a family after Holm's correction, by pair.

    Every radius that a choice was among counts as a test that found nothing.
    """
    raw = {each.key: each.p for each in found if each.p is not None}
    left_out = sum(_choices(found).values()) - len(raw)
    adjusted = holm([*raw.values(), *[1.0] * left_out])
    return dict(zip(raw, adjusted, strict=False))
