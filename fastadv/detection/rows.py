"""What was found of a detector as rows of the results table, with the detections beside."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastadv.detection.attack import DetectorAttack
from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.judging import Corruption, Judged
from fastadv.detection.metrics import DetectionMetrics
from fastadv.detection.saving import OpenedDetector
from fastadv.detection.sets import DetectionSet
from fastadv.environment import provenance
from fastadv.results.config import KeepConfig
from fastadv.results.detection_settings import DetectionSetting, TrainingAttack
from fastadv.results.identity import digest, make_identity, measured_identity
from fastadv.results.row import (
    AttackRecord,
    Provenance,
    Row,
    SourceRecord,
    TargetRecord,
)
from fastadv.results.table import ResultsTable

log = logging.getLogger(__name__)

COMMAND = "fastadv-detect"
RESAMPLES = 1000
"""Samples of the images that intervals rest on, where nothing else is chosen."""


@dataclass(frozen=True)
class Condition:
    """What is done to the images of one evaluation.

    Attributes:
        attack: The attack; None for none.
        corruption: The corruption; None for none.
    """

    attack: DetectorAttack | None = None
    corruption: Corruption | None = None

    def __str__(self) -> str:
        if self.attack is not None:
            record = AttackRecord.from_description(self.attack.describe())
            return f"{record}, {self.attack.loss} loss"
        return str(self.corruption) if self.corruption else "as they are"


def row_fields(
    opened: OpenedDetector,
    images: DetectionSet,
    condition: Condition,
    *,
    given: str,
    num_images: int | None = None,
    batch_size: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the fields of `Row` that the metrics of one condition share.

    Args:
        opened: The detector.
        images: The images that it is judged on.
        condition: What is done to them.
        given: How the user named the detector.
        num_images: Number of images that were chosen from the split; None for all.
        batch_size: Images per batch; they are padded to the largest, which counts a
            little.
        resamples: Number of samples of the images that intervals rest on.
        seed: Seed of the subset, the attack and the corruption.
    """
    facts, trained = opened.facts, opened.facts.training
    stages, norm = facts.config.frozen
    attacked = trained.get("eps")
    corruption = condition.corruption
    setting = DetectionSetting(
        detector="mask_rcnn" if facts.masks else "faster_rcnn",
        split=images.split,
        num_images=num_images,
        scratch=facts.config.scratch,
        frozen_stages=stages,
        frozen_norm=norm,
        min_size=facts.config.min_size[-1],
        max_size=facts.config.max_size,
        anchor_scale=facts.config.anchor_scale,
        epochs=trained.get("epochs"),
        batch_size=trained.get("batch_size"),
        lr=trained.get("lr"),
        attack=None
        if not attacked
        else TrainingAttack(
            norm=trained["norm"],
            eps=attacked,
            num_steps=trained["num_steps"] or DetectTrainConfig.USUAL_STEPS,
            loss=trained["attack_loss"],
        ),
        corruption=None if corruption is None else corruption.kind,
        severity=None if corruption is None else corruption.severity,
    )
    begin = facts.source
    source = SourceRecord(
        name=begin.get("name") or facts.arch,
        given=given,
        path=str(opened.file),
        digest=opened.file_digest,
        arch=facts.arch,
        norm=None if facts.config.scratch else begin.get("norm"),
        eps=None if facts.config.scratch else begin.get("eps"),
        kind=None if facts.config.scratch else begin.get("kind"),
    )
    target = TargetRecord(
        name=images.name,
        fingerprint=images.fingerprint,
        resolution=facts.config.min_size[-1],
        num_test=len(images),
        num_classes=len(images.classes),
        class_names=tuple(images.classes),
    )
    attack = condition.attack
    record = attack and AttackRecord.from_description(attack.describe())
    drawn: dict[str, Any] = {"drawn": seed} if seed else {}
    common: dict[str, Any] = {
        "source": source,
        "target": target,
        "setting": setting,
        "attack": record,
        "seed": trained.get("seed", 0),
    }
    more = drawn | {"batch_size": batch_size, "resamples": resamples}
    return common | {"experiment": make_identity(**common, **more)}


def store_rows(
    table: ResultsTable,
    fields: Mapping[str, Any],
    judged: Judged,
    metrics: DetectionMetrics,
    *,
    bad: int,
    keep: KeepConfig | None = None,
) -> list[Row]:
    """Append the rows of one condition to the table, with the detections beside them.

    Args:
        table: The table.
        fields: What `row_fields` returned.
        judged: What was found.
        metrics: Its metrics, in [0, 1].
        bad: Number of images that could not be read.
        keep: What is kept beside the rows; None keeps the detections.

    Returns:
        One row for each metric, in percent.

    Raises:
        OutputError: The rows cannot be written.
    """
    keep = keep or KeepConfig()
    if judged.nonfinite:
        log.warning(
            "%d gradient elements were not finite and moved nothing; the attack is weaker "
            "than it looks",
            judged.nonfinite,
        )
    experiment = fields["experiment"]
    arrays = judged.findings.arrays() if keep.keeps("verdicts") else {}
    kept = table.kept.keep(experiment, arrays, None, limit=keep.keep_bytes)
    facts = Provenance.from_facts(provenance(), COMMAND)
    rows = []
    for metric, value in metrics.values.items():
        low, high = (
            None if end is None else 100 * end for end in (value.low, value.high)
        )
        identity = digest([experiment, metric])
        rows.append(
            Row(
                identity=measured_identity(identity, bad, bad),
                metric=metric,
                value=100 * value.value,
                low=low,
                high=high,
                n=metrics.num_images,
                bad_images=bad or None,
                wall_seconds=judged.seconds,
                provenance=facts,
                **fields,
                **kept,
            )
        )
    table.append(rows)
    return rows
