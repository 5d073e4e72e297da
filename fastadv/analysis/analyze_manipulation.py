"""The analysis of manipulated images: what accuracy is left without some part of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastadv.analysis.config import ManipulationConfig
from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.decisions import finite_logits
from fastadv.analysis.images import options_for, seen_by
from fastadv.analysis.manipulation import (
    band_pass,
    highest_frequency,
    shuffle_patches,
)
from fastadv.analysis.portions import count_batches, numbered_batches
from fastadv.data import Batch, make_loader
from fastadv.data.metric import is_own
from fastadv.data.sets.subsets import at_most
from fastadv.errors import ConfigError
from fastadv.evaluation.accuracy import Accuracy
from fastadv.evaluation.matching import match_classes
from fastadv.evaluation.rows import source_record, target_record
from fastadv.evaluation.source import open_for
from fastadv.models.source import open_source
from fastadv.models.view import AttackView
from fastadv.results.analysis_settings import ManipulationSetting
from fastadv.results.portions import Portions

_EXAMPLES = 6  # Images that are kept as they were and manipulated.

Manipulation = Callable[[Batch], Tensor]
"""A function of a batch that returns its images, float in [0, 1]."""


def prepare(config: ManipulationConfig, name: str) -> Analysis:
    """Prepare to measure the accuracy on images as they are, and manipulated.

    Args:
        config: The choices.
        name: The source, one of `config.source`.

    Returns:
        The analysis. Its rows are the accuracy on the images as they are (`top1`), then at
        each level (`top1:4`, ...), in percent. Arrays beside them: `levels`, names of the
        levels, the first `clean`; `decisions` int32 [levels, n], classes that were decided;
        `labels` [n]; `examples` uint8 [m, levels, C, R, R], images as the network saw them.

    Raises:
        CheckpointError, DataError, ConfigError: The source or the images are unusable,
            they do not fit together, or a level cannot be.
    """
    source = open_source(name, download=config.download)
    side = config.resolution or source.resolution
    splits = open_for(source, config.data, side, config.options)
    matched = match_classes(source, splits.test)
    images = at_most(matched.images, config.num_images, config.seed)
    images = seen_by(source, images)
    options = options_for(source, splits.test, config)
    levels = {"clean": _as_they_are} | _manipulations(config, side)

    def decide(first: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        view = AttackView(matched.model(source).eval().to(options.device))
        for number, batch in numbered_batches(
            make_loader(images, **vars(options)), first
        ):
            seen = [change(batch) for change in levels.values()]
            decided = [finite_logits(view, x, source.name).argmax(1) for x in seen]
            shown = torch.stack([x[:_EXAMPLES] for x in seen], 1) * 255
            yield (
                number,
                {
                    "decisions": torch.stack(decided).cpu().numpy().astype(np.int32),
                    "labels": batch.labels.cpu().numpy(),
                    "examples": shown.round().byte().cpu().numpy(),
                },
            )

    def compute(portions: Portions) -> Findings:
        key = f"batches-of-{config.batch_size}"
        found = list(portions.each(key, count_batches(images, options), decide))
        decisions = np.concatenate([each["decisions"] for each in found], 1)
        labels = np.concatenate([each["labels"] for each in found])
        # One of the user's own would need logits.
        metric = "top1" if is_own(splits.metric) else splits.metric
        numbers = [
            _accuracy(level, decided, labels, metric, len(images.classes))
            for level, decided in zip(levels, decisions, strict=True)
        ]
        arrays = {
            "levels": np.array(list(levels)),
            "decisions": decisions,
            "labels": labels,
            "examples": _spread([each["examples"] for each in found]),
        }
        return Findings(numbers, arrays)

    return Analysis(
        source=source_record(source),
        target=target_record(images, side, config.name_with_options(splits.name)),
        setting=ManipulationSetting(
            how=config.how,
            levels=tuple(levels)[1:],
            num_images=len(images),
            preparation=options.preparation,
            class_map=matched.class_map.digest,
        ),
        compute=compute,
        seed=config.seed,
    )


def _accuracy(
    level: str, decided: np.ndarray, labels: np.ndarray, metric: str, classes: int
) -> Measured:
    right = torch.from_numpy(labels[decided == labels])
    total = torch.from_numpy(labels).bincount(minlength=classes)
    accuracy = Accuracy(right.bincount(minlength=classes), total)
    low, high = accuracy.interval(metric)
    return Measured(
        metric if level == "clean" else f"{metric}:{level}",
        100 * accuracy.value(metric),
        100 * low,
        100 * high,
        n=accuracy.n,
    )


def _as_they_are(batch: Batch) -> Tensor:
    return batch.images.float() / 255


def _manipulations(config: ManipulationConfig, side: int) -> dict[str, Manipulation]:
    """Return the manipulation of every level by the name of the level.

    Raises:
        ConfigError: A level cannot be, or there is none.
    """
    if config.how == "patch_shuffle":
        return _shuffles(config, side)
    radii = config.levels or tuple(
        2.0**power for power in range(1, 12) if 2**power < highest_frequency(side)
    )
    if any(radius < 0 for radius in radii) or len(set(radii)) < len(radii):
        raise ConfigError(
            f"`levels={_texts(radii)}`: radii are different numbers of cycles per image, 0 "
            "or more"
        )
    radii = tuple(sorted(radii))
    if config.how == "band_pass":
        ends = radii if config.levels else (0.0, *radii, np.inf)
        if len(ends) < 2:
            raise ConfigError(
                f"`levels={_texts(ends)}`: bands lie between neighbouring radii; give at "
                "least two"
            )
        bands = list(itertools.pairwise(ends))
        return {f"{low:g}-{high:g}": _filter(low, high) for low, high in bands}
    if config.how == "low_pass":
        return {f"{radius:g}": _filter(0, radius) for radius in radii if radius}
    return {f"{radius:g}": _filter(radius, np.inf) for radius in radii}


def _filter(low: float, high: float) -> Manipulation:
    return lambda batch: band_pass(_as_they_are(batch), low, high).clamp(0, 1)


def _shuffles(config: ManipulationConfig, side: int) -> dict[str, Manipulation]:
    usual = [float(grid) for grid in (2, 4, 8, 16) if side % grid == 0 and grid < side]
    grids = config.levels or usual
    for grid in grids or (2.0,):
        if grid < 1 or grid != int(grid) or side % int(grid):
            divisors = [k for k in range(2, side + 1) if side % k == 0]
            raise ConfigError(
                f"`levels={grid:g}`: images of {side} px cannot be cut into so many equal "
                f"patches per side; use one of {', '.join(map(str, divisors))}, or another "
                "`resolution`"
            )

    def shuffle(grid: int) -> Manipulation:
        return lambda batch: shuffle_patches(
            _as_they_are(batch), grid, batch.indices.cpu().numpy(), config.seed
        )

    return {f"{grid:g}": shuffle(int(grid)) for grid in dict.fromkeys(grids)}


def _texts(levels: Sequence[float]) -> str:
    return " ".join(f"{level:g}" for level in levels)


def _spread(first: list[np.ndarray]) -> np.ndarray:
    """Choose examples among the first images of each batch, so that classes differ."""
    every = np.concatenate(first)
    places = np.linspace(0, len(every) - 1, min(_EXAMPLES, len(every)))
    return np.take(every, places.round().astype(int), axis=0)
