"""The evaluation of a trained detector: what `fastadv-detect eval` does."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import nn

from fastadv.data.corruptions.corrupt import check_corruptions
from fastadv.data.corruptions.severities import KINDS
from fastadv.detection.attack import DetectorAttack
from fastadv.detection.batches import DetectionLoader, DetectionLoaderOptions
from fastadv.detection.eval_config import DetectEvalConfig
from fastadv.detection.judging import Corruption, Judged, judged_batches
from fastadv.detection.metrics import Findings
from fastadv.detection.opening import open_detection
from fastadv.detection.rows import Condition, row_fields, store_rows
from fastadv.detection.saving import OpenedDetector, open_detector
from fastadv.detection.sets import DetectionSet, MasksMissing
from fastadv.device import resolve_device
from fastadv.errors import ConfigError
from fastadv.kernels import use_backend
from fastadv.results.portions import UNFINISHED, Portions
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable
from fastadv.text_tables import format_percent_ci
from fastadv.threat import ThreatModel

log = logging.getLogger(__name__)


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
    masks = images.has_masks
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
        common = row_fields(
            opened,
            images,
            condition,
            given=config.checkpoint,
            num_images=config.num_images,
            batch_size=config.batch_size,
            resamples=config.resamples,
            seed=config.seed,
        )
        rows = table.rows(experiment=common["experiment"])
        if not rows:
            portions = Portions(table.path / UNFINISHED / common["experiment"])
            with use_backend(config.backend):
                judged = _judged(detector, loader, condition, masks, config, portions)
            metrics = judged.findings.metrics(
                resamples=config.resamples, seed=config.seed
            )
            bad = len(images) - metrics.num_images
            rows = store_rows(table, common, judged, metrics, bad=bad, keep=config)
            portions.discard()
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
    values = {name: chosen(name) for name in names}
    try:
        splits = open_detection(chosen("data"), masks=opened.facts.masks, **values)
    except MasksMissing as error:
        log.warning("%s; boxes alone are judged", error)
        splits = open_detection(chosen("data"), masks=False, **values)
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


def _judged(
    detector: nn.Module,
    loader: DetectionLoader,
    condition: Condition,
    masks: bool,
    config: DetectEvalConfig,
    portions: Portions,
) -> Judged:
    """Judge a detector under one condition, from the batches on that are not judged yet."""
    images, size = loader.images, config.batch_size
    total = -(-len(images) // size)

    def compute(known: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        loader.load_state_dict(
            loader.state_dict() | {"epoch": 0, "position": known * size}
        )
        found = judged_batches(
            detector,
            loader,
            attack=condition.attack,
            corruption=condition.corruption,
            seed=config.seed,
        )
        began = time.perf_counter()
        with contextlib.closing(found):
            for each in found:
                part = Findings(images.classes, masks)
                for one, target in zip(each.found, each.batch.targets, strict=True):
                    part.add(one, target)
                taken = time.perf_counter() - began
                more = {
                    "indices": np.array(each.batch.indices),
                    "nonfinite": np.array(each.nonfinite),
                    "seconds": np.array(taken),
                }
                yield each.batch.indices[0] // size, part.arrays() | more
                began = time.perf_counter()

    findings = Findings(images.classes, masks)
    nonfinite, seconds = 0, 0.0
    for arrays in portions.each(f"batches-of-{size}", total, compute):
        targets = [images.target(i) for i in arrays["indices"].tolist()]
        findings.add_arrays(arrays, targets)
        nonfinite += int(arrays["nonfinite"])
        seconds += float(arrays["seconds"])
    return Judged(findings, seconds, nonfinite)


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
