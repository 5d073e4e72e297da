"""Differences of accuracies when seeds, source runs and test images are all drawn.

A difference of accuracies is a mean over several things that could have been drawn
otherwise: the seeds of the transfer, the networks that were pretrained (source runs), and
the test images. They are crossed: every seed meets every source run and every image. The
variance of the difference is the sum of the variances that each of these factors causes,
so each is estimated on its own, and what two of them count twice is taken off once; see
`components`.

Source:
    Cameron, Gelbach and Miller 2011, Robust inference with multiway clustering (the sum).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastadv.statistics.components import sum_of_components
from fastadv.statistics.intervals import agree, signs_p, t_quantile, t_two_sided

Array = NDArray[np.float64]

LEAST_SEEDS: Final = 3
"""Fewer seeds than this give neither an interval nor a test over seeds."""

LEAST_RUNS: Final = 2
"""Fewer source runs at any radius than this: the claim is about those very networks."""

FEW_IMAGES: Final = 25
"""Up to this many images with different verdicts, tests over images are exact."""

_RUNS, _SEEDS, _IMAGES = range(3)  # axes
_NAMES = {_RUNS: "source runs", _SEEDS: "seeds", _IMAGES: "test images"}


@dataclass(frozen=True)
class Estimate:
    """A difference, and how sure it is.

    Attributes:
        value: The difference.
        low: Lower end of its 95 % interval; None without one.
        high: Upper end of its 95 % interval; None without one.
        p: Two-sided p-value of the hypothesis that it is 0; None where it was not
            tested.
        over: What could have been drawn otherwise, as far as the interval and the test
            cover it: some of `source runs`, `seeds`, `test images`.
        why: Why there is no test; empty where there is one.
        sd_images: Standard deviation of the difference over test images; None where
            single images are not known.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    over: tuple[str, ...] = ()
    why: str = ""
    sd_images: float | None = None


def crossed_difference(groups: Sequence[Array], weights: Sequence[float]) -> Estimate:
    """Estimate a weighted sum of the means of groups, with its interval and p-value.

    Seeds count as drawn where there are at least three that do not agree exactly, source
    runs where every group has at least two. Where neither counts, only the test images
    are left, see `images_difference`.

    Args:
        groups: Accuracies of each group, float [runs, seeds], or verdicts on test images,
            float [runs, seeds, images], of which the means are the accuracies. All groups
            have the same seeds and test images, but may differ in the number of runs.
        weights: Weight of each group in the sum, for example 1 for the robust sources and
            -1 for the standard ones.

    Raises:
        ValueError: The groups do not have the same seeds and images, or an empty axis.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    shapes = {array.shape[1:] for array in arrays}
    if (
        len(shapes) != 1
        or arrays[0].ndim not in (2, 3)
        or not all(a.size for a in arrays)
    ):
        found = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(
            f"groups must be [runs, seeds] or [runs, seeds, images] with the same seeds "
            f"and images, none of them empty; they are {found}"
        )
    dims = arrays[0].ndim
    pairs = list(zip(arrays, weights, strict=True))
    value = float(sum(w * a.mean() for a, w in pairs))
    factors = []
    if min(len(a) for a in arrays) >= LEAST_RUNS:
        factors.append(_RUNS)
    seeds = _contrast(pairs, _SEEDS)
    if len(seeds) >= LEAST_SEEDS and not agree(seeds.tolist()):
        factors.append(_SEEDS)
    sd_images = None
    if dims == 3:
        differences = _contrast(pairs, _IMAGES)
        sd_images = float(differences.std())
        if not factors:
            return replace(images_difference(differences), sd_images=sd_images)
        factors.append(_IMAGES)
    if not factors:
        return Estimate(value, why=_too_few(len(seeds)))
    variance, dof = _variance(pairs, factors)
    over = tuple(_NAMES[factor] for factor in factors)
    if variance <= 0:
        return Estimate(value, over=over, why="nothing varies", sd_images=sd_images)
    error = math.sqrt(variance)
    half = t_quantile(dof) * error
    p = t_two_sided(value / error, dof)
    ends = (value - half, value + half)
    return Estimate(value, *ends, p, over, sd_images=sd_images)


def _too_few(seeds: int) -> str:
    if seeds >= LEAST_SEEDS:
        return "the seeds agree exactly"
    return {1: "a single seed", 2: "two seeds give no interval"}[seeds]


def _contrast(pairs: Sequence[tuple[Array, float]], *kept: int) -> Array:
    """Return the weighted sum of the groups, averaged over all axes but `kept`."""
    axes = tuple(axis for axis in range(pairs[0][0].ndim) if axis not in kept)
    return np.asarray(sum(w * a.mean(axis=axes) for a, w in pairs))


def _variance(
    pairs: Sequence[tuple[Array, float]], factors: Sequence[int]
) -> tuple[float, float]:
    """Return the variance of the weighted sum and its degrees of freedom."""
    squares: dict[tuple[int, ...], list[tuple[float, float]]] = {}
    for size in range(1, len(factors) + 1):
        for kept in itertools.combinations(factors, size):
            # Runs of different groups have nothing to do with each other.
            if _RUNS in kept:
                axes = tuple(i for i in range(pairs[0][0].ndim) if i not in kept)
                squares[kept] = [_of_mean(a.mean(axis=axes), w) for a, w in pairs]
            else:
                squares[kept] = [_of_mean(_contrast(pairs, *kept), 1.0)]
    variance, dof = sum_of_components(squares)
    return float(variance), float(dof)


def _of_mean(values: Array, weight: float) -> tuple[float, float]:
    """Return the variance of the mean that the highest interaction of `values` causes.

    Returns:
        The variance, times the square of `weight`, and its degrees of freedom.
    """
    rest = values
    for axis in range(values.ndim):
        rest = rest - rest.mean(axis=axis, keepdims=True)
    dof = math.prod(side - 1 for side in values.shape)
    return weight**2 * float((rest**2).sum()) / dof / values.size, float(dof)


def images_difference(differences: Array) -> Estimate:
    """Test a mean of paired differences over test images.

    Where each image was judged once by either network and few are judged differently,
    this is McNemar's exact test; it becomes a sign-flip permutation test where several
    seeds were averaged, and a paired t-test where many images are judged differently.

    Args:
        differences: Difference of the verdicts on each image, float [images].

    Source:
        McNemar 1947; Dwass 1957 (permutation).
    """
    from scipy import stats

    value, over = float(differences.mean()), (_NAMES[_IMAGES],)
    moved = differences[np.abs(differences) > 1e-12]
    if not len(moved):
        return Estimate(value, value, value, 1.0, over)
    if len(moved) > FEW_IMAGES:
        test = stats.ttest_1samp(differences, 0.0)
        low, high = test.confidence_interval(0.95)
        return Estimate(value, float(low), float(high), float(test.pvalue), over)
    if np.ptp(np.abs(moved)) <= 1e-12:
        exact = stats.binomtest(int((moved > 0).sum()), len(moved))
        ends = exact.proportion_ci(0.95)
        # Given how many images are judged differently.
        scale = float(np.abs(moved[0])) * len(moved) / len(differences)
        low, high = ((2 * end - 1) * scale for end in (ends.low, ends.high))
        return Estimate(value, float(low), float(high), float(exact.pvalue), over)
    return Estimate(value, p=signs_p(moved), over=over)
