"""Leads across data sets: how many are ahead, by how much, and whether that is chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastadv.statistics.intervals import agree, mean_interval, signs_p

LEAST_SETS: Final = 3
"""Fewer data sets than this give no interval of the mean lead over data sets."""

TIE: Final = 1e-9
"""Leads up to this are ties: they are 0 but for rounding."""


@dataclass(frozen=True)
class SetsLead:
    """One lead per data set, summed up.

    Attributes:
        ahead: Number of data sets with a lead above 0.
        behind: Number of data sets with a lead below 0.
        ties: Number of data sets with a lead of exactly 0.
        mean: Mean lead.
        low: Lower end of the 95 % t-interval of the mean lead over data sets; None below
            three data sets, and where all leads agree exactly.
        high: Upper end of that interval; None likewise.
        sign_p: Two-sided p-value of the sign test, which leaves out ties; None where all
            are ties.
        rank_p: Two-sided p-value of Wilcoxon's signed-rank test; None where all are ties.
    """

    ahead: int
    behind: int
    ties: int
    mean: float
    low: float | None
    high: float | None
    sign_p: float | None
    rank_p: float | None


def sets_lead(leads: Sequence[float]) -> SetsLead:
    """Sum up one lead per data set, and test it across data sets.

    Data sets are the unit: leads of several architectures on one data set have to be
    averaged before. Wilcoxon's test ranks leads of 0 with all others and then leaves them
    out (Pratt's way). Its p-value is exact; only where leads are tied on more than 13 data
    sets is it that of 9,999 random changes of the signs.

    Args:
        leads: At least one lead, in points.

    Source:
        Wilcoxon 1945; Pratt 1959, on zeros in the signed-rank test.
    """
    from scipy import stats

    values = np.asarray(leads, dtype=np.float64)
    values[np.abs(values) <= TIE] = 0.0
    ahead, behind = int((values > 0).sum()), int((values < 0).sum())
    mean, low, high = mean_interval(values.tolist())
    certain = len(values) >= LEAST_SETS and not agree(values.tolist())
    sign_p = rank_p = None
    if ahead + behind:
        sign_p = float(stats.binomtest(ahead, ahead + behind).pvalue)
        rank_p = _signed_rank(values)
    return SetsLead(
        ahead=ahead,
        behind=behind,
        ties=len(values) - ahead - behind,
        mean=mean,
        low=low if certain else None,
        high=high if certain else None,
        sign_p=sign_p,
        rank_p=rank_p,
    )


def _signed_rank(values: NDArray[np.float64]) -> float:
    from scipy import stats

    sizes = np.abs(values)
    if len(np.unique(sizes)) == len(sizes) and sizes.all():
        return float(stats.wilcoxon(values, method="exact").pvalue)
    signed = stats.rankdata(sizes) * np.sign(values)
    return signs_p(signed[signed != 0])
