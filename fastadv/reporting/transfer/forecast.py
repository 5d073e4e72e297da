"""What difference a design can find, from the spread that a results table shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median, variance

import numpy as np
from numpy.typing import NDArray

from fastadv.reporting.transfer.pairs import Comparison, Runs
from fastadv.statistics.crossed import LEAST_RUNS, LEAST_SEEDS
from fastadv.statistics.power import Design


def forecast_text(found: Sequence[Comparison]) -> list[str]:
    """Say what the primary tests of a table can find; nothing where there are none.

    Args:
        found: The primary comparisons.
    """
    if not found:
        return []
    covered = all("test images" in each.estimate.over for each in found)
    again = all("source runs" in each.estimate.over for each in found)
    sizes = [n for each in found if (n := each.robust.first.first.target.num_test)]
    spread = _spread(found)
    design = Design(
        seeds=min(len(each.seeds) for each in found),
        runs=min(map(_runs, found)) if again else 1,
        sets=len(found),
        radii=max(each.among for each in found),
        images=round(median(sizes)) if covered and sizes else None,
        **spread,
        measured=tuple(spread),
    )
    return [f"What this can find. {' '.join(design.sentences())}"]


def _spread(found: Sequence[Comparison]) -> dict[str, float]:
    """Return the standard deviations of the comparisons, where known, as of `Design`."""
    sides = [
        np.array(
            [[cell.rows[seed].value for seed in each.seeds] for cell in side.cells]
        )
        for each in found
        for side in each.key
        if len(side.cells) >= LEAST_RUNS
        and len({cell.arch for cell in side.cells}) == 1
    ]
    crossed = [_interaction(side) for side in sides if side.shape[1] > 1]
    both = fmean(crossed) if crossed else 0.0
    # Means over seeds, or over runs, have a part of what pairs of both draw.
    runs = [
        max(0.0, float(side.mean(1).var(ddof=1)) - both / side.shape[1])
        for side in sides
    ]
    seeds = [
        variance(by_seed) + both * sum(1 - 1 / len(side.cells) for side in each.key)
        for each in found
        if len(by_seed := _by_seed(each)) >= LEAST_SEEDS
    ]
    images = [sd for each in found if (sd := each.estimate.sd_images) is not None]
    leads = [each.difference for each in found]
    spread = {}
    if seeds:
        spread["sd_seeds"] = fmean(seeds) ** 0.5
    if runs:
        spread["sd_runs"] = fmean(runs) ** 0.5
    if crossed:
        spread["sd_both"] = both**0.5
    if len(leads) >= LEAST_SEEDS:
        spread["sd_sets"] = variance(leads) ** 0.5
    if images:  # the variance of points of 100 where a share of images differs
        spread["disagreement"] = min(1.0, fmean((sd / 100) ** 2 for sd in images))
    return spread


def _interaction(values: NDArray[np.float64]) -> float:
    """Return the variance of what pairs of run and seed draw, of values [runs, seeds]."""
    runs, seeds = values.shape
    rest = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    return float((rest**2).sum() / ((runs - 1) * (seeds - 1)))


def _runs(each: Comparison) -> int:
    """Return the smallest number of source runs of an architecture on either side."""
    return min(
        count
        for side in each.key
        for count in Counter(cell.arch for cell in side.cells).values()
    )


def _by_seed(each: Comparison) -> list[float]:
    """Return robust - standard by seed, means over source runs."""

    def mean(side: Runs, seed: int) -> float:
        return fmean(cell.rows[seed].value for cell in side.cells)

    return [mean(each.robust, s) - mean(each.standard, s) for s in each.seeds]
