"""The interval of a median: scipy's order statistics, infinite values, and few values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import quantile_test

from fastadv.statistics import median_interval


@pytest.mark.parametrize("n", [6, 7, 10, 25, 60, 101, 1000])
def test_the_ends_are_those_of_scipy(n: int) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    middle, low, high = median_interval(values.tolist())
    expected = quantile_test(values, p=0.5).confidence_interval(0.95)
    assert (low, high) == (expected.low, expected.high)
    assert middle == pytest.approx(np.median(values))
    assert low < middle < high


def test_infinite_values_count_and_few_values_are_their_own_ends() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert median_interval([4.0]) == (4.0, 4.0, 4.0)
    found = median_interval([*range(12), *[math.inf] * 8])
    assert found[0] == 9.5
    assert found[2] == math.inf
    assert median_interval([1.0, math.inf, math.inf])[0] == math.inf
