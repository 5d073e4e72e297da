"""Confidence intervals and tests of measured values."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import correlation, fmean, linear_regression, median, stdev

import numpy as np
from numpy.typing import NDArray


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of a proportion. Source: Wilson 1927."""
    if trials == 0:
        return 0.0, 1.0
    z = 1.959964
    share = successes / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def t_two_sided(t: float, dof: float) -> float:
    """Return the two-sided p-value of Student's t with `dof` >= 1 degrees of freedom."""
    from scipy.special import stdtr

    return float(2 * stdtr(dof, -abs(t)))


@functools.cache
def t_quantile(dof: float, level: float = 0.95) -> float:
    """Return the t within which the share `level` of Student's distribution lies."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, (1 + level) / 2))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % t-interval.

    Of one or two values both ends are the mean: two give no useful interval.
    """
    mean, n = fmean(values), len(values)
    if n < 3:
        return mean, mean, mean
    half = t_quantile(n - 1) * stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the ends of its 95 % interval, which are values themselves.

    Nothing is assumed of the distribution, and values may be infinite: the ends are the
    order statistics whose ranks a binomial distribution gives. Below six values they are
    the least and the largest one, between which the median lies less often.
    """
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    below = max(int(binom.ppf(0.025, n, 0.5)), 1)
    low, high = ordered[below - 1], ordered[n - below]
    return median(ordered), low, high


def agree(values: Sequence[float]) -> bool:
    """Return whether all values are equal up to rounding."""
    return max(values) - min(values) <= 1e-9 * max(1.0, *map(abs, values))


def signs_p(values: NDArray[np.float64]) -> float:
    """Return the two-sided p-value that changes of the signs give the sum of values.

    It is exact where there are few values, and else that of 9,999 random changes.
    """
    from scipy import stats

    flipped = stats.permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        n_resamples=9999,
        vectorized=True,
        random_state=np.random.default_rng(0),
    )
    return float(flipped.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, adjusted for their number. Source: Holm 1979."""
    n = len(p_values)
    order = sorted(range(n), key=p_values.__getitem__)
    scaled = (min(1.0, (n - rank) * p_values[i]) for rank, i in enumerate(order))
    adjusted = dict(zip(order, accumulate(scaled, max), strict=True))
    return [adjusted[i] for i in range(n)]


@dataclass(frozen=True)
class Line:
    """A least-squares line: y = intercept + slope x.

    Attributes:
        r2: Share of the variance of y that the line explains, in [0, 1].
        p: Two-sided p-value of the hypothesis that the slope is 0; None below three
            points.
    """

    slope: float
    intercept: float
    r2: float
    p: float | None


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Return the least-squares line, or None where x or y does not vary."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    slope, intercept = linear_regression(x, y)
    r2 = min(1.0, correlation(x, y) ** 2)
    p, dof = None, len(x) - 2
    if dof > 0:
        t = math.inf if r2 == 1 else math.sqrt(r2 * dof / (1 - r2))
        p = t_two_sided(t, dof)
    return Line(slope, intercept, r2, p)
