"""What a design can find: against the noncentral t distribution, and its sentences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fastadv.statistics.across import sets_lead
from fastadv.statistics.power import Design, wins_needed


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("sets", [1, 12])
def test_power_of_one_run_is_the_noncentral_t(seeds: int, sets: int) -> None:
    design = Design(seeds=seeds, sets=sets, sd_seeds=0.4)
    least = design.detectable()
    shift = least / (0.4 / math.sqrt(seeds))
    quantile = stats.t.ppf(1 - 0.025 / sets, seeds - 1)
    assert stats.nct.sf(quantile, seeds - 1, shift) == pytest.approx(0.8, abs=0.01)
    assert design.power(least) == pytest.approx(0.8, abs=1e-6)
    assert design.power(0) == pytest.approx(0.05 / sets, rel=0.1)


def test_more_of_anything_finds_less() -> None:
    finds = [
        Design(seeds=10, sets=12),
        Design(seeds=5, sets=12),
        Design(seeds=5, sets=12, radii=5),
        Design(seeds=5, sets=12, radii=5, images=1000),
        Design(seeds=5, sets=12, radii=5, images=1000, disagreement=0.3),
    ]
    leads = [design.detectable() for design in finds]
    assert leads == sorted(leads)
    assert leads[0] < leads[-1]


def test_an_interaction_costs_power_only_with_several_runs() -> None:
    for runs in (1, 3):
        finds = [
            Design(seeds=5, runs=runs, sd_both=sd_both).detectable()
            for sd_both in (0.0, 0.15)
        ]
        assert (finds[1] > finds[0] + 0.02) == (runs > 1)
    with pytest.raises(ValueError, match="sd_both"):
        Design(seeds=5, sd_both=-1.0)


def test_the_sentences_say_what_cannot_be_found() -> None:
    text = " ".join(Design(seeds=2, sets=4).sentences())
    assert "2 seeds and 1 source run per radius allow no test over seeds" in text
    assert "Over 4 data sets" in text
    assert "the sign test needs at least 6 data sets" in text
    assert "those very networks" in text
    assert math.isinf(Design(seeds=2).detectable())
    text = " ".join(
        Design(seeds=10, runs=3, sets=12, radii=5, measured=("sd_seeds",)).sentences()
    )
    assert "0.26 over seeds (measured), 0.50 over source runs (assumed)" in text
    assert "0.00 of each pair of source run and seed (assumed)" in text
    assert "after correction for 12 data sets and 5 radii" in text
    assert "those very networks" not in text
    text = " ".join(Design(seeds=1, images=1000).sentences())
    assert "1 seed and 1 source run per radius allow no test" in text
    assert "10 % are taken to be judged differently (assumed)" in text


@pytest.mark.parametrize(
    "wrong", [{"seeds": 0}, {"runs": 0}, {"sd_seeds": -1.0}, {"disagreement": 2.0}]
)
def test_impossible_designs_are_refused(wrong: dict[str, float]) -> None:
    [name] = wrong
    with pytest.raises(ValueError, match=name):
        Design(**({"seeds": 3} | wrong))  # type: ignore[arg-type]


# ---- across data sets ----


def test_wins_needed_by_hand() -> None:
    assert [wins_needed(sets) for sets in (5, 6, 12, 48)] == [None, 6, 10, 32]


def test_tests_across_data_sets_are_scipys() -> None:
    leads = np.random.default_rng(0).normal(1, 2, 12)
    found = sets_lead(leads.tolist())
    assert found.rank_p == pytest.approx(stats.wilcoxon(leads).pvalue)
    assert found.sign_p == pytest.approx(
        stats.binomtest(int((leads > 0).sum()), 12).pvalue
    )
    low, high = stats.t.interval(0.95, 11, leads.mean(), stats.sem(leads))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_ties_are_counted_and_left_out_of_the_signs() -> None:
    found = sets_lead([1.0, 1.0, 2.0, 3.0, 4.0, 0.0, 1e-12, -1.0])
    assert (found.ahead, found.behind, found.ties) == (5, 1, 2)
    assert found.sign_p == pytest.approx(stats.binomtest(5, 6).pvalue)
    # By hand: zeros take ranks 1 and 2, three ones 4, 4, 4, then 6, 7, 8. Of 64 signs
    # those with a sum of negative ranks of at most 4, either way: none, or one 4.
    assert found.rank_p == pytest.approx(2 * 4 / 64)


def test_nothing_but_ties_is_no_test() -> None:
    found = sets_lead([0.0, 0.0, 0.0])
    assert (found.ahead, found.behind, found.ties, found.mean) == (0, 0, 3, 0)
    assert (found.low, found.high, found.sign_p, found.rank_p) == (None,) * 4


def test_two_data_sets_have_no_interval() -> None:
    found = sets_lead([1.0, 2.0])
    assert (found.mean, found.low, found.high) == (1.5, None, None)
