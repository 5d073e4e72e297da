"""Source runs that were trained alike, and pairs of them: robust against standard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from fastadv.reporting.transfer.cells import Cell, Place, seeds_interval
from fastadv.statistics.crossed import Estimate


@dataclass(frozen=True)
class Runs(Place):
    """Source runs: networks of one architecture that were trained alike, transferred alike.

    Attributes:
        cells: One per source run.
    """

    cells: tuple[Cell, ...]

    @property
    def first(self) -> Cell:
        """The first of the source runs."""
        return self.cells[0]

    @property
    def mean(self) -> float:
        """Mean accuracy over source runs and seeds."""
        return self.interval()[0]

    def interval(self) -> tuple[float, float, float]:
        """Return mean and 95 % interval; see `seeds_interval`."""
        seeds = [s for s in self.first.rows if all(s in c.rows for c in self.cells)]
        runs = [[cell.rows[seed] for seed in seeds] for cell in self.cells]
        return seeds_interval(*runs) if seeds else self.first.interval()

    @property
    def validation(self) -> float | None:
        """Mean of what hyper-parameters were chosen on; None where nothing was."""
        known = [cell.validation for cell in self.cells]
        return None if None in known else fmean(v for v in known if v is not None)

    @property
    def complete(self) -> bool:
        """Whether all training images there are were used."""
        return self.first.complete

    @property
    def label(self) -> str:
        """How the sources were trained, and how many there are if there are several."""
        if len(self.cells) == 1:
            return self.first.label
        return f"{self.first.training}, {len(self.cells)} runs"

    def published(self, names: Mapping[str, str]) -> float | None:
        """Return the published number; see `Cell.published`."""
        return self.first.published(names)

    def unlike_published(self, names: Mapping[str, str]) -> list[str]:
        """Return the differences of the experiments from the published one."""
        found = (how for cell in self.cells for how in cell.unlike_published(names))
        return list(dict.fromkeys(found))


@dataclass(frozen=True, eq=False)
class Comparison(Place):
    """Robust sources of one radius against the standard ones of their architecture.

    It has the condition, architecture, threat and number of images of the robust ones.

    Attributes:
        robust: The robust source runs.
        standard: The standard source runs, under the same condition.
        by: What the best of several radii was chosen on, `val` or `test`; empty where
            there was only one.
        among: Number of radii that the choice was among and that the correction has to
            count; 1 where the choice cannot follow the luck of what is tested over.
        seeds: Seeds that all source runs have; the differences are paired by them.
        estimate: Mean of robust - standard in points of percent, and its test.
        refused: Why verdicts on single images were kept and could not be paired; empty
            otherwise.
        primary: Whether the pair belongs to the primary family of tests.
        adjusted: The p-value after Holm's correction for the family of the pair.
    """

    robust: Runs
    standard: Runs
    by: str
    among: int
    seeds: tuple[int, ...]
    estimate: Estimate
    refused: str = ""
    primary: bool = False
    adjusted: float | None = None

    @property
    def key(self) -> tuple[Runs, Runs]:
        """What is compared: the same in all sections that ask for the pair."""
        return self.robust, self.standard

    @property
    def difference(self) -> float:
        """Mean of robust - standard, points of percent."""
        return self.estimate.value

    @property
    def p(self) -> float | None:
        """The p-value before correction; None where nothing was tested."""
        return self.estimate.p

    @property
    def label(self) -> str:
        """Label of the robust sources, and of standard ones where those are several."""
        several = len(self.standard.cells) > 1
        beside = f" - {self.standard.label}" if several else ""
        return self.robust.label + beside

    def interval(self) -> tuple[float, float, float]:
        """Return the difference and the ends of its interval, points of percent.

        Both ends are the difference where there is no interval.
        """
        value, low, high = self.difference, self.estimate.low, self.estimate.high
        return value, value if low is None else low, value if high is None else high

    def published(self, names: Mapping[str, str]) -> float | None:
        """Return the published difference, in points; see `Cell.published`."""
        robust, standard = self.robust.published(names), self.standard.published(names)
        return None if robust is None or standard is None else robust - standard

    def unlike_published(self, names: Mapping[str, str]) -> list[str]:
        """Return the differences of either side from its published counterpart."""
        sides = (self.robust, self.standard)
        found = (how for side in sides for how in side.unlike_published(names))
        return list(dict.fromkeys(found))

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.adjusted is not None and self.adjusted < 0.05

    @property
    def untested(self) -> str:
        """Why there is no p-value; empty where there is one."""
        return f"not tested: {self.estimate.why}" if self.estimate.why else ""
