"""Effective robustness: accuracy under shift beyond what standard accuracy predicts.

Source: Taori et al. 2020 (2007.00644). Over standard networks, the accuracy under shift is
nearly a line of the standard accuracy where both are on a logit or probit scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.statistics.intervals import t_quantile

Scale = Literal["logit", "probit"]
LEAST_NETWORKS = 5
"""Fewer standard networks than this give no line whose interval says anything."""


@dataclass(frozen=True)
class Expectation:
    """The line through standard networks, on a scale on which it is straight.

    Attributes:
        scale: The scale of both accuracies.
        slope: Slope of the line.
        intercept: Its value at an accuracy of one half.
        deviation: Standard deviation of the networks about the line, on the scale.
        n: Number of networks.
        mean: Mean standard accuracy, on the scale.
        spread: Sum of squared distances of the standard accuracies from it.
    """

    scale: Scale
    slope: float
    intercept: float
    deviation: float
    n: int
    mean: float
    spread: float

    def expected(self, accuracy: float) -> tuple[float, float, float]:
        """Return the expected accuracy under shift, and where standard networks lie.

        Args:
            accuracy: Standard accuracy, in (0, 1).

        Returns:
            Three accuracies in [0, 1]: the expected one, and the ends of the interval in
            which the accuracy of a further standard network lies with 95 %.
        """
        x = float(to_scale(accuracy, self.scale))
        middle = self.intercept + self.slope * x
        further = 1 + 1 / self.n + (x - self.mean) ** 2 / self.spread
        half = t_quantile(self.n - 2) * self.deviation * math.sqrt(further)
        low, value, high = (
            float(from_scale(each, self.scale))
            for each in (middle - half, middle, middle + half)
        )
        return value, low, high


def fit_expectation(
    standard: Sequence[float], shifted: Sequence[float], scale: Scale = "logit"
) -> Expectation:
    """Fit the line through standard networks by least squares.

    Args:
        standard: Standard accuracy of each network, in (0, 1).
        shifted: Its accuracy under shift, in (0, 1).
        scale: Scale of both.

    Raises:
        ValueError: There are fewer than five networks, their standard accuracies do not
            differ, or an accuracy is outside (0, 1).
    """
    if len(standard) < LEAST_NETWORKS:
        raise ValueError(
            f"effective robustness needs at least {LEAST_NETWORKS} standard networks to "
            f"fit an expectation to, and there are {len(standard)}"
        )
    x, y = to_scale(standard, scale), to_scale(shifted, scale)
    mean = float(x.mean())
    spread = float(((x - mean) ** 2).sum())
    if spread < 1e-12:
        raise ValueError(
            f"the {len(x)} standard networks have one standard accuracy, "
            f"{100 * standard[0]:.1f} %; a line needs networks of different accuracy"
        )
    slope = float(((x - mean) * y).sum() / spread)
    intercept = float(y.mean()) - slope * mean
    rest = y - intercept - slope * x
    deviation = math.sqrt(float((rest**2).sum()) / (len(x) - 2))
    return Expectation(scale, slope, intercept, deviation, len(x), mean, spread)


def smoothed_share(percent: float, n: int) -> float:
    """Return an accuracy in percent over n images as a share within (0, 1).

    Half an image is added to the right and to the wrong ones, since no share of 0 or 1 is
    on the scales.
    """
    return (percent / 100 * n + 0.5) / (n + 1)


def to_scale(accuracy: ArrayLike, scale: Scale) -> NDArray[np.float64]:
    """Return accuracies in (0, 1) on a scale.

    Raises:
        ValueError: An accuracy is outside (0, 1).
    """
    from scipy import special

    values = np.asarray(accuracy, np.float64)
    if not ((values > 0) & (values < 1)).all():
        raise ValueError("accuracies must lie within (0, 1); see `smoothed_share`")
    found = special.logit(values) if scale == "logit" else special.ndtri(values)
    return np.asarray(found)


def from_scale(value: ArrayLike, scale: Scale) -> NDArray[np.float64]:
    """Return the accuracies in [0, 1] of values on a scale."""
    from scipy import special

    found = special.expit(value) if scale == "logit" else special.ndtr(value)
    return np.asarray(found)
