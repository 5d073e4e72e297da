"""Effective robustness: exact lines, the coverage of its interval, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastadv.statistics.effective import (
    fit_expectation,
    from_scale,
    smoothed_share,
    to_scale,
)


@pytest.mark.parametrize("scale", ["logit", "probit"])
def test_networks_on_a_line_have_none(scale) -> None:
    x = np.array([0.3, 0.45, 0.5, 0.62, 0.8, 0.91])
    y = from_scale(-0.7 + 0.9 * to_scale(x, scale), scale)
    line = fit_expectation(x, y, scale)
    assert (line.slope, line.intercept) == pytest.approx((0.9, -0.7))
    for a, b in zip(x, y, strict=True):
        assert line.expected(a) == pytest.approx((b, b, b), abs=1e-6)


def test_equals_least_squares_of_scipy() -> None:
    draw = np.random.default_rng(0)
    x = draw.uniform(0.2, 0.9, 9)
    y = from_scale(
        0.8 * to_scale(x, "logit") - 0.5 + 0.1 * draw.normal(size=9), "logit"
    )
    line = fit_expectation(x, y)
    theirs = stats.linregress(to_scale(x, "logit"), to_scale(y, "logit"))
    assert line.slope == pytest.approx(theirs.slope)
    assert line.intercept == pytest.approx(theirs.intercept)
    assert line.deviation / line.spread**0.5 == pytest.approx(theirs.stderr)


def test_the_interval_holds_further_standard_networks() -> None:
    """95 % of networks that follow the same line, drawn anew with the line each time."""
    draw = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        x = draw.uniform(-1, 2, 7)
        y = 0.9 * x - 0.6 + 0.15 * draw.normal(size=7)
        line = fit_expectation(from_scale(x[:-1], "logit"), from_scale(y[:-1], "logit"))
        _, low, high = line.expected(float(from_scale(x[-1], "logit")))
        inside += low <= float(from_scale(y[-1], "logit")) <= high
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)


def test_scales() -> None:
    assert float(to_scale(0.5, "logit")) == float(to_scale(0.5, "probit")) == 0
    assert float(to_scale(0.975, "probit")) == pytest.approx(1.959964, abs=1e-6)
    assert smoothed_share(100, 9) == 0.95
    assert smoothed_share(0, 9) == pytest.approx(0.05)
    assert smoothed_share(50, 9) == 0.5


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.1] * 4, "at least 5 standard networks.* there are 4"),
        ([], [], "there are 0"),
        ([0.5] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "one standard accuracy, 50.0 %"),
        ([0.1, 0.2, 0.3, 0.4, 1.0], [0.1] * 5, r"within \(0, 1\)"),
    ],
)
def test_refusals(x, y, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_expectation(x, y)
