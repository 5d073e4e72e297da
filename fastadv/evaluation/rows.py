"""What an evaluation found as rows of the results table, with the arrays beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastadv.attacks.contract import Attack
from fastadv.data import ImageSet
from fastadv.data.metric import is_own
from fastadv.data.sets.subsets import Downscaled, base_and_positions
from fastadv.environment import provenance
from fastadv.evaluation.accuracy import (
    Accuracy,
    Evaluation,
    ImageVerdicts,
    StageResult,
)
from fastadv.evaluation.radii import RadiusGrid, at_radius
from fastadv.models.source import Source
from fastadv.results.config import KeepConfig
from fastadv.results.identity import make_identity, measured_identity
from fastadv.results.row import (
    AttackRecord,
    ChecksRecord,
    Provenance,
    Row,
    SourceRecord,
    StageRecord,
    TargetRecord,
)
from fastadv.results.table import ResultsTable


def evaluation_rows(
    found: Evaluation,
    attack: Attack | None,
    source: Source,
    *,
    command: str,
    metric: str = "top1",
    **common: Any,
) -> list[Row]:
    """Return the row of the clean accuracy and, after an attack, that of the robust one.

    A metric of your own has rows beside these; a grid of radii has a row for each.

    Args:
        found: Accuracies of the network.
        attack: The attack that `found.robust` was measured under.
        source: The network.
        command: What evaluated it, for example `fastadv-eval`.
        metric: The metric of the data set.
        common: Other fields of `Row` that both share; `target` and `setting` are
            required. `bad_images` counts test images alone.
    """
    if isinstance(attack, RadiusGrid) and found.stages:
        numbers = range(len(found.stages))
        each = [
            evaluation_rows(
                at_radius(found, number),
                attack.at(number),
                source,
                command=command,
                metric=metric,
                **common,
            )
            for number in numbers
        ]
        clean = [row for row in each[0] if row.attack is None]
        return clean + [row for rows in each for row in rows if row.attack is not None]
    common["source"] = source_record(source)
    common["provenance"] = Provenance.from_facts(provenance(), command)
    defines = {key: common[key] for key in ("source", "target", "setting")}
    defines["seed"] = common.get("seed", 0)
    common["experiment"] = make_identity(**defines)
    bad = common.get("bad_images") or 0

    def identity(**more: Any) -> str:
        return measured_identity(make_identity(**defines, **more), bad, bad)

    # Without an attack, only logits that are not finite can be a reason for doubt.
    lost = ("nonfinite_logits",) if found.nonfinite_clean else ()
    first = Row(
        identity=identity(),
        flags=lost,
        nonfinite_logits=found.nonfinite_clean,
        **accuracy_fields(found.clean),
        **common,
    )
    rows = [first]
    if is_own(metric):
        fields = measured_fields(found, metric)
        rows.append(Row(identity=identity(metric=metric), **fields, **common))
    if attack is not None and found.robust is not None:
        record = AttackRecord.from_description(attack.describe())
        rows.append(
            Row(
                identity=identity(attack=record),
                attack=record,
                stages=tuple(map(_stage, found.stages)) if found.stages[1:] else (),
                checks=checks_record(found),
                flags=found.flags(),
                nonfinite_logits=found.nonfinite_logits,
                **accuracy_fields(found.robust),
                **common,
            )
        )
        if is_own(metric):
            fields = measured_fields(found, metric, attacked=True)
            own = identity(attack=record, metric=metric)
            rows.append(Row(identity=own, attack=record, **fields, **common))
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
    whole, _ = base_and_positions(images)
    return TargetRecord(
        name=name or images.name,
        fingerprint=images.fingerprint,
        resolution=resolution,
        downscale=whole.side if isinstance(whole, Downscaled) else None,
        num_test=len(images),
        num_classes=len(images.classes),
        class_names=images.classes,
    )


def store(
    table: ResultsTable,
    rows: Sequence[Row],
    found: Evaluation,
    images: ImageSet,
    keep: KeepConfig | None = None,
    *,
    more: Mapping[str, np.ndarray] | None = None,
    network: bytes | None = None,
) -> list[Row]:
    """Append rows to a table, and write what is kept beside them.

    Args:
        table: The table.
        rows: What `evaluation_rows` returned; they share what is kept.
        found: The evaluation that the rows are of.
        images: The images that were evaluated, in the order of the verdicts.
        keep: What to keep; None keeps everything that is given.
        more: Further arrays by name.
        network: The file of the network's weights; None keeps no network.

    Returns:
        The rows as they were stored, which name the files.

    Raises:
        OutputError: The rows cannot be written. Files beside them that cannot be written
            are no error: the rows say so.
    """
    keep = keep or KeepConfig(keep="networks")
    names = [stage.name for stage in found.stages]
    if not names and (attack := rows[-1].attack) is not None:
        names = [str(attack.name)]
    groups = [(rows, found.images, images, names)]
    if found.part is not None:
        attacked, under_attack = found.part
        groups = [
            (rows[:1], found.images, images, []),
            (rows[1:], under_attack, attacked, names),
        ]
    attacks_of_rows = list(dict.fromkeys(row.attack for row in rows if row.attack))
    if len(attacks_of_rows) > 1:  # a grid of radii, smallest first
        groups = [
            (
                [r for r in rows if r.attack == each or (r.attack is None and not k)],
                at_radius(found, k).images,
                images,
                [str(each.name)],
            )
            for k, each in enumerate(attacks_of_rows)
        ]
    stored = []
    for some, verdicts, judged, attacks in groups:
        arrays = dict(more or {})
        if verdicts is not None:
            arrays |= image_arrays(verdicts, judged, attacks)
        if not keep.keeps("heads"):
            arrays = {k: v for k, v in arrays.items() if not k.endswith("_logits")}
        kept = table.kept.keep(
            str(some[-1].identity),
            arrays if keep.keeps("verdicts") else {},
            network,
            limit=keep.keep_bytes,
        )
        reason = kept.pop("not_kept")
        stored += [replace(r, **kept, not_kept=reason or r.not_kept) for r in some]
    table.append(stored)
    return stored


def image_arrays(
    verdicts: ImageVerdicts, images: ImageSet, attacks: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return verdicts and logits as the arrays of a row, with what tells images apart.

    Args:
        verdicts: The verdicts on N images.
        images: The images, in the same order; a subset is told by its whole set.
        attacks: Names of the attacks that ran in turn.

    Returns:
        `labels` and `indices` (positions in the whole set), int32 [N]; `image_set`, the
        fingerprint of that set; `fell_to`, int8 [N]; `attacks`, the names; and
        `clean_logits` and `attacked_logits`, float32 [N, K], where they are known.
    """
    whole, positions = base_and_positions(images)
    arrays = {name: value.numpy() for name, value in verdicts.arrays().items()}
    arrays["labels"] = arrays["labels"].astype(np.int32)
    arrays["fell_to"] = arrays["fell_to"].astype(np.int8)
    arrays["indices"] = positions.astype(np.int32)
    arrays["image_set"] = np.array(whole.fingerprint)
    arrays["attacks"] = np.array(attacks, dtype=np.str_)
    return arrays


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


def measured_fields(
    found: Evaluation, metric: str, *, attacked: bool = False
) -> dict[str, Any]:
    """Return a metric of an evaluation as fields of a `Row`, in percent."""
    accuracy = found.robust if attacked and found.robust else found.clean
    if not is_own(metric):
        return accuracy_fields(accuracy, metric)
    low, high = found.interval(metric, attacked=attacked)
    return accuracy_fields(accuracy) | {
        "metric": metric,
        "value": 100 * found.value(metric, attacked=attacked),
        "low": 100 * low,
        "high": 100 * high,
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
        misleading_gradient_share=checks.misleading_gradient_share,
        live_reason=found.live_reason,
    )
