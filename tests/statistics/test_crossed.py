"""Differences over seeds, source runs and test images, against scipy and simulation."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from fastadv.statistics.components import sum_of_components
from fastadv.statistics.crossed import crossed_difference, images_difference

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench/simulate_tests.py, whose long run is in the documentation."""
    monkeypatch.syspath_prepend(BENCH)
    import simulate_tests

    return simulate_tests


# ---- what is known exactly ----


def test_one_run_of_each_is_the_paired_t_test_over_seeds() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(1, 1, 6), draw.normal(0, 1, 6)
    found = crossed_difference((a[None], b[None]), (1, -1))
    theirs = stats.ttest_rel(a, b)
    ends = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.over == ("seeds",)


def test_runs_alone_are_welchs_test() -> None:
    """Seeds that change nothing leave the means of the runs."""
    draw = np.random.default_rng(1)
    a, b = draw.normal(0.5, 1, 4), draw.normal(0, 2, 5)
    for seeds in (1, 4):
        groups = (np.repeat(a[:, None], seeds, 1), np.repeat(b[:, None], seeds, 1))
        found = crossed_difference(groups, (1, -1))
        theirs = stats.ttest_ind(a, b, equal_var=False)
        ends = theirs.confidence_interval(0.95)
        assert found.p == pytest.approx(theirs.pvalue)
        assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
        assert found.over == ("source runs",)


def test_weights_sum_up_several_architectures() -> None:
    draw = np.random.default_rng(2)
    groups = [draw.normal(size=(1, 5)) for _ in range(4)]
    found = crossed_difference(groups, (0.5, -0.5, 0.5, -0.5))
    means = 0.5 * (groups[0] - groups[1] + groups[2] - groups[3])[0]
    assert found.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


@pytest.mark.parametrize(("right", "wrong"), [(9, 1), (3, 0), (5, 5)])
def test_few_discordant_images_are_mcnemars_exact_test(right: int, wrong: int) -> None:
    first, second = np.zeros(500), np.zeros(500)
    first[:right] = second[-wrong or 500 :] = 1
    first[100:300] = second[100:300] = 1
    found = crossed_difference((first[None, None], second[None, None]), (1, -1))
    assert found.p == pytest.approx(stats.binomtest(right, right + wrong).pvalue)
    assert found.value == pytest.approx((right - wrong) / 500)
    assert found.low is not None
    assert found.high is not None
    # The interval and the test agree.
    assert (found.low <= 0 <= found.high) == (found.p >= 0.05)
    assert found.over == ("test images",)


def test_images_of_several_seeds_are_a_permutation_test() -> None:
    differences = np.zeros(300)
    differences[:8] = (1, 0.5, 1, 0.5, 0.5, 1, -0.5, 1)
    found = images_difference(differences)
    # Of the 256 ways to choose signs, these have a sum of at least 5 either way.
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    sums = np.abs(differences[:8]) @ signs
    assert found.p == pytest.approx(np.mean(np.abs(sums) >= 5 - 1e-9))


def test_equal_verdicts_have_no_difference_and_no_doubt() -> None:
    same = np.ones((1, 1, 50))
    found = crossed_difference((same, same), (1, -1))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_images_that_one_source_finds_harder_widen_the_interval() -> None:
    draw = np.random.default_rng(3)
    chance = 0.6 + 0.02 * draw.normal(size=(2, 1, 8, 1))
    own = 0.4 * draw.choice((-1, 1), size=(2, 1, 1, 500))
    groups = (draw.random((2, 1, 8, 500)) < chance + own).astype(float)
    both = crossed_difference(groups, (1, -1))
    seeds = crossed_difference(groups.mean(axis=3), (1, -1))
    assert both.over == ("seeds", "test images")
    assert both.value == pytest.approx(seeds.value)
    assert both.high - both.low > 1.3 * (seeds.high - seeds.low)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("seeds", "why"), [(1, "a single seed"), (2, "two seeds"), (4, "the seeds agree")]
)
def test_too_few_seeds_give_no_interval(seeds: int, why: str) -> None:
    values = np.arange(seeds, dtype=float)[None]
    other = values - 1 if seeds > 2 else values**2 + 1
    found = crossed_difference((values, other), (1, -1))
    assert (found.low, found.high, found.p, found.over) == (None, None, None, ())
    assert found.why.startswith(why)
    # Two seeds have no interval, but test images do.
    images = np.random.default_rng(0).random((2, 1, seeds, 200)) < 0.5
    assert "test images" in crossed_difference(images, (1, -1)).over


def test_no_spread_is_no_test_whatever_rounding_makes_of_it() -> None:
    groups = (np.array([[90.3, 70.3, 0.3]]), np.array([[90.1, 70.1, 0.1]]))
    assert np.ptp(groups[0] - groups[1]) > 0
    found = crossed_difference(groups, (1, -1))
    assert (found.p, found.why) == (None, "the seeds agree exactly")


def test_groups_of_other_seeds_or_images_are_refused() -> None:
    for shapes in (
        ((1, 3), (1, 4)),
        ((1, 3, 10), (1, 3, 11)),
        ((3,), (3,)),
        ((0, 3),) * 2,
    ):
        with pytest.raises(ValueError, match=r"must be \[runs, seeds\]"):
            crossed_difference([np.zeros(shape) for shape in shapes], (1, -1))


# ---- components ----

RUNS, SEEDS, BOTH = (0,), (1,), (0, 1)


def test_large_components_add_up_and_what_is_common_counts_once() -> None:
    squares = {RUNS: [(50.0, 2)], SEEDS: [(30.0, 4)], BOTH: [(1.0, 8)]}
    variance, dof = sum_of_components(squares)
    assert variance == 50 + 30 - 1
    assert dof == pytest.approx(79**2 / (50**2 / 2 + 30**2 / 4 + 1 / 8))


def test_a_component_within_chance_is_pooled() -> None:
    # F = 1.2 with 4 and 8 degrees of freedom: p = 0.38.
    squares = {RUNS: [(30.0, 4)], SEEDS: [(1.2, 4)], BOTH: [(1.0, 8)]}
    variance, dof = sum_of_components(squares)
    pooled = (1.2 * 4 + 1.0 * 8) / 12
    assert variance == pytest.approx(30)  # the seeds add nothing to what is in the runs
    assert dof == pytest.approx(4)
    none = {RUNS: [(0.9, 4)], SEEDS: [(1.2, 4)], BOTH: [(1.0, 8)]}
    variance, dof = sum_of_components(none)
    assert variance == pytest.approx((pooled * 12 + 0.9 * 4) / 16)
    assert dof == pytest.approx(16)


def test_many_experiments_are_summed_up_as_single_ones_are() -> None:
    draw = np.random.default_rng(0)
    drawn = {
        RUNS: [(draw.chisquare(2, 50), 2), (draw.chisquare(3, 50), 3)],
        SEEDS: [(draw.chisquare(4, 50), 4)],
        BOTH: [(draw.chisquare(8, 50), 8), (draw.chisquare(12, 50), 12)],
    }
    together = np.array(sum_of_components(drawn))
    for i in range(50):
        one = {key: [(v[i], dof) for v, dof in drawn[key]] for key in drawn}
        assert np.array(sum_of_components(one)) == pytest.approx(together[:, i])


# ---- what holds on average ----


def covers(share: float, repeats: int, most: float = 0.97) -> None:
    """Assert that 93 to 97 % of intervals cover, up to three standard errors.

    Args:
        share: Share of simulated 95 % intervals that hold the truth.
        repeats: Number of intervals.
        most: Largest true share that is accepted.
    """
    low, high = (3 * math.sqrt(p * (1 - p) / repeats) for p in (0.93, most))
    assert 0.93 - low <= share <= most + high


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("runs", [1, 3])
def test_intervals_cover_and_power_is_as_forecast(
    simulate: ModuleType, seeds: int, runs: int
) -> None:
    repeats = 1200
    spread = simulate.Spread()
    few = runs > 1 and seeds == 3
    covers(
        simulate.coverage(seeds, runs, spread, repeats), repeats, 0.98 if few else 0.97
    )
    design = simulate.Design(seeds=seeds, runs=runs, sets=simulate.SETS)
    least = design.detectable()
    assert abs(simulate.power(design, least, repeats) - 0.8) < 0.05
    assert (
        abs(simulate.power(design, least / 2, repeats) - design.power(least / 2)) < 0.05
    )


@pytest.mark.parametrize(
    ("seeds", "runs", "most"),
    [(3, 3, 0.98), (5, 2, 0.98), (5, 3, 0.975), (10, 5, 0.97)],
)
def test_intervals_are_not_too_wide_where_nothing_has_an_effect(
    simulate: ModuleType, seeds: int, runs: int, most: float
) -> None:
    """They would cover 98.5 % and more if no component could be tested to be 0.

    Designs with a factor of two degrees of freedom, which are three seeds or two runs,
    remain somewhat too cautious.
    """
    repeats = 2500
    nothing = simulate.Spread(0, 0, 1)
    covers(simulate.coverage(seeds, runs, nothing, repeats), repeats, most)
    # The worst case of the preliminary test: an effect that it often misses.
    some = simulate.Spread(0.5, 0, 1)
    covers(simulate.coverage(seeds, runs, some, repeats), repeats, most)


def test_images_are_covered_as_well(simulate: ModuleType) -> None:
    for runs in (1, 3):
        covers(simulate.coverage_with_images(5, runs, 200, 400), 400)


def test_the_forecast_knows_the_interaction_of_runs_and_seeds(
    simulate: ModuleType,
) -> None:
    repeats = 3000  # three standard errors are 2.5 points
    for seeds, runs in ((3, 3), (5, 2)):
        design = simulate.Design(seeds=seeds, runs=runs, sd_both=0.15)
        without = simulate.Design(seeds=seeds, runs=runs)
        least = without.detectable()
        found = simulate.power(design, least, repeats)
        assert found == pytest.approx(design.power(least), abs=0.025)


def test_families_without_a_lead_find_none(simulate: ModuleType) -> None:
    """The best of several radii is only tested fairly where that choice is counted."""
    spread = simulate.Spread()
    assert simulate.family_error(5, 1, spread, 150) <= 0.05
    assert simulate.family_error(10, 1, spread, 150, corrected=False) > 0.06
