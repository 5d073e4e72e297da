"""Transfer by any protocol, and the row each seed leaves behind."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from fastadv.data.metric import is_own
from fastadv.data.sets.subsets import readable
from fastadv.errors import FastadvError
from fastadv.evaluation.accuracy import Evaluation
from fastadv.evaluation.judging import evaluate
from fastadv.evaluation.rows import store
from fastadv.kernels import use_backend
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable
from fastadv.transfer import fixed, tuned
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.experiment import Experiment, Fitted, SeedSplit
from fastadv.transfer.history import history_arrays
from fastadv.transfer.keeping import kept_network
from fastadv.transfer.rows import transfer_rows

log = logging.getLogger(__name__)


class TransferRun:
    """One source on one data set, with every seed.

    Args:
        config: The choices of the experiment.
        table: Where rows go; by default the table at `config.results`.

    Raises:
        CheckpointError, DataError, ConfigError: The source, the data set or the choices
            are unusable.
    """

    def __init__(
        self, config: TransferConfig, table: ResultsTable | None = None
    ) -> None:
        self.config = config
        self.experiment = Experiment(config)
        self.table = table or ResultsTable(config.results)

    def rows(self) -> Iterator[Row]:
        """Run every seed; each row is in the table before it is yielded.

        Raises:
            OutputError: A row could not be stored; it is in the log.
        """
        splits = [self.experiment.split(seed) for seed in self.config.seeds]
        self.table.prepare()
        with use_backend(self.config.backend):
            began = time.monotonic()
            for split, fitted in zip(splits, self._fit(splits), strict=True):
                found = self._judge(fitted)
                network, reason = kept_network(self.experiment, fitted)
                rows = transfer_rows(
                    self.experiment,
                    split,
                    fitted,
                    found,
                    not_kept=reason,
                    time=datetime.now(UTC),
                    wall_seconds=round(time.monotonic() - began, 2),
                )
                yield from self._store(rows, found, fitted, network)
                began = time.monotonic()

    def _fit(self, splits: Sequence[SeedSplit]) -> Iterator[Fitted]:
        if self.config.on_cached_features:
            return fixed.fit(self.experiment, splits)
        return (tuned.fit(self.experiment, split) for split in splits)

    def _judge(self, fitted: Fitted) -> Evaluation:
        """Measure accuracy on the test images, also under attack if there is one."""
        experiment, attack = self.experiment, self.experiment.attack
        if fitted.head is not None and attack is None:
            return fitted.head.evaluate(experiment.features.test())
        if fitted.model is None:
            raise AssertionError("a network without a linear head is not attacked")
        loader = experiment.loader(experiment.splits.test, train=False)
        logits = self.config.keeps("heads") or is_own(experiment.splits.metric)
        found = evaluate(fitted.model, loader, attack, keep_logits=logits)
        experiment.note_bad(loader)
        return found

    def _store(
        self, rows: list[Row], found: Evaluation, fitted: Fitted, network: bytes | None
    ) -> list[Row]:
        """Append the rows of one seed, and keep what is to be kept beside them."""
        try:
            return store(
                self.table,
                rows,
                found,
                readable(self.experiment.opened.test, self.experiment.bad_images),
                self.config,
                more=history_arrays(fitted.history),
                network=network,
            )
        except FastadvError:
            # The numbers must not be lost with the disk that was to hold them.
            for row in rows:
                log.error("the row was: %s", json.dumps(asdict(row), default=str))
            raise


def transfer(config: TransferConfig) -> list[Row]:
    """Run a transfer experiment and return its rows, which the table then has, too."""
    return list(TransferRun(config).rows())
