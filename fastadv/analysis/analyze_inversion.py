"""The analysis that shows images which a network represents like another image."""

from __future__ import annotations

import functools
import logging

import numpy as np
import torch
from torch import Tensor

from fastadv.analysis.ascent import (
    Budget,
    ascend_all,
    likeness_objective,
    represent,
    view_of_layer,
)
from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.images import a_few, options_for, pixels, seen_by
from fastadv.analysis.seeing_config import InversionConfig
from fastadv.analysis.starts import noise_image
from fastadv.errors import ConfigError, DataError
from fastadv.evaluation.rows import source_record, target_record
from fastadv.evaluation.source import open_for
from fastadv.models.source import Source, open_source
from fastadv.models.view import AttackView
from fastadv.results.portions import Portions
from fastadv.results.seeing_settings import InversionSetting

log = logging.getLogger(__name__)


def prepare(config: InversionConfig, name: str) -> Analysis:
    """Prepare to move images until their representation is that of target images.

    Args:
        config: The choices.
        name: The source, one of `config.source`.

    Returns:
        The analysis. It has rows of the mean relative distance |r(x) - r| / |r| that was
        reached, `distance` (with several blends, or one that is not 1, `distance:BLEND`
        for each); and where 1 is among them of `image_distance`, the distance to the
        target image divided by that of the start, below 1 where what the network sees
        brings the image nearer. Arrays beside them, of B blends and n targets: `images`
        uint8 [B, n, C, H, W]; `starts`, `targets` and `others` uint8 [n, C, H, W];
        `before`, `after` (relative distances) and `distance` (L2 to the start, pixel
        units), float32 [B, n].

    Raises:
        CheckpointError, DataError, ConfigError: The source or the images are unusable,
            there are fewer than two, the layer does not exist, or no representation is
            finite.
    """
    source = open_source(name, download=config.download)
    side = config.resolution or source.resolution
    test = open_for(source, config.data, side, config.options).test
    options = options_for(source, test, config)

    def make_view() -> AttackView:
        model = source.load().eval().to(options.device)
        return view_of_layer(model, config.layer, side)

    make_view()  # A layer that does not exist is found before anything is computed.
    images = seen_by(source, a_few(test, 2 * config.num_images, config.seed))
    count = len(images) // 2
    if not count:
        raise ConfigError(f"{test.name} has one test image; an inversion needs two")
    if count < config.num_images:
        log.warning(
            "%s has %d test images: %d are targets, not %d",
            test.name,
            len(images),
            count,
            config.num_images,
        )
    budget = config.budget(side, (source.channels * side**2) ** 0.5)

    def compute(portions: Portions) -> Findings:
        both = pixels(images, range(len(images)), options)
        read = len(both) // 2
        if not read:
            raise DataError(
                f"{images.name} has one test image that can be read; an inversion needs two"
            )
        if read < count:
            log.warning(
                "%d of %d test images cannot be read: %d are targets, not %d",
                len(images) - len(both),
                len(images),
                read,
                count,
            )
        targets, others = both[: 2 * read].chunk(2)
        starts = others.float() / 255
        if config.start == "noise":
            shape = source.channels, side, side
            drawn = [noise_image(shape, config.seed, i) for i in range(len(starts))]
            starts = torch.stack(drawn)
        view = make_view()
        of_target, of_other = (
            _representations(view, each, config) for each in (targets, others)
        )
        cells = [
            functools.partial(_cell, starts, of_target, of_other, blend, i)
            for blend in config.blends
            for i in range(len(starts))
        ]
        objective = likeness_objective(config.layer)
        work = cells, objective, Budget(**budget), config.batch_size
        found = ascend_all(portions, lambda: view, *work)
        arrays = {
            key: each.reshape(len(config.blends), len(starts), *each.shape[1:])
            for key, each in found.items()
        }
        for key in ("before", "after"):  # Likenesses are minus distances.
            arrays[key] = -arrays[key]
        arrays |= {
            "targets": targets.numpy(),
            "others": others.numpy(),
            "starts": starts.mul(255).round().byte().numpy(),
            "blends": np.array(config.blends),
        }
        return Findings(_numbers(arrays, config, source), arrays)

    return Analysis(
        source=source_record(source),
        target=target_record(images, side, config.name_with_options(images.name)),
        setting=InversionSetting(
            layer=config.layer,
            start=config.start,
            num_images=count,
            blends=config.blends,
            preparation=options.preparation,
            **budget,
        ),
        compute=compute,
        seed=config.seed,
    )


@torch.no_grad()
def _representations(
    view: AttackView, images: Tensor, config: InversionConfig
) -> Tensor:
    """Return what the layer outputs for images, flat and on the CPU, float32 [n, D]."""
    device = view.statistics(3)[0].device
    found = [
        represent(view, view.normalize(some.to(device)), config.layer).flatten(1)
        for some in torch.split(images, config.batch_size)
    ]
    return torch.cat(found).float().cpu()


def _cell(
    starts: Tensor, of_target: Tensor, of_other: Tensor, blend: float, i: int
) -> tuple[Tensor, Tensor]:
    return starts[i], torch.lerp(of_other[i], of_target[i], blend)


def _numbers(
    arrays: dict[str, np.ndarray], config: InversionConfig, source: Source
) -> list[Measured]:
    """Return mean distances; images whose representation is not finite are left out."""
    good = np.isfinite(arrays["before"]) & np.isfinite(arrays["after"])
    arrays["after"] = np.where(good, arrays["after"], np.nan)
    if not good.any(1).all():
        raise ConfigError(
            f"{source.name}: no representation by {config.layer} is finite"
        )
    if not good.all():
        log.warning(
            "%s: representations by %s that are not finite are left out: those of %d of "
            "%d images",
            source.name,
            config.layer,
            int((~good).any(0).sum()),
            good.shape[1],
        )
    numbers = []
    for blend, values, which in zip(config.blends, arrays["after"], good, strict=True):
        metric = "distance" if config.blends == (1.0,) else f"distance:{blend:g}"
        numbers.append(Measured.mean_of(metric, values[which]))
    if 1.0 in config.blends:
        at = config.blends.index(1.0)
        numbers.append(
            Measured.mean_of("image_distance", _nearer(arrays, at)[good[at]])
        )
    return numbers


def _nearer(arrays: dict[str, np.ndarray], at: int) -> np.ndarray:
    """Return by how much each image came nearer to its target image, as a ratio."""
    target = arrays["targets"].astype(np.float64)
    reached, start = (
        np.sqrt(((each - target) ** 2).sum((1, 2, 3)))
        for each in (arrays["images"][at], arrays["starts"])
    )
    return np.asarray(reached / np.maximum(start, 1e-12))
