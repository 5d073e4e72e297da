"""The analysis of shift: accuracy on corrupted images and on images of other origin."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.decisions import finite_logits
from fastadv.analysis.images import options_for, seen_by
from fastadv.analysis.portions import count_batches, numbered_batches
from fastadv.analysis.shift_config import ShiftConfig
from fastadv.analysis.shifts import (
    FIELDS,
    Condition,
    corrupted_batches,
    decided,
    mean_share,
    per_condition,
)
from fastadv.data import Batch, ImageSet, LoaderOptions, make_loader
from fastadv.data.corruptions.corrupt import check_corruptions
from fastadv.data.corruptions.severities import GROUPS, KINDS, published_side
from fastadv.data.loading.loader import luma
from fastadv.data.opening.shifted import (
    CorruptedFiles,
    chosen_conditions,
    open_judged,
)
from fastadv.data.sets.image_set import sampled_sizes
from fastadv.data.sets.listed import ListedSet
from fastadv.data.sets.subsets import Subset, at_most, base_and_positions
from fastadv.errors import ConfigError, DataError
from fastadv.evaluation.class_map import ClassMap, class_map_for
from fastadv.evaluation.preparing import Prepared, overruled
from fastadv.evaluation.rows import source_record, target_record
from fastadv.models.source import Source, open_source
from fastadv.models.view import AttackView
from fastadv.preparation import Preparation
from fastadv.results.portions import Portions
from fastadv.results.shift_settings import ShiftSetting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    """What is judged: a network on images, under conditions.

    Attributes:
        source: The network.
        images: The images, of classes that the network knows.
        files: The images under each condition, where they are files.
        conditions: Corruptions and severities, by kind and then severity.
        classes: Which outputs stand for which class.
        options: How images are loaded.
        seed: Seed of what is drawn.
    """

    source: Source
    images: ImageSet
    files: Mapping[Condition, ImageSet] | None
    conditions: Sequence[Condition]
    classes: ClassMap
    options: LoaderOptions
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of kinds and of severities."""
        severities = len({severity for _, severity in self.conditions})
        return len(self.conditions) // max(severities, 1), severities


def prepare(config: ShiftConfig, name: str) -> Analysis:
    """Prepare to judge a network on images as they are, and under every corruption.

    Args:
        config: The choices.
        name: The source, one of `config.source`.

    Returns:
        The analysis. Its rows are accuracies in percent: `top1` of the images as they
        are, `corrupted_top1`, the mean over corruptions and severities, and
        `top1:KIND`, the mean over the severities of one kind. Arrays beside them:
        `right`, `confidence`, `nll` and `brier` of every image under every corruption
        [kinds, severities, n]; `corruptions` and `severities`; the verdicts, labels and
        logits of the images as they are, as evaluations keep them (a folder like
        ImageNet-C has none); `classes`.

    Raises:
        CheckpointError, DataError, ConfigError: The source, the images or the class map
            are unusable, or do not fit together.
    """
    kinds = _kinds(config)
    source = open_source(name, download=config.download)
    side = config.resolution or source.resolution
    opened = open_judged(config.data, resolution=side, **config.options)
    conditions: list[Condition] = []
    files: dict[Condition, ListedSet] | None = None
    if isinstance(opened, CorruptedFiles):
        if kinds == ():
            raise ConfigError(
                f"{opened.name} holds corrupted images; `corruptions=none` needs others"
            )
        files = chosen_conditions(opened, kinds, config.severities)
        conditions = list(files)
        every: ImageSet = files[conditions[0]]
        title = opened.name
    else:
        every, title = opened, config.name_with_options(opened.name)
        if kinds is None:
            kinds = () if isinstance(opened, ListedSet) else KINDS
        conditions = [(kind, s) for kind in kinds for s in config.severities]
    classes = class_map_for(source, every.classes, config.class_map)
    if classes.left_out:
        log.warning("%s on %s: %s", source.name, title, classes)
    places = _places(every, classes, config)
    images = Subset(every, places)
    options = options_for(source, every, config)
    if files is not None:
        options = _as_they_are(options, every, config)
    work = _Work(
        source, images, files and {c: Subset(f, places) for c, f in files.items()},
        conditions, classes, options, config.seed,
    )  # fmt: skip
    made = bool(conditions) and files is None
    judged = images if len(images) < len(every) else every
    return Analysis(
        source=source_record(source),
        target=target_record(seen_by(source, judged), side, title),
        setting=ShiftSetting(
            num_images=len(images),
            corruptions=tuple(dict.fromkeys(kind for kind, _ in conditions)),
            severities=tuple(dict.fromkeys(s for _, s in conditions)),
            parameters=published_side(side) if made else None,
            num_classes=len(classes.classes),
            class_map=classes.digest,
            left_out=len(classes.left_out),
            preparation=options.preparation,
        ),
        compute=partial(_judge, work),
        seed=config.seed,
    )


def _kinds(config: ShiftConfig) -> tuple[str, ...] | None:
    """Return the kinds of corruption that were chosen; None for the default."""
    if config.corruptions is None:
        check_corruptions(KINDS, config.severities)
        return None
    if "none" in config.corruptions:
        if len(config.corruptions) > 1:
            raise ConfigError("`corruptions` has none beside others; give it alone")
        return ()
    found: list[str] = []
    for each in config.corruptions:
        group = [kind for kind in KINDS if each in ("all", GROUPS[kind])]
        found += group or [each]
    check_corruptions(found, config.severities)
    return tuple(found)


def _places(
    images: ImageSet, classes: ClassMap, config: ShiftConfig
) -> NDArray[np.int64]:
    """Return the positions of the images that are judged."""
    known = np.flatnonzero(np.isin(images.labels, classes.ids))
    if not len(known):
        raise DataError(
            f"{images.name} has no images of classes that the network knows"
        )
    part = Subset(images, known)
    chosen = at_most(part, config.num_images, config.seed)
    if chosen is part or not isinstance(chosen, Subset):
        return known
    return known[chosen.indices]


def _as_they_are(
    options: LoaderOptions, images: ImageSet, config: ShiftConfig
) -> LoaderOptions:
    """Return options that neither zoom nor resize files of the network's resolution."""
    side = options.resolution
    how = Preparation(resize=side, crop=side)
    if options.preparation is not None:
        how = replace(how, interpolation=options.preparation.interpolation)
    sizes = set(sampled_sizes(images, 16))
    if sizes != {(side, side)}:
        log.warning(
            "images of %s are not all %d x %d pixels, for which they would have been "
            "corrupted; they are resized",
            images.name,
            side,
            side,
        )
    return replace(options, preparation=overruled(Prepared(how, ""), config).how)


def _judge(work: _Work, portions: Portions) -> Findings:
    found = (_from_files if work.files else _from_images)(work, portions)
    kinds = tuple(dict.fromkeys(kind for kind, _ in work.conditions))
    numbers = []
    arrays: dict[str, Any] = {"classes": np.array(work.classes.classes)}
    if "clean_logits" in found:
        right = found["fell_to"] == 0
        numbers.append(Measured.share_of("top1", int(right.sum()), len(right)))
    if kinds:
        right = found["right"]
        n = right.shape[2]
        numbers.append(Measured("corrupted_top1", *mean_share(right.mean((0, 1))), n))
        numbers += [
            Measured(f"top1:{kind}", *mean_share(each.mean(0)), n)
            for kind, each in zip(kinds, right, strict=True)
        ]
        arrays["corruptions"] = np.array(kinds)
        arrays["severities"] = np.array(
            [s for k, s in work.conditions if k == kinds[0]]
        )
    return Findings(numbers, arrays | found)


def _from_images(work: _Work, portions: Portions) -> dict[str, NDArray[Any]]:
    """Judge images as they are and, batch by batch, under corruptions made of them."""
    whole, positions = base_and_positions(work.images)

    def judge(first: int) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        view = _view(work)
        loader = make_loader(seen_by(work.source, work.images), **vars(work.options))
        with ThreadPoolExecutor(work.options.worker_count or 1) as pool:
            for number, batch in numbered_batches(loader, first):
                rows = positions[batch.indices.cpu().numpy()]
                yield number, _judge_batch(work, view, batch, rows, pool)

    total = count_batches(work.images, work.options)
    parts = list(portions.each(_batches(work), total, judge))
    found = {
        name: np.concatenate([part[name] for part in parts], 2 if name in FIELDS else 0)
        for name in parts[0]
    }
    return found | {
        "image_set": np.array(whole.fingerprint),
        "attacks": np.array([], np.str_),
    }


def _judge_batch(
    work: _Work,
    view: AttackView,
    batch: Batch,
    rows: NDArray[np.int64],
    pool: ThreadPoolExecutor,
) -> dict[str, NDArray[Any]]:
    """Judge a batch as it is and under every condition; `rows` seed its draws."""
    labels = _labels(work, batch)
    what = f"{work.source.name} on {work.images.name}"
    scores = finite_logits(view, batch.images, what, work.classes)
    found: dict[str, NDArray[Any]] = {
        "indices": rows.astype(np.int32),
        "labels": labels.cpu().numpy().astype(np.int32),
        "clean_logits": scores.cpu().numpy(),
        "fell_to": (scores.argmax(1) == labels).cpu().numpy().astype(np.int8) - 1,
    }
    if not work.conditions:
        return found
    pixels = batch.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    grey = pixels.shape[-1] == 1
    if grey:  # corruptions are defined for colour
        pixels = np.repeat(pixels, 3, axis=-1)
    made = corrupted_batches(pixels, rows, work.conditions, seed=work.seed, pool=pool)
    under = []
    for (kind, severity), images in zip(work.conditions, made, strict=True):
        tensor = torch.from_numpy(images)
        tensor = luma(tensor) if grey else tensor
        tensor = tensor.permute(0, 3, 1, 2).to(labels.device)
        what = f"{work.source.name} under {kind} {severity}"
        scores = finite_logits(view, tensor, what, work.classes)
        under.append(decided(scores, labels))
    return found | per_condition(under, *work.shape)


def _from_files(work: _Work, portions: Portions) -> dict[str, NDArray[Any]]:
    """Judge images that are corrupted already; a portion is one condition."""
    files = list((work.files or {}).items())
    options = vars(work.options) | {"on_bad_image": "fail"}

    def judge(first: int) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        view = _view(work)
        for number, ((kind, severity), images) in enumerate(files[first:], first):
            what = f"{work.source.name} under {kind} {severity}"
            parts = []
            for batch in make_loader(seen_by(work.source, images), **options):
                labels = _labels(work, batch)
                scores = finite_logits(view, batch.images, what, work.classes)
                part = decided(scores, labels)
                parts.append(part | {"labels": labels.cpu().numpy().astype(np.int32)})
            yield number, {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}

    under = list(portions.each("conditions", len(files), judge, "corruptions"))
    return {**per_condition(under, *work.shape), "labels": under[0]["labels"]}


def _view(work: _Work) -> AttackView:
    return AttackView(work.source.load().eval().to(work.options.device))


def _batches(work: _Work) -> str:
    return f"batches-of-{work.options.batch_size}"


def _labels(work: _Work, batch: Batch) -> torch.Tensor:
    """Return the labels of a batch as positions among the classes that are judged."""
    place = work.classes.positions()
    found = torch.tensor([place[int(label)] for label in batch.labels])
    return found.to(batch.labels.device)
