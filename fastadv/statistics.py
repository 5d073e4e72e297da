"""Intervals and tests of what was measured, in plain Python."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion. Source: Wilson 1927."""
    if trials == 0:
        return 0.0, 1.0
    z = 1.959964
    share = successes / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def t_two_sided(t: float, dof: int) -> float:
    """Two-sided p-value of Student's t with `dof` >= 1 degrees of freedom.

    Source: Abramowitz and Stegun 26.7.3 and 26.7.4, exact for whole degrees of freedom.
    """
    if math.isinf(t):
        return 0.0
    angle = math.atan(abs(t) / math.sqrt(dof))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = dof % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for i in range(1 + odd, dof, 2):
        total += term
        term *= cosine * cosine * i / (i + 1)
    inside = sine * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return min(1.0, max(0.0, 1 - inside))


@functools.cache
def t_quantile(dof: int, level: float = 0.95) -> float:
    """The t within which the share `level` of Student's distribution lies."""
    low, high = 0.0, 1.0
    while t_two_sided(high, dof) > 1 - level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if t_two_sided(middle, dof) > 1 - level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % t-interval; the mean itself for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, mean, mean
    half = t_quantile(len(values) - 1) * _standard_error(values, mean)
    return mean, mean - half, mean + half


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired t-test.

    None below two pairs, and for differences that agree exactly: on few test images
    that happens by chance, and the test has no spread to measure them by.
    """
    if len(differences) < 2 or agree(differences):
        return None
    mean = math.fsum(differences) / len(differences)
    error = _standard_error(differences, mean)
    return t_two_sided(mean / error, len(differences) - 1)


def agree(values: Sequence[float]) -> bool:
    """Whether all values are one, up to rounding."""
    return max(values) - min(values) <= 1e-9 * max(1.0, *map(abs, values))


def _standard_error(values: Sequence[float], mean: float) -> float:
    square = math.fsum((value - mean) ** 2 for value in values)
    return math.sqrt(square / (len(values) - 1) / len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number. Source: Holm 1979."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Line:
    """A least-squares line: y = intercept + slope x.

    Attributes:
        r2: share of the variance of y it explains.
        p: two-sided, of slope 0; None below three points.
    """

    slope: float
    intercept: float
    r2: float
    p: float | None


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """The least-squares line; None where x or y does not vary."""
    n = len(x)
    mean_x, mean_y = math.fsum(x) / n, math.fsum(y) / n
    xx = math.fsum((a - mean_x) ** 2 for a in x)
    yy = math.fsum((b - mean_y) ** 2 for b in y)
    if xx == 0 or yy == 0:
        return None
    xy = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    r2 = min(1.0, xy * xy / (xx * yy))
    slope = xy / xx
    p = None
    if n > 2:
        t = math.inf if r2 == 1 else math.sqrt(r2 * (n - 2) / (1 - r2))
        p = t_two_sided(t, n - 2)
    return Line(slope, mean_y - slope * mean_x, r2, p)
