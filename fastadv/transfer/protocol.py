"""Transfer by any protocol, and the row each seed leaves behind."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from fastadv.attacks import PGD
from fastadv.environment import provenance
from fastadv.errors import FastadvError
from fastadv.evaluation.evaluate import evaluate
from fastadv.kernels import use_backend
from fastadv.results.legacy import LegacyTable
from fastadv.transfer import fixed, tuned
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.experiment import Experiment, Fitted, SeedSplit
from fastadv.transfer.identity import row_identity
from fastadv.transfer.outcome import Outcome
from fastadv.transfer.target import target_name

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
        self, config: TransferConfig, table: LegacyTable | None = None
    ) -> None:
        self.config = config
        self.experiment = Experiment(config)
        self.table = table or LegacyTable(config.results)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Run every seed; each row is in the table before it is yielded."""
        splits = [self.experiment.split(seed) for seed in self.config.seeds]
        self.table.prepare()
        with use_backend(self.config.backend):
            began = time.monotonic()
            for split, fitted in zip(splits, self._fit(splits), strict=True):
                outcome = self._judge(fitted)
                row = self._row(split, outcome, time.monotonic() - began)
                try:
                    self.table.append([row])
                except FastadvError:
                    # The number must not be lost with the disk that was to hold it.
                    log.error("the row was: %s", json.dumps(row, default=str))
                    raise
                yield row
                began = time.monotonic()

    def _fit(self, splits: Sequence[SeedSplit]) -> Iterator[Fitted]:
        if self.config.on_cached_features:
            return fixed.fit(self.experiment, splits)
        return (tuned.fit(self.experiment, split) for split in splits)

    def _attack(self) -> PGD | None:
        threat = self.experiment.threat
        return None if threat is None else PGD.judge(threat, self.config.robust_steps)

    def _judge(self, fitted: Fitted) -> Outcome:
        """Measure accuracy on the test images, also under attack if that is asked for."""
        experiment, attack = self.experiment, self._attack()
        clean, robust = None, None
        if fitted.head is not None:
            clean = fitted.head.accuracy(experiment.features.test())
        if fitted.model is not None and (clean is None or attack is not None):
            loader = experiment.loader(experiment.splits.test, train=False)
            found = evaluate(fitted.model, loader, attack)
            experiment.note_bad(loader)
            clean, robust = clean or found.clean, found.robust
        if clean is None:
            raise AssertionError("a fit has a head or a network")
        return Outcome(clean, fitted.value, fitted.chosen, robust)

    # ---- the row ----

    def _row(
        self, split: SeedSplit, outcome: Outcome, seconds: float
    ) -> dict[str, Any]:
        experiment, procedure = self.experiment, self.experiment.procedure
        source, splits = experiment.source, experiment.splits
        num_train, num_val = len(split.train), 0
        if split.val is not None and split.val is not splits.test:
            num_val = len(split.val)
        return {
            "time": datetime.now(UTC),
            "source": source.name,
            "source_path": str(source.file),
            "source_given": self.config.source,
            "source_hash": source.digest,
            "arch": source.arch,
            "source_norm": source.norm,
            "source_eps": source.eps,
            "dataset": target_name(self.config, splits),
            "dataset_fingerprint": splits.train.fingerprint,
            "resolution": experiment.resolution,
            "mode": self.config.mode,
            "protocol": self.config.protocol,
            "select_on": procedure.select_on,
            "num_train": num_train,
            "num_val": num_val,
            "num_test": len(splits.test),
            "num_classes": len(splits.train.classes),
            "seed": split.seed,
            "hyperparameters": json.dumps(
                {"augment": procedure.augment}
                | outcome.chosen
                | {"val_fraction": self.config.val_fraction}
            ),
            "metric": splits.metric,
            "bad_images": len(experiment.bad_images),
            "wall_seconds": round(seconds, 2),
            "environment": json.dumps(provenance()),
            "identity": row_identity(
                self.config,
                split.seed,
                source,
                experiment.opened,
                experiment.resolution,
            ),
            "num_pool": num_train + num_val,
            "num_available": len(splits.train),
            "class_names": list(splits.train.classes),
            "source_accuracy": self.config.source_accuracy,
            "k_blocks": self.config.k,
            "downscale": self.config.downscale,
            "notes": procedure.notes,
            **outcome.columns(splits.metric, self._attack()),
        }


def transfer(config: TransferConfig) -> list[dict[str, Any]]:
    """Run a transfer experiment and return its rows, which the table then has, too."""
    return list(TransferRun(config).rows())
