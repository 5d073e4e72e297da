"""What an evaluation found as rows of the results table, with the arrays beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastadv.attacks.contract import Attack
from fastadv.data import ImageSet
from fastadv.evaluation.accuracy import Accuracy, Evaluation, StageResult
from fastadv.models.source import Source
from fastadv.results.identity import make_identity
from fastadv.results.row import (
    AttackRecord,
    ChecksRecord,
    Row,
    SourceRecord,
    StageRecord,
    TargetRecord,
)
from fastadv.results.table import ResultsTable


def evaluation_rows(
    found: Evaluation, attack: Attack | None, **common: Any
) -> list[Row]:
    """Return the row of the clean accuracy and, after an attack, that of the robust one.

    Args:
        found: Accuracies of the network.
        attack: The attack that `found.robust` was measured under.
        common: Fields of `Row` that both share; `source`, `target` and `setting` are
            required.
    """
    defines = {key: common[key] for key in ("source", "target", "setting")}
    defines["seed"] = common.get("seed", 0)
    identity = make_identity(**defines)
    common["experiment"] = identity
    rows = [Row(identity=identity, **accuracy_fields(found.clean), **common)]
    if attack is not None and found.robust is not None:
        record = AttackRecord.from_description(attack.describe())
        rows.append(
            Row(
                identity=make_identity(**defines, attack=record),
                attack=record,
                stages=tuple(map(_stage, found.stages)) if found.stages[1:] else (),
                checks=checks_record(found),
                **accuracy_fields(found.robust),
                **common,
            )
        )
    return rows


def source_record(source: Source) -> SourceRecord:
    """Return a network as the rows of its results name it."""
    return SourceRecord(
        name=source.name,
        given=source.given,
        path=str(source.file),
        digest=source.digest,
        arch=source.arch,
        norm=source.norm,
        eps=source.eps,
        kind=source.kind,
    )


def target_record(
    images: ImageSet, resolution: int, name: str | None = None
) -> TargetRecord:
    """Return test images as rows name them; `name` replaces the name of the images."""
    return TargetRecord(
        name=name or images.name,
        fingerprint=images.fingerprint,
        resolution=resolution,
        num_test=len(images),
        num_classes=len(images.classes),
        class_names=images.classes,
    )


def store(table: ResultsTable, rows: Sequence[Row], found: Evaluation) -> list[Row]:
    """Append rows to a table, and the verdicts and logits of all images as an array file.

    Args:
        table: The table.
        rows: Rows that `evaluation_rows` made of `found`.
        found: The evaluation.

    Returns:
        The rows as they were stored, which name the array file.

    Raises:
        OutputError: A file cannot be written.
    """
    if found.images is not None:
        arrays = {name: a.numpy() for name, a in found.images.arrays().items()}
        name = table.save_arrays(str(rows[-1].identity), arrays)
        rows = [replace(row, arrays=name) for row in rows]
    table.append(rows)
    return list(rows)


def accuracy_fields(accuracy: Accuracy, metric: str = "top1") -> dict[str, Any]:
    """Return an accuracy as fields of a `Row`, in percent."""
    low, high = accuracy.interval(metric)
    return {
        "metric": metric,
        "value": 100 * accuracy.value(metric),
        "low": 100 * low,
        "high": 100 * high,
        "n": accuracy.n,
        "per_class_correct": tuple(accuracy.correct.tolist()),
        "per_class_total": tuple(accuracy.total.tolist()),
    }


def _stage(stage: StageResult) -> StageRecord:
    fields = accuracy_fields(stage.robust)
    return StageRecord(
        name=stage.name,
        attacked=stage.attacked,
        seconds=round(stage.seconds, 3),
        **{key: fields[key] for key in ("value", "low", "high")},
    )


def checks_record(found: Evaluation) -> ChecksRecord | None:
    """Return the checks of a network as rows store them, if they were made."""
    if (checks := found.checks) is None:
        return None
    return ChecksRecord(
        probabilities=checks.probabilities,
        randomised=checks.randomised,
        train_mode=checks.train_mode,
        zero_gradient_share=checks.zero_gradient_share,
        black_box_gain=found.black_box_gain,
    )
