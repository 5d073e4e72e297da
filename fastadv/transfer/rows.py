"""What a transfer found, as rows of the results table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastadv.environment import provenance
from fastadv.evaluation.accuracy import Evaluation
from fastadv.evaluation.rows import measured_fields, source_record, target_record
from fastadv.results.identity import attacked_identity, measured_identity
from fastadv.results.row import AttackRecord, Provenance, Row, SourceRecord
from fastadv.results.settings import TransferSetting
from fastadv.transfer.experiment import Experiment, Fitted, SeedSplit
from fastadv.transfer.identity import row_identity


def transfer_rows(
    experiment: Experiment,
    split: SeedSplit,
    fitted: Fitted,
    found: Evaluation,
    **more: Any,
) -> list[Row]:
    """Return the row of the clean accuracy and, after an attack, that of the robust one.

    Args:
        experiment: Source, data set and procedure.
        split: The images of the seed.
        fitted: What was fitted to them.
        found: Its accuracies.
        more: Further fields of `Row` that both have.
    """
    config, splits = experiment.config, experiment.splits
    source, resolution = experiment.source, experiment.resolution
    planned = row_identity(config, split.seed, source, experiment.opened, resolution)
    bad, left_out = len(experiment.bad_images), len(splits.test) - found.clean.n
    identity = measured_identity(planned, bad, left_out)
    name = config.name_with_options(splits.name)
    options = experiment.options(train=False)
    num_train = len(split.train)
    num_val = len(split.val) if config.holds_out and split.val else 0
    common: dict[str, Any] = {
        "experiment": planned,
        "source": replace(source_record(source), accuracy=config.source_accuracy)
        if config.mode != "scratch"
        else SourceRecord(name=source.arch, arch=source.arch),
        "target": replace(
            target_record(splits.train, resolution, name),
            downscale=config.downscale,
            num_test=len(splits.test),
        ),
        "setting": TransferSetting(
            mode=config.mode,
            k_blocks=config.k,
            protocol=config.protocol,
            select_on=experiment.procedure.select_on,
            select_by=experiment.procedure.select_by,
            refit=experiment.procedure.refit,
            num_train=num_train,
            num_val=num_val,
            num_pool=num_train + num_val,
            num_available=len(splits.train),
            subset=config.subset_kind,
            val_fraction=config.val_fraction,
            preparation=options.unusual_preparation(splits.test),
            chose_preparation=experiment.prepared.chosen,
            depends_on_seed=not config.seed_changes_nothing,
            **fitted.chosen,
        ),
        "seed": split.seed,
        "departures": experiment.procedure.departures,
        "defects": experiment.procedure.defects,
        "bad_images": bad,
        "provenance": Provenance.from_facts(provenance(), "fastadv-transfer"),
        **more,
    }
    value = None if fitted.value is None else 100 * fitted.value
    clean = measured_fields(found, splits.metric)
    clean["history"] = fitted.history[-1].records() if fitted.history else ()
    rows = [Row(identity=identity, val_value=value, **clean, **common)]
    if (attack := experiment.attack) is not None and found.robust is not None:
        rows.append(
            Row(
                identity=attacked_identity(identity),
                attack=AttackRecord.from_description(attack.describe()),
                **measured_fields(found, splits.metric, attacked=True),
                **common,
            )
        )
    return rows
