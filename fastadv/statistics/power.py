"""What difference a design of seeds, source runs and data sets can find."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from fastadv.statistics.across import LEAST_SETS
from fastadv.statistics.components import Array, Factors, sum_of_components
from fastadv.statistics.crossed import LEAST_RUNS, LEAST_SEEDS

POWER: Final = 0.8
"""Share of repetitions in which a design should find a difference."""

ALPHA: Final = 0.05
"""Share of wrong findings that is accepted, over a whole family of tests."""

ASSUMED_SD_SEEDS: Final = 0.26
"""Standard deviation over seeds of robust minus standard, in points.

It is the square root of 2 times 0.18 points, which is the root mean square over 96
published cells of the spread of three trials (full network; 0.15 points with fixed
features). Source: Salman et al. 2020 (2007.08489), error bars of the bars by architecture.
"""

ASSUMED_SD_RUNS: Final = 0.5
"""Standard deviation over source runs of the accuracy of one radius, in points.

No published study trained its sources more than once, so this is a guess.
"""

ASSUMED_SD_SETS: Final = 2.0
"""Standard deviation over data sets of the true lead, in points; a guess."""

ASSUMED_DISAGREEMENT: Final = 0.1
"""Share of test images that a robust and a standard source judge differently; a guess."""

_DRAWS = 20_000  # of what an experiment could estimate; the power is exact to 0.5 %

_RUNS, _SEEDS, _IMAGES = range(3)  # what is drawn

# Of each set of them its mean squares as variances, with degrees of freedom.
Squares = tuple[tuple[Factors, tuple[tuple[float, float], ...]], ...]

_FACTORS = {
    "sd_seeds": "over seeds",
    "sd_runs": "over source runs",
    "sd_both": "of each pair of source run and seed",
    "sd_sets": "over data sets",
}


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is repeated in a comparison of robust and standard sources.

    Attributes:
        seeds: Seeds of each transfer.
        runs: Source runs per radius: networks pretrained alike with other seeds.
        sets: Target data sets, which is the number of tests in the primary family.
        radii: Robust radii of which the best on validation images is tested. The p-value
            is multiplied by their number, as the choice may follow the luck of the seeds.
        sd_seeds: Standard deviation over seeds of robust minus standard of one pair of
            source runs on one data set, in points.
        sd_runs: Standard deviation over source runs of the accuracy of one radius on one
            data set, in points. It does not count with a single run.
        sd_both: Standard deviation, of the accuracy of one radius on one data set, of what
            each pair of source run and seed draws anew, in points; a part of `sd_seeds`. It
            does not count with a single run.
        sd_sets: Standard deviation over data sets of the true lead, in points.
        images: Test images of a data set, where the test covers their draw because the
            verdicts on them are kept; None where it does not.
        disagreement: Share of the test images that the two judge differently, in [0, 1].
        measured: Names of the fields above that were measured; all others are assumed.
    """

    seeds: int
    runs: int = 1
    sets: int = 1
    radii: int = 1
    sd_seeds: float = ASSUMED_SD_SEEDS
    sd_runs: float = ASSUMED_SD_RUNS
    sd_both: float = 0.0
    sd_sets: float = ASSUMED_SD_SETS
    images: int | None = None
    disagreement: float = ASSUMED_DISAGREEMENT
    measured: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("seeds", "runs", "sets", "radii", "images"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name}={count}; it must be at least 1")
        for name in _FACTORS:
            sd = getattr(self, name)
            if not (sd >= 0 and math.isfinite(sd)):
                raise ValueError(f"{name}={sd}; it must be a finite number, at least 0")
        if not 0 <= self.disagreement <= 1:
            raise ValueError(
                f"disagreement={self.disagreement}; it must be a share in [0, 1]"
            )

    @property
    def tests_seeds(self) -> bool:
        """Whether there are enough seeds for a test over seeds."""
        return self.seeds >= LEAST_SEEDS

    @property
    def tests_runs(self) -> bool:
        """Whether there are enough source runs for a claim about sources trained again."""
        return self.runs >= LEAST_RUNS

    @property
    def tests(self) -> int:
        """How many times smaller than 0.05 the smallest p-value has to be."""
        return self.sets * self.radii

    def mean_squares(self) -> Squares:
        """Return the mean squares that an experiment estimates the variance of a lead from.

        It is empty where nothing can be tested over: too few seeds, too few source runs
        and no verdicts on test images.
        """
        found: list[tuple[Factors, tuple[tuple[float, float], ...]]] = []
        both = self._both
        if self.tests_runs:
            runs = self.sd_runs**2 / self.runs + both
            found.append(((_RUNS,), ((runs, self.runs - 1),) * 2))
        if self.tests_seeds:
            apart = max(0.0, self.sd_seeds**2 - 2 * self.seeds * self.runs * both)
            seeds = apart / self.seeds + 2 * both
            found.append(((_SEEDS,), ((seeds, self.seeds - 1),)))
        if both and self.tests_seeds:
            dof = (self.runs - 1) * (self.seeds - 1)
            found.append(((_RUNS, _SEEDS), ((both, dof),) * 2))
        if self.images and self.images > 1:
            variance = 1e4 * self.disagreement / self.images
            found.append(((_IMAGES,), ((variance, self.images - 1),)))
        return tuple(found)

    @property
    def _both(self) -> float:
        """The variance that pairs of run and seed give to the mean of a radius."""
        pairs = self.runs * self.seeds
        return self.sd_both**2 / pairs if self.tests_runs else 0.0

    def power(self, difference: float) -> float:
        """Return the probability to find a true lead on one data set, in [0, 1].

        The level is that of the smallest p-value of the family after correction.

        Args:
            difference: The true lead, in points.
        """
        return _power(difference, self.mean_squares(), ALPHA / self.tests)

    def detectable(self) -> float:
        """Return the lead on one data set that is found with 80 % power, in points.

        The level is that of `power`. The lead is infinite where there is no test.
        """
        return _detectable(self.mean_squares(), ALPHA / self.tests)

    def detectable_mean(self) -> float:
        """Return the mean lead over data sets that is found with 80 % power, in points.

        It is infinite for a single data set.
        """
        variance = self.sd_sets**2 + _variance(self.mean_squares())
        over_sets = ((), ((variance / self.sets, self.sets - 1),))
        return _detectable((over_sets,), ALPHA)

    def sentences(self) -> list[str]:
        """Say in whole sentences what the design can find, and what it cannot."""
        runs = _count(self.runs, "source run")
        counts = f"{_count(self.seeds, 'seed')} and {runs} per radius"
        family = [
            _count(number, what)
            for number, what in ((self.sets, "data set"), (self.radii, "radii"))
            if number > 1
        ]
        holm = f" after correction for {' and '.join(family)}" * bool(family)
        found = []
        if not (self.tests_seeds or self.tests_runs):
            found.append(
                f"{counts} allow no test over seeds or source runs; for that at least "
                f"{LEAST_SEEDS} seeds are needed."
            )
        if math.isfinite(least := self.detectable()):
            found.append(
                f"With {counts}, a lead of {least:.2f} points on one data set is found with "
                f"80 % power at the 5 % level{holm}; smaller ones are more often missed."
            )
        found += self._over_sets() + self._spreads()
        if not self.tests_runs:
            found.append(
                "With one source run per radius the claim is about those very networks, "
                "not about pretraining with that radius."
            )
        if self.images is None:
            found.append("Other test images are not covered.")
        return found

    def _over_sets(self) -> list[str]:
        if self.sets < LEAST_SETS:
            return []
        wins = wins_needed(self.sets)
        text = (
            f"a lead on at least {wins} of them"
            if wins
            else "at least 6 data sets, whatever the leads"
        )
        return [
            f"Over {self.sets} data sets, a mean lead of {self.detectable_mean():.2f} points "
            f"is found with 80 % power; the sign test needs {text}."
        ]

    def _spreads(self) -> list[str]:
        used = {
            "sd_seeds": self.tests_seeds,
            "sd_runs": self.tests_runs,
            "sd_both": self.tests_runs and self.tests_seeds,
            "sd_sets": self.sets >= LEAST_SETS,
        }
        spreads = [
            f"{getattr(self, name):.2f} {_FACTORS[name]} ({self._origin(name)})"
            for name, counts in used.items()
            if counts
        ]
        found = []
        if spreads:
            found.append(
                f"This takes for the standard deviation in points {', '.join(spreads)}."
            )
        if self.images:
            share = f"{100 * self.disagreement:.0f} %"
            found.append(
                f"Of {self.images} test images, {share} are taken to be judged differently "
                f"({self._origin('disagreement')})."
            )
        return found

    def _origin(self, name: str) -> str:
        return "measured" if name in self.measured else "assumed"


def wins_needed(sets: int) -> int | None:
    """Return how many of `sets` leads the sign test needs for p < 0.05.

    It is None below six data sets, where even a lead on all of them is not enough.
    """
    from scipy import stats

    for wins in range(sets // 2, sets + 1):
        if wins * 2 > sets and stats.binomtest(wins, sets).pvalue < ALPHA:
            return wins
    return None


def _variance(squares: Squares) -> float:
    """Return the true variance of a lead: what pairs of run and seed add counts once."""
    sums = {key: sum(part for part, _ in parts) for key, parts in squares}
    return sum(sums.values()) - 2 * sums.get((_RUNS, _SEEDS), 0.0)


@functools.cache
def _thresholds(squares: Squares, alpha: float) -> Array:
    """Return draws of the difference that an experiment calls significant.

    Its variance and its degrees of freedom are estimated anew in every experiment.
    """
    from scipy import special

    draw = np.random.default_rng(0)
    drawn = {
        key: [(p * draw.chisquare(dof, _DRAWS) / dof, dof) for p, dof in parts]
        for key, parts in squares
    }
    variance, dof = sum_of_components(drawn)
    quantile = special.stdtrit(dof, 1 - alpha / 2)
    return np.asarray(quantile * np.sqrt(variance))


def _power(difference: float, squares: Squares, alpha: float) -> float:
    """Return the power of the test of `crossed.crossed_difference`.

    Args:
        difference: True difference.
        squares: Mean squares of the experiment.
        alpha: Level of the test, in (0, 1).
    """
    from scipy import special

    error = math.sqrt(_variance(squares))
    if error == 0:
        return 0.0
    needed, shift = _thresholds(squares, alpha) / error, abs(difference) / error
    found = special.ndtr(shift - needed) + special.ndtr(-shift - needed)
    return float(found.mean())


@functools.cache
def _detectable(squares: Squares, alpha: float) -> float:
    """Return the difference that is found with 80 % power; see `_power`."""
    from scipy import optimize

    error = math.sqrt(_variance(squares))
    if error == 0:
        return math.inf
    most = error
    while _power(most, squares, alpha) < POWER:
        most *= 2
    found = optimize.brentq(lambda d: _power(d, squares, alpha) - POWER, 0.0, most)
    return float(found)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 or noun == "radii" else f"{number} {noun}s"
