"""Confidence intervals and tests of measured values, and what a design can find."""

from fastadv.statistics.intervals import (
    Line,
    agree,
    fit_line,
    holm,
    mean_interval,
    median_interval,
    t_quantile,
    t_two_sided,
    wilson,
)

__all__ = [
    "Line",
    "agree",
    "fit_line",
    "holm",
    "mean_interval",
    "median_interval",
    "t_quantile",
    "t_two_sided",
    "wilson",
]
