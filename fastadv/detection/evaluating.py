"""The evaluation of a trained detector: what `fastadv-detect eval` does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastadv.data.corruptions.corrupt import check_corruptions
from fastadv.data.corruptions.severities import KINDS
from fastadv.detection.attack import DetectorAttack
from fastadv.detection.batches import DetectionLoader, DetectionLoaderOptions
from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.eval_config import DetectEvalConfig
from fastadv.detection.judging import Corruption, Judged, evaluate_detector
from fastadv.detection.metrics import DetectionMetrics
from fastadv.detection.opening import open_detection
from fastadv.detection.saving import OpenedDetector, open_detector
from fastadv.detection.sets import DetectionSet
from fastadv.device import resolve_device
from fastadv.environment import provenance
from fastadv.errors import ConfigError
from fastadv.kernels import use_backend
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
from fastadv.text_tables import format_percent_ci
from fastadv.threat import ThreatModel

log = logging.getLogger(__name__)

COMMAND = "fastadv-detect"


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


def evaluate_detector_file(
    config: DetectEvalConfig, note: Callable[[str, list[Row]], None] = lambda *_: None
) -> dict[str, list[Row]]:
    """Evaluate the detector that a configuration names, and store rows in its table.

    Args:
        config: The choices.
        note: Is called with each condition, as text, and its rows, when they are known.

    Returns:
        The rows of each condition, those of images as they are first: one for each metric
        of `DetectionMetrics`, in percent.

    Raises:
        CheckpointError, DataError, ConfigError: The detector, the set, the results table or
            the choices are unusable, or do not fit together.
    """
    conditions = list(_conditions(config))
    opened = open_detector(config.checkpoint)
    images = _images(config, opened)
    masks = opened.facts.masks and images.has_masks
    if opened.facts.masks and not masks:
        log.warning("%s has no masks, so boxes alone are judged", images.name)
    device = resolve_device(config.device)
    detector = opened.detector.to(device)
    table = ResultsTable(config.results)
    table.prepare()
    loader = DetectionLoader(
        images,
        DetectionLoaderOptions(
            batch_size=config.batch_size,
            train=False,
            device=device,
            on_bad_image=config.on_bad_image,
            workers=config.workers,
        ),
    )
    found: dict[str, list[Row]] = {}
    for condition in conditions:
        common = _common(config, opened, images, condition)
        rows = table.rows(experiment=common["experiment"])
        if not rows:
            with use_backend(config.backend):
                judged = evaluate_detector(
                    detector,
                    loader,
                    images.classes,
                    masks=masks,
                    attack=condition.attack,
                    corruption=condition.corruption,
                    seed=config.seed,
                )
            metrics = judged.findings.metrics(
                resamples=config.resamples, seed=config.seed
            )
            bad = len(loader.bad_images)
            rows = _stored(config, table, common, judged, metrics, bad)
        found[str(condition)] = rows
        note(str(condition), rows)
    return found


def _conditions(config: DetectEvalConfig) -> Iterator[Condition]:
    kinds = tuple(KINDS) if config.corruption == ("all",) else config.corruption
    if kinds:
        check_corruptions(kinds, config.severity)
    yield Condition()
    if config.eps:
        threat = ThreatModel(config.norm, config.eps)  # type: ignore[arg-type]
        attack = DetectorAttack(
            threat,
            config.steps,
            config.step_size,
            loss=config.attack_loss,
            seed=config.seed,
        )
        yield Condition(attack)
    for kind in kinds:
        for severity in config.severity:
            yield Condition(corruption=Corruption(kind, severity))


def _images(config: DetectEvalConfig, opened: OpenedDetector) -> DetectionSet:
    """Return the images to test on; what was not chosen is as in training."""
    trained = opened.facts.training

    def chosen(name: str) -> Any:
        value = getattr(config, name)
        return trained[name] if value is None else value

    names = ("test_share", "split_seed", "origin", "class_name")
    splits = open_detection(
        chosen("data"),
        masks=None if opened.facts.masks else False,
        **{name: chosen(name) for name in names},
    )
    images = splits.test
    if images.classes != opened.facts.classes:
        raise ConfigError(
            f"{images.name} has the classes {', '.join(images.classes)}, the detector knows "
            f"{', '.join(opened.facts.classes)}; give the set that it was trained on, or "
            "one with the same classes in the same order"
        )
    if config.num_images is None or config.num_images >= len(images):
        return images
    draw = np.random.default_rng(config.seed)
    return images.subset(
        sorted(draw.permutation(len(images))[: config.num_images].tolist())
    )


def _common(
    config: DetectEvalConfig,
    opened: OpenedDetector,
    images: DetectionSet,
    condition: Condition,
) -> dict[str, Any]:
    """Return the fields of `Row` that the metrics of one condition share."""
    facts, trained = opened.facts, opened.facts.training
    stages, norm = facts.config.frozen
    attacked = trained.get("eps")
    corruption = condition.corruption
    setting = DetectionSetting(
        detector="mask_rcnn" if facts.masks else "faster_rcnn",
        split=images.split,
        num_images=config.num_images,
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
        given=config.checkpoint,
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
    drawn: dict[str, Any] = {"drawn": config.seed} if config.seed else {}
    common: dict[str, Any] = {
        "source": source,
        "target": target,
        "setting": setting,
        "attack": record,
        "seed": trained.get("seed", 0),
    }
    # Batches are padded to their largest image, which counts a little.
    more = drawn | {"batch_size": config.batch_size, "resamples": config.resamples}
    return common | {"experiment": make_identity(**common, **more)}


def _stored(
    config: DetectEvalConfig,
    table: ResultsTable,
    common: dict[str, Any],
    judged: Judged,
    metrics: DetectionMetrics,
    bad: int,
) -> list[Row]:
    """Append the rows of one condition to the table, with the detections beside them."""
    if judged.nonfinite:
        log.warning(
            "%d gradient elements were not finite and moved nothing; the attack is weaker "
            "than it looks",
            judged.nonfinite,
        )
    arrays = judged.findings.arrays() if config.keeps("verdicts") else {}
    kept = table.kept.keep(common["experiment"], arrays, None, limit=config.keep_bytes)
    facts = Provenance.from_facts(provenance(), COMMAND)
    rows = []
    for metric, value in metrics.values.items():
        low, high = (
            None if end is None else 100 * end for end in (value.low, value.high)
        )
        identity = digest([common["experiment"], metric])
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
                **common,
                **kept,
            )
        )
    table.append(rows)
    return rows


def average_precisions(rows: list[Row]) -> str:
    """Return the main average precisions among the rows of a condition, in percent."""
    names = {
        "box_ap": "box AP",
        "box_ap50": "box AP50",
        "mask_ap": "mask AP",
        "mask_ap50": "mask AP50",
    }
    values = {row.metric: row for row in rows}
    found = [
        f"{text} {format_percent_ci(row.value, row.low, row.high)}"
        for name, text in names.items()
        if (row := values.get(name)) is not None
    ]
    return ", ".join(found) or "no object to be found"
