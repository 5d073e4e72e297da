"""What a transfer found, as rows of the results table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fastadv.attacks.contract import Attack
from fastadv.environment import provenance
from fastadv.evaluation.accuracy import Evaluation, ImageVerdicts
from fastadv.evaluation.rows import accuracy_fields, source_record, target_record
from fastadv.results.identity import attacked_identity
from fastadv.results.row import (
    AttackRecord,
    Provenance,
    Row,
    TargetRecord,
)
from fastadv.results.settings import TransferSetting
from fastadv.transfer.experiment import Experiment, Fitted, SeedSplit
from fastadv.transfer.features import Features
from fastadv.transfer.heads import LinearHead
from fastadv.transfer.identity import row_identity
from fastadv.transfer.target import target_name


def transfer_rows(
    experiment: Experiment,
    split: SeedSplit,
    fitted: Fitted,
    found: Evaluation,
    attack: Attack | None,
    **more: Any,
) -> list[Row]:
    """Return the row of the clean accuracy and, after an attack, that of the robust one.

    Args:
        experiment: Source, data set and procedure.
        split: The images of the seed.
        fitted: What was fitted to them.
        found: Its accuracies.
        attack: The attack of `found.robust`.
        more: Further fields of `Row` that both have.
    """
    config, procedure = experiment.config, experiment.procedure
    identity = row_identity(
        config,
        split.seed,
        experiment.source,
        experiment.opened,
        experiment.resolution,
    )
    common: dict[str, Any] = {
        "experiment": identity,
        "source": replace(
            source_record(experiment.source), accuracy=config.source_accuracy
        ),
        "target": _target(experiment),
        "setting": _setting(experiment, split, fitted),
        "seed": split.seed,
        "departures": procedure.departures,
        "defects": procedure.defects,
        "bad_images": len(experiment.bad_images),
        "provenance": Provenance.from_facts(provenance(), "fastadv-transfer"),
        **more,
    }
    value = None if fitted.value is None else 100 * fitted.value
    metric = experiment.splits.metric
    clean = accuracy_fields(found.clean, metric)
    rows = [Row(identity=identity, val_value=value, **clean, **common)]
    if attack is not None and found.robust is not None:
        rows.append(
            Row(
                identity=attacked_identity(identity),
                attack=AttackRecord.from_description(attack.describe()),
                **accuracy_fields(found.robust, metric),
                **common,
            )
        )
    return rows


def evaluate_head(head: LinearHead, features: Features) -> Evaluation:
    """Return the accuracy of a head on the features of clean images."""
    clean = head.accuracy(features)
    right = torch.from_numpy(head.right(features))
    labels = torch.from_numpy(features.labels)
    return Evaluation(clean, images=ImageVerdicts(labels, right.long() - 1))


def _target(experiment: Experiment) -> TargetRecord:
    config, splits = experiment.config, experiment.splits
    name = target_name(config, splits)
    return replace(
        target_record(splits.train, experiment.resolution, name),
        downscale=config.downscale,
        num_test=len(splits.test),
    )


def _setting(
    experiment: Experiment, split: SeedSplit, fitted: Fitted
) -> TransferSetting:
    config, splits = experiment.config, experiment.splits
    num_train, num_val = len(split.train), 0
    if split.val is not None and split.val is not splits.test:
        num_val = len(split.val)
    return TransferSetting(
        mode=config.mode,
        k_blocks=config.k,
        protocol=config.protocol,
        select_on=experiment.procedure.select_on,
        num_train=num_train,
        num_val=num_val,
        num_pool=num_train + num_val,
        num_available=len(splits.train),
        val_fraction=config.val_fraction,
        depends_on_seed=not config.seed_changes_nothing,
        **fitted.chosen,
    )
