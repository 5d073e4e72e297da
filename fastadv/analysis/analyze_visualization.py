"""The analysis that shows what maximises units of a layer, or the probability of classes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastadv.analysis.ascent import (
    LOGITS,
    Budget,
    ascend_all,
    class_objective,
    count_units,
    unit_objective,
    view_of_layer,
)
from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.images import a_few, options_for, pixels, seen_by
from fastadv.analysis.seeing_config import VisualizationConfig
from fastadv.analysis.starts import GaussianImages, noise_image
from fastadv.data import ImageSet, LoaderOptions, open_dataset
from fastadv.errors import ConfigError, DataError, unknown_name
from fastadv.evaluation.rows import source_record, target_record
from fastadv.evaluation.source import check_same_classes
from fastadv.models.source import Source, open_source
from fastadv.models.view import AttackView
from fastadv.results.portions import Portions
from fastadv.results.seeing_settings import VisualizationSetting

log = logging.getLogger(__name__)

CLASSES = "log_softmax"  # The layer that a setting names where classes are maximised.
_UNITS = 8  # Units that are maximised where none are chosen.
_EPS_AT_224 = 40.0  # Radius of Santurkar et al. 2019 for ImageNet.


def prepare(config: VisualizationConfig, name: str) -> Analysis:
    """Prepare to maximise units of a layer, or the log-probability of classes.

    Args:
        config: The choices.
        name: The source, one of `config.source`.

    Returns:
        The analysis. It has one row for each unit, `activation:UNIT`, or class,
        `log_probability:CLASS`: the mean that was reached over the starting images.
        Arrays beside them, of U units and S starting images: `images` uint8
        [U, S, C, H, W]; `starts`, the same with U = 1 where all units start alike;
        `before`, `after` and `distance` (L2, pixel units), float32 [U, S]; `names`.

    Raises:
        CheckpointError, DataError, ConfigError: The source or the images are unusable,
            the layer, a unit or a class does not exist, or no activation is finite.
    """
    source = open_source(name, download=config.download)
    side = config.resolution or source.resolution
    splits = open_dataset(config.data, resolution=side, **config.options)
    options = options_for(source, splits.test, config)
    layer = LOGITS if config.classes else config.layer

    def make_view() -> AttackView:
        model = source.load().eval().to(options.device)
        return view_of_layer(model, layer, side)

    if config.classes:
        units = _classes(config.classes, source, splits.test)
    else:
        units = _units(
            config.units, source, layer, count_units(make_view(), layer, side)
        )
    photos = seen_by(source, a_few(splits.test, config.num_images, config.seed))
    if config.start == "images" and len(photos) < config.num_images:
        log.warning(
            "%s has %d test images, not %d", photos.name, len(photos), config.num_images
        )
    budget = config.budget(side, _EPS_AT_224 * side / 224)

    def compute(portions: Portions) -> Findings:
        train = seen_by(source, splits.train)
        starts = _starts(config, source, train, photos, options, units)
        objective = class_objective() if config.classes else unit_objective(layer)
        count = starts.shape[1]
        cells = [
            functools.partial(_cell, starts[i % len(starts), number], unit)
            for i, unit in enumerate(units)
            for number in range(count)
        ]
        work = cells, objective, Budget(**budget), config.batch_size
        found = ascend_all(portions, make_view, *work)
        arrays = {
            key: each.reshape(len(units), count, *each.shape[1:])
            for key, each in found.items()
        }
        names = [_named(unit, source, splits.test, layer) for unit in units]
        what = "log_probability" if config.classes else "activation"
        numbers = _numbers(arrays, what, names, source)
        more = {"names": np.array(names), "starts": _rounded(starts)}
        return Findings(numbers, arrays | more)

    return Analysis(
        source=source_record(source),
        target=target_record(photos, side, config.name_with_options(photos.name)),
        setting=VisualizationSetting(
            layer=CLASSES if config.classes else layer,
            units=tuple(units),
            start=config.start,
            num_images=len(photos) if config.start == "images" else config.num_images,
            grain=_grain(config, side) if config.start == "gaussian" else None,
            preparation=options.preparation,
            **budget,
        ),
        compute=compute,
        seed=config.seed,
    )


def _cell(start: Tensor, unit: int) -> tuple[Tensor, Tensor]:
    return start, torch.tensor(unit)


def _rounded(images: Tensor) -> np.ndarray:
    return images.mul(255).round().byte().numpy()


def _numbers(
    arrays: dict[str, np.ndarray], what: str, names: Sequence[str], source: Source
) -> list[Measured]:
    """Return the mean activation of each unit; units without one are named."""
    after = np.where(np.isfinite(arrays["before"]), arrays["after"], np.nan)
    arrays["after"] = after
    numbers, unknown = [], []
    for name, values in zip(names, after, strict=True):
        good = values[np.isfinite(values)]
        if len(good) < len(values):
            unknown.append(name)
        if len(good):
            numbers.append(Measured.mean_of(f"{what}:{name}", good))
    if not numbers:
        raise ConfigError(f"{source.name}: no activation is finite")
    if unknown:
        log.warning(
            "%s: activations that are not finite are left out: %s",
            source.name,
            ", ".join(unknown),
        )
    moved = (arrays["distance"] > 0) | ~np.isfinite(after)
    still = [name for i, name in enumerate(names) if not moved[i].any()]
    if still:
        log.warning(
            "%s: no starting image moved for %s: the gradient is zero there, as behind a "
            "ReLU that is off; start elsewhere, or choose a layer before it",
            source.name,
            ", ".join(still),
        )
    return numbers


# ---- units and classes ----


def _units(wanted: Sequence[int], source: Source, layer: str, count: int) -> list[int]:
    if not wanted:
        return sorted({count * i // _UNITS for i in range(_UNITS)})
    beyond = [unit for unit in wanted if unit >= count]
    if beyond:
        raise ConfigError(
            f"{source.name}: the layer {layer} has {count} units, 0 to {count - 1}; there "
            f"is no unit {', '.join(map(str, beyond))}"
        )
    return list(dict.fromkeys(wanted))


def _class_names(source: Source, images: ImageSet) -> tuple[str, ...]:
    """Return the names of the classes of a source; none if they are unknown."""
    if source.classes or source.num_classes != len(images.classes):
        return source.classes
    return images.classes


def _classes(wanted: Sequence[str], source: Source, images: ImageSet) -> list[int]:
    """Return the numbers of classes that are given by name or number."""
    names, found = _class_names(source, images), []
    for text in wanted:
        if text in names:
            found.append(names.index(text))
        elif text.isdecimal() and int(text) < source.num_classes:
            found.append(int(text))
        else:
            known = names or (f"0 to {source.num_classes - 1}",)
            raise ConfigError(f"{source.name}: {unknown_name('class', text, known)}")
    return list(dict.fromkeys(found))


def _named(unit: int, source: Source, images: ImageSet, layer: str) -> str:
    names = _class_names(source, images) if layer == LOGITS else ()
    return names[unit] if names else str(unit)


# ---- starting images ----


def _grain(config: VisualizationConfig, side: int) -> int:
    return config.grain or max(1, round(4 * side / 224))


def _starts(
    config: VisualizationConfig,
    source: Source,
    train: ImageSet,
    photos: ImageSet,
    options: LoaderOptions,
    units: Sequence[int],
) -> Tensor:
    """Return starting images in [0, 1]: float32 [1 or U, S, C, H, W]."""
    side, count = options.resolution, range(config.num_images)
    if config.start == "images":
        return pixels(photos, range(len(photos)), options)[None].float() / 255
    if config.start == "noise":
        drawn = [
            noise_image((source.channels, side, side), config.seed, i) for i in count
        ]
        return torch.stack(drawn)[None]
    if not config.classes:
        some = a_few(train, config.num_fitted, config.seed)
        fitted = GaussianImages(
            pixels(some, range(len(some)), options), _grain(config, side)
        )
        return torch.stack([fitted.draw(config.seed, "all", i) for i in count])[None]
    check_same_classes(source, train)
    drawn = []
    for unit in units:
        rows = np.flatnonzero(train.labels == unit)[: config.num_fitted]
        images = pixels(train, rows, options) if len(rows) else torch.empty(0)
        if len(images) < 2:
            raise DataError(
                f"{train.name} has {len(images)} training images of class "
                f"{train.classes[unit]} that can be read; a Gaussian needs two"
            )
        fitted = GaussianImages(images, _grain(config, side))
        each = [fitted.draw(config.seed, unit, number) for number in count]
        drawn.append(torch.stack(each))
    return torch.stack(drawn)
