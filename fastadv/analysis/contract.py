"""What every analysis has in common: it yields numbers and arrays, once.

The module of an analysis has a function `prepare`, which opens a source and images and
returns an `Analysis`: what will be computed, as a typed setting, and the computation.
`measure_once` runs it, unless the results table has its rows; `running` runs many.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastadv import __version__
from fastadv.environment import provenance
from fastadv.results.identity import digest, make_identity
from fastadv.results.portions import UNFINISHED, Portions, Share
from fastadv.results.row import (
    AttackRecord,
    Provenance,
    Row,
    SourceRecord,
    TargetRecord,
)
from fastadv.results.settings import Setting
from fastadv.results.table import ResultsTable
from fastadv.statistics import mean_interval, wilson

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """A number that an analysis found.

    Attributes:
        metric: Name of the number; one analysis gives each name once.
        value: The number: percent for shares of images, else in the unit of the metric.
        low, high: Ends of its 95 % interval; None without one.
        n: Number of images that it is over.
    """

    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @classmethod
    def mean_of(cls, metric: str, values: np.ndarray) -> Measured:
        """Return the mean over images, with its t-interval where there are three or more."""
        mean, low, high = mean_interval(values.tolist())
        if len(values) < 3:
            return cls(metric, mean, n=len(values))
        return cls(metric, mean, low, high, len(values))

    @classmethod
    def share_of(cls, metric: str, count: int, n: int) -> Measured:
        """Return the share of `n` images, in percent, with Wilson's interval."""
        low, high = wilson(count, n)
        return cls(metric, 100 * (count / n), 100 * low, 100 * high, n)


@dataclass(frozen=True)
class Findings:
    """What an analysis found: at least one number, and arrays by name."""

    numbers: Sequence[Measured]
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Analysis:
    """An analysis that is ready to be computed.

    Attributes:
        source: The network.
        target: The images.
        setting: What is computed and how. With source, target and seed it defines the
            numbers.
        compute: Computes the numbers. It takes finished portions of its work from what it
            is given, and leaves new ones there.
        seed: Seed of everything that is drawn.
        attack: The attack that the numbers are about; None for clean images.
        shared: Whether several processes can compute its portions; what follows them is
            the work of one.
    """

    source: SourceRecord
    target: TargetRecord
    setting: Setting
    compute: Callable[[Portions], Findings]
    seed: int = 0
    attack: AttackRecord | None = None
    shared: bool = True

    @cached_property
    def experiment(self) -> str:
        """Identity of the experiment, which is that of its first row."""
        return make_identity(
            self.source, self.target, self.setting, seed=self.seed, attack=self.attack
        )

    def __str__(self) -> str:
        return f"{self.setting.kind} of {self.source.name} ({self.setting.label()})"


def measure_once(
    table: ResultsTable, analysis: Analysis, share: Share | None = None
) -> list[Row]:
    """Return the rows of an analysis: those of the table, or newly computed ones.

    Args:
        table: The results table, to which new rows are added with their arrays. Portions
            of unfinished work are kept in its folder until then.
        analysis: What is computed, if the table lacks it.
        share: The share of this process, where several compute the analysis.

    Raises:
        ShareDone: This process only helped, and leaves the rows to another.
        DataError: The table cannot be read.
        OutputError: The table cannot be written.
    """
    experiment = analysis.experiment
    if known := table.rows(experiment=experiment):
        log.info("%s is in %s already", known[0].setting_label, table.path)
        return known
    began = time.monotonic()
    # Another version may compute otherwise.
    key = digest([experiment, __version__])
    portions = Portions(table.path / UNFINISHED / key, share)
    found = analysis.compute(portions)
    name = table.save_arrays(experiment, found.arrays) if found.arrays else None
    rows = [
        Row(
            identity=digest([experiment, number.metric]) if position else experiment,
            experiment=experiment,
            source=analysis.source,
            target=analysis.target,
            setting=analysis.setting,
            seed=analysis.seed,
            attack=analysis.attack,
            metric=number.metric,
            value=number.value,
            low=number.low,
            high=number.high,
            n=number.n,
            arrays=name,
            wall_seconds=round(time.monotonic() - began, 2),
            provenance=Provenance.from_facts(provenance(), "fastadv-analyze"),
        )
        for position, number in enumerate(found.numbers)
    ]
    table.append(rows)
    portions.discard()
    return rows
