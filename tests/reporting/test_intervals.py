"""Statistics against scipy, and whether intervals of accuracies hold what they promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from synthetic_results import row, typed

from fastadv.reporting.transfer.cells import seeds_interval
from fastadv.results.row import Row
from fastadv.statistics import (
    fit_line,
    holm,
    mean_interval,
    t_quantile,
    t_two_sided,
    wilson,
)

SEEDS, IMAGES, REPEATS = 3, 400, 800
[ROW] = typed([row()])


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 7, 30])
def test_student_t_is_scipys(dof: int) -> None:
    for t in (0.0, 0.3, -1.7, 4.0, 12.0):
        assert t_two_sided(t, dof) == pytest.approx(
            2 * stats.t.sf(abs(t), dof), abs=1e-12
        )
    assert t_quantile(dof) == pytest.approx(stats.t.ppf(0.975, dof))


def test_intervals_and_lines_are_scipys() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(1, 1, 6), draw.normal(0, 1, 6)
    low, high = stats.t.interval(0.95, 5, a.mean(), stats.sem(a))
    assert mean_interval(list(a)) == pytest.approx((a.mean(), low, high))
    line, theirs = fit_line(list(a), list(b)), stats.linregress(a, b)
    assert line is not None
    assert (line.slope, line.intercept) == pytest.approx(
        (theirs.slope, theirs.intercept)
    )
    assert (line.r2, line.p) == pytest.approx((theirs.rvalue**2, theirs.pvalue))
    assert fit_line([1.0, 1.0], [1.0, 2.0]) is None


def test_holm_by_hand() -> None:
    # Sorted: .01 x 4, .02 x 3, .03 x 2 -> not below the one before, .5 x 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == []


# ---- intervals of accuracies ----


def experiments(between: float, shared: float) -> tuple[float, list[list[Row]]]:
    """Accuracy over all seeds and images there could be, and measured experiments.

    An image is right where level + seed + difficulty > 0, all three normal.

    Args:
        between: standard deviation of the seeds.
        shared: correlation of an image's difficulty between seeds.
    """
    draw = np.random.default_rng(0)
    level = 0.4
    truth = stats.norm.cdf(level / np.hypot(1, between))
    seeds = draw.normal(0, between, (REPEATS, SEEDS, 1))
    same = draw.normal(size=(REPEATS, 1, IMAGES))
    own = draw.normal(size=(REPEATS, SEEDS, IMAGES))
    difficulty = shared**0.5 * same + (1 - shared) ** 0.5 * own
    right = (level + seeds + difficulty > 0).sum(axis=2)
    found = []
    for counts in right:
        ends = [wilson(count, IMAGES) for count in counts]
        found.append(
            [
                replace(ROW, value=100 * count / IMAGES, low=100 * low, high=100 * high)
                for count, (low, high) in zip(counts, ends, strict=True)
            ]
        )
    return 100 * truth, found


@pytest.mark.parametrize("between", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("shared", [0.5, 0.95])
def test_intervals_cover_seeds_and_test_images(between: float, shared: float) -> None:
    truth, found = experiments(between, shared)
    both = [seeds_interval(rows)[1:] for rows in found]
    covered = np.mean([low <= truth <= high for low, high in both])
    assert 0.94 <= covered <= 1
    if shared == 0.95 and between in (
        0.0,
        0.3,
    ):  # one of the two is nearly all there is
        assert covered < 0.985
    # Neither alone does: the t-interval knows nothing of the draw of images ...
    seeds = [mean_interval([r.value for r in rows])[1:] for rows in found]
    if between < 0.3 and shared == 0.95:
        assert np.mean([low <= truth <= high for low, high in seeds]) < 0.85
    # ... and that of the images nothing of seeds.
    if between == 0.3:
        one = np.mean([(r[0].low or 0) <= truth <= (r[0].high or 0) for r in found])
        assert one < 0.6


def test_more_seeds_are_never_surer_than_the_test_images() -> None:
    rows = [
        replace(ROW, seed=seed, value=value, low=value - 2.2, high=value + 2.1)
        for seed, value in enumerate((42.9, 43.0, 43.3))
    ]
    mean, low, high = seeds_interval(rows)
    _, least, most = mean_interval([42.9, 43.0, 43.3])
    assert mean - low == pytest.approx(np.hypot(2.2, mean - least))
    assert high - mean == pytest.approx(np.hypot(2.1, most - mean))
    # Where nothing is known of the test images, the seeds alone.
    blind = [replace(r, low=None, high=None) for r in rows]
    assert seeds_interval(blind) == pytest.approx((mean, least, most))
