"""Pairs of sources as arrays: by source run, by seed and, where kept, by test image."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import numpy as np

from fastadv.errors import DataError
from fastadv.reporting.transfer.cells import Cell
from fastadv.results.row import Row
from fastadv.results.table import Arrays
from fastadv.results.verdicts import Verdicts, check_paired, read_verdicts
from fastadv.statistics.crossed import Array, Estimate, crossed_difference

log = logging.getLogger(__name__)

Pair = tuple[tuple[Cell, ...], tuple[Cell, ...]]
"""Robust source runs, and the standard ones they are compared with."""

Found = tuple[tuple[int, ...], Estimate, str]
"""Seeds that are paired, what was estimated, and why kept verdicts were not paired."""

_KEPT_ROWS = 200  # whose verdicts stay in memory


class Pairing:
    """Estimates differences; each of them, and each file of verdicts, is read once.

    Args:
        arrays: Reads the arrays of a row, such as `ResultsTable.arrays`, with the verdicts
            on test images; without it no verdicts are known.
    """

    def __init__(self, arrays: Arrays | None = None) -> None:
        self._arrays = arrays
        self._found: dict[tuple[Pair, ...], Found | None] = {}
        self._read = functools.lru_cache(_KEPT_ROWS)(self._verdicts)

    def estimate(self, pairs: Sequence[Pair], metric: str) -> Found | None:
        """Estimate robust - standard in points of percent, the mean over several pairs.

        Args:
            pairs: Source runs to compare; several where architectures are averaged.
            metric: `top1` or `mean_per_class`.

        Returns:
            The seeds, the estimate and a reason; None if no seed is in all cells.
        """
        key = tuple(pairs)
        if key not in self._found:
            self._found[key] = self._estimate(key, metric)
        return self._found[key]

    def _estimate(self, pairs: Sequence[Pair], metric: str) -> Found | None:
        groups = [cells for pair in pairs for cells in pair]
        weights = [sign / len(pairs) for _ in pairs for sign in (1, -1)]
        cells = [cell for group in groups for cell in group]
        seeds = tuple(s for s in cells[0].rows if all(s in c.rows for c in cells))
        if not seeds:
            return None
        tables = [[[c.rows[seed] for seed in seeds] for c in group] for group in groups]
        refused = ""
        arrays: list[Array] | None = None
        try:
            arrays = self._on_images(tables, metric)
        except DataError as error:
            refused = str(error)
        if arrays is None:
            arrays = [np.array([[r.value for r in run] for run in g]) for g in tables]
        return seeds, crossed_difference(arrays, weights), refused

    def _on_images(
        self, tables: Sequence[Sequence[Sequence[Row]]], metric: str
    ) -> list[Array] | None:
        """Return verdicts whose means are accuracies in percent, [runs, seeds, images].

        Raises:
            DataError: They are on different images.
        """
        rows = [row for group in tables for run in group for row in run]
        if self._arrays is None or any(
            r.arrays is None or not r.identity for r in rows
        ):
            return None
        known = {row.identity: self._read(row) for row in rows}
        found = {identity: v for identity, v in known.items() if v is not None}
        if len(found) < len(known):
            return None
        first = next(iter(found.values()))
        for each in found.values():
            check_paired(first, each)
        weights = np.full(len(first.labels), 100.0)
        if metric == "mean_per_class":
            # Classes count alike; those without test images do not count at all.
            _, place, count = np.unique(
                first.labels, return_inverse=True, return_counts=True
            )
            weights *= len(first.labels) / (len(count) * count[place])
        return [
            np.array(
                [[weights * found[row.identity].right for row in run] for run in group]
            )
            for group in tables
        ]

    def _verdicts(self, row: Row) -> Verdicts | None:
        if self._arrays is None:
            return None
        try:
            return read_verdicts(self._arrays, row)
        except DataError as error:
            log.warning("%s", error)
            return None
