"""Whether the tests of the report hold what they promise, on experiments that are drawn.

    python bench/simulate_tests.py

Every experiment is drawn from a known truth: accuracies on several data sets with a
standard source and several robust radii, source runs and seeds, with random effects of
source runs, of seeds, and of both together. Counted is how often 95 % intervals cover the
truth, how often a whole family of tests without any true lead finds one, and how often a
true lead is found, beside the forecast of `fastadv.statistics.power`. No network is
trained, and nothing is timed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
from harness import Results

from fastadv.statistics import holm
from fastadv.statistics.across import sets_lead
from fastadv.statistics.crossed import Array, crossed_difference
from fastadv.statistics.power import Design

SETS, RADII = 12, 5
DESIGNS = (
    (3, 1),
    (3, 3),
    (5, 1),
    (5, 2),
    (5, 3),
    (10, 1),
    (10, 3),
)  # seeds, source runs
# Sizes of the effects of source runs and of seeds, where that of both together is 1.
EFFECTS = ((0, 0), (0.5, 0), (1, 0), (0, 0.5), (0, 1), (0.5, 0.5), (1, 1), (2, 2))


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the random effects on an accuracy, in points."""

    runs: float = 0.5
    seeds: float = 0.3
    both: float = 0.2


def drawn(
    draw: np.random.Generator, count: int, runs: int, seeds: int, spread: Spread
) -> Array:
    """Effects on the accuracies of `count` radii, float [count, runs, seeds].

    With one source run per radius its effect is part of the truth, so it is left out.
    """
    effects = draw.normal(0, spread.seeds, (count, 1, seeds))
    if runs > 1:
        effects = effects + draw.normal(0, spread.runs, (count, runs, 1))
    return effects + draw.normal(0, spread.both, (count, runs, seeds))


def coverage(
    seeds: int, runs: int, spread: Spread, repeats: int, seed: int = 0
) -> float:
    """Share of 95 % intervals of a difference that cover it; the truth is 0."""
    draw = np.random.default_rng(seed)
    covered = 0
    for _ in range(repeats):
        found = crossed_difference(drawn(draw, 2, runs, seeds, spread), (1, -1))
        covered += (found.low or 0) <= 0 <= (found.high or 0)
    return covered / repeats


def coverage_with_images(
    seeds: int, runs: int, images: int, repeats: int, seed: int = 0
) -> float:
    """Share of intervals that cover 0 where the test images are drawn as well.

    An image is right where level + seed + run + difficulty > 0, all of them normal; the
    difficulty of an image is shared by all networks up to a part of their own.
    """
    draw = np.random.default_rng(seed)
    covered = 0
    for _ in range(repeats):
        level = 0.8 + drawn(draw, 2, runs, seeds, Spread(0.03, 0.02, 0.0))[..., None]
        images_ = draw.normal(size=images)
        radius = draw.normal(0, 0.4, (2, 1, 1, images))
        network = draw.normal(0, 0.4, (2, runs, seeds, images))
        right = (level + images_ + radius + network > 0).astype(float)
        found = crossed_difference(right, (1, -1))
        covered += (found.low or 0) <= 0 <= (found.high or 0)
    return covered / repeats


def family_error(
    seeds: int,
    runs: int,
    spread: Spread,
    repeats: int,
    *,
    corrected: bool = True,
    seed: int = 0,
) -> float:
    """Share of families in which a lead is found although there is none.

    A family has one test per data set, of the radius that is best on validation images.
    The validation accuracy of a network has the very effects of its test accuracy, as
    where a lucky seed is lucky on all images, which is the worst case.

    Args:
        seeds: Number of seeds.
        runs: Number of source runs per radius.
        spread: Standard deviations of the effects.
        repeats: Number of families.
        corrected: Whether p-values are multiplied by the number of radii, as in the report.
        seed: Seed of the draws.
    """
    draw = np.random.default_rng(seed)
    wrong = 0
    for _ in range(repeats):
        p_values = []
        for _ in range(SETS):
            groups = drawn(draw, RADII + 1, runs, seeds, spread)
            best = groups[1:].mean(axis=(1, 2)).argmax()
            p = crossed_difference((groups[1 + best], groups[0]), (1, -1)).p
            p_values.append(min(1.0, (p or 1.0) * (RADII if corrected else 1)))
        wrong += min(holm(p_values)) < 0.05
    return wrong / repeats


def worst_coverages(
    seeds: int, runs: int, repeats: int, seed: int = 0
) -> tuple[float, float]:
    """Lowest and highest coverage over effects of all sizes beside that of both together."""
    effects = [
        coverage(seeds, runs, Spread(*sizes, 1.0), repeats, seed) for sizes in EFFECTS
    ]
    return min(effects), max(effects)


def power(design: Design, difference: float, repeats: int, seed: int = 0) -> float:
    """Share of experiments in which a true lead on one data set is found.

    The level is that of the smallest p-value after the correction for all data sets and
    radii.

    Args:
        design: The design; it states the SD over seeds of a difference of two sources.
        difference: The true lead.
        repeats: Number of experiments.
        seed: Seed of the draws.
    """
    draw = np.random.default_rng(seed)
    apart = (design.sd_seeds**2 / 2 - design.sd_both**2) ** 0.5
    spread = Spread(design.sd_runs, apart, design.sd_both)
    found = 0
    for _ in range(repeats):
        groups = drawn(draw, 2, design.runs, design.seeds, spread)
        groups[0] += difference
        p = crossed_difference(groups, (1, -1)).p
        found += p is not None and p < 0.05 / design.tests
    return found / repeats


def across_sets(
    sets: int, lead: float, repeats: int, seed: int = 0
) -> tuple[float, float, float]:
    """Coverage of the mean lead, and how often the two tests across data sets find it."""
    draw = np.random.default_rng(seed)
    covered = signs = ranks = 0
    for _ in range(repeats):
        found = sets_lead(draw.normal(lead, 2.0, sets))
        covered += (found.low or 0) <= lead <= (found.high or 0)
        signs += found.sign_p is not None and found.sign_p < 0.05
        ranks += found.rank_p is not None and found.rank_p < 0.05
    return covered / repeats, signs / repeats, ranks / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10_000)
    repeats: int = parser.parse_args().repeats
    results = Results("statistics")
    spread = Spread()
    for seeds, runs in DESIGNS:
        design = Design(seeds=seeds, runs=runs, sets=SETS, radii=RADII)
        least = design.detectable()
        both = replace(design, sd_both=0.15)
        lowest, highest = worst_coverages(seeds, runs, repeats)
        results.add(
            seeds=seeds,
            runs=runs,
            repeats=repeats,
            coverage=coverage(seeds, runs, spread, repeats),
            coverage_no_effects=coverage(seeds, runs, Spread(0, 0, 1), repeats),
            coverage_images=coverage_with_images(seeds, runs, 500, repeats // 4),
            family_error=family_error(seeds, runs, spread, repeats // 5),
            family_error_uncorrected=family_error(
                seeds, runs, spread, repeats // 5, corrected=False
            ),
            detectable=least,
            power=power(design, least, repeats),
            coverage_lowest=lowest,
            coverage_highest=highest,
            power_both=power(both, least, repeats),
            forecast_both=both.power(least),
            power_of_half=power(design, least / 2, repeats),
            forecast_of_half=design.power(least / 2),
        )
    for sets in (6, 12):
        for lead in (0.0, 2.0):
            covered, signs, ranks = across_sets(sets, lead, repeats // 4)
            results.add(
                sets=sets, lead=lead, coverage=covered, sign_test=signs, wilcoxon=ranks
            )
    results.write()


if __name__ == "__main__":
    main()
