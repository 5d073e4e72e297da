"""What every analysis has in common: it yields numbers and arrays, once.

An analysis is a function that opens a source and images, describes what it will compute
in a typed setting, and hands the computation to `measure_once`. A setting that the
results table has is not computed again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastadv.environment import provenance
from fastadv.results.identity import digest, make_identity
from fastadv.results.row import (
    AttackRecord,
    Provenance,
    Row,
    SourceRecord,
    TargetRecord,
)
from fastadv.results.settings import Setting
from fastadv.results.table import ResultsTable

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


@dataclass(frozen=True)
class Findings:
    """What an analysis found: at least one number, and arrays by name."""

    numbers: Sequence[Measured]
    arrays: Mapping[str, np.ndarray]


def measure_once(
    table: ResultsTable,
    compute: Callable[[], Findings],
    *,
    source: SourceRecord,
    target: TargetRecord,
    setting: Setting,
    seed: int = 0,
    attack: AttackRecord | None = None,
) -> list[Row]:
    """Return the rows of an analysis: those of the table, or newly computed ones.

    Args:
        table: The results table, to which new rows are added with their arrays.
        compute: Computes the numbers; called only if the table lacks them.
        source: The network.
        target: The images.
        setting: What is computed and how. With source, target and seed it defines the
            numbers.
        seed: Seed of everything that is drawn.
        attack: The attack that the numbers are about; None for clean images.

    Raises:
        DataError: The table cannot be read.
        OutputError: The table cannot be written.
    """
    experiment = make_identity(source, target, setting, seed=seed, attack=attack)
    if known := table.rows(experiment=experiment):
        log.info("%s is in %s already", known[0].setting_label, table.path)
        return known
    began = time.monotonic()
    found = compute()
    name = table.save_arrays(experiment, found.arrays) if found.arrays else None
    rows = [
        Row(
            identity=digest([experiment, number.metric]) if position else experiment,
            experiment=experiment,
            source=source,
            target=target,
            setting=setting,
            seed=seed,
            attack=attack,
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
    return rows
