"""The analysis of input gradients: how much they are like the image."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.images import a_few, options_for, seen_by
from fastadv.analysis.portions import count_batches, numbered_batches
from fastadv.analysis.seeing_config import GradientsConfig
from fastadv.data import Batch, ImageSet, make_loader
from fastadv.data.sets.subsets import at_most
from fastadv.errors import ConfigError
from fastadv.evaluation.rows import source_record, target_record
from fastadv.evaluation.source import check_same_classes, open_for
from fastadv.models import NormalizedModel
from fastadv.models.source import Source, open_source
from fastadv.models.view import AttackView
from fastadv.reporting.figures.pictures import pixel_gradients, visible_gradient
from fastadv.results.portions import Portions
from fastadv.results.seeing_settings import GradientSetting

log = logging.getLogger(__name__)

PICTURES = 16  # Images whose gradient is kept to be looked at.


def prepare(config: GradientsConfig, name: str) -> Analysis:
    """Prepare to compute input gradients, and their alignment with the images.

    Args:
        config: The choices.
        name: The source, one of `config.source`.

    Returns:
        The analysis. It has rows of the mean `alignment` |<x, g>| / |g| of Etmann et al.
        2019, in units of the normalised input, and of the mean `cosine` |<x, g>| /
        (|x| |g|), in [0, 1]; x is the normalised image and g the gradient of the logit
        that is predicted. Arrays beside them: `alignment` and `cosine` float64 [n], NaN
        where the gradient is zero or not finite; and of the first images `images` and
        `gradients`, uint8 [m, C, H, W], whether these are `finite`, and their `classes`
        in the data set.

    Raises:
        CheckpointError, DataError, ConfigError: The source or the images are unusable, or
            no gradient is finite.
    """
    source = open_source(name, download=config.download)
    side = config.resolution or source.resolution
    test = open_for(source, config.data, side, config.options).test
    chosen = at_most(test, config.num_images, config.seed)
    # Those drawn are of many classes.
    images = seen_by(source, a_few(chosen, len(chosen), config.seed))
    options = options_for(source, test, config)
    loss_of = "label" if _knows(source, test) else "prediction"

    def batches(first: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        model = source.load().eval().to(options.device)
        view = AttackView(model)
        for number, batch in numbered_batches(
            make_loader(images, **vars(options)), first
        ):
            found = {
                "values": alignments(view, batch.images).cpu().numpy(),
                "rows": batch.indices.cpu().numpy(),
            }
            if not number:
                found |= _pictures(model, view, batch, loss_of)
            yield number, found

    def compute(portions: Portions) -> Findings:
        total = count_batches(images, options)
        key = f"batches-of-{config.batch_size}"
        found = list(portions.each(key, total, batches))
        values = np.concatenate([each.pop("values") for each in found], 1)
        rows = np.concatenate([each.pop("rows") for each in found])
        good = np.isfinite(values).all(0)
        _tell_bad(source, images, rows[~good], len(good))
        numbers = [
            Measured.mean_of(metric, each[good])
            for metric, each in zip(("alignment", "cosine"), values, strict=True)
        ]
        arrays = {"alignment": values[0], "cosine": values[1], **found[0]}
        return Findings(numbers, arrays)

    return Analysis(
        source=source_record(source),
        target=target_record(images, side, config.name_with_options(images.name)),
        setting=GradientSetting(
            num_images=len(images),
            loss_of=loss_of,
            preparation=options.preparation,
        ),
        compute=compute,
        seed=config.seed,
    )


def alignments(view: AttackView, images: Tensor) -> Tensor:
    """Return the alignment and the cosine of each image, float64 [2, N].

    Args:
        view: View of the network.
        images: Images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].

    Returns:
        |<x, g>| / |g| and the same divided by |x|, with x the normalised image and g the
        gradient of the largest logit; NaN where g is zero or not finite.

    Source:
        Etmann et al. 2019, definition of the alignment.
    """
    z = view.normalize(images).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(view(z).amax(1).sum(), z)
    x, g = (each.detach().double().flatten(1) for each in (z, gradient))
    alignment = (x * g).sum(1).abs() / g.norm(dim=1)
    return torch.stack([alignment, alignment / x.norm(dim=1)])


def _knows(source: Source, images: ImageSet) -> bool:
    try:
        check_same_classes(source, images)
    except ConfigError as error:
        log.info("gradients are of the loss of the predicted class: %s", error)
        return False
    return True


def _pictures(
    model: NormalizedModel, view: AttackView, batch: Batch, loss_of: str
) -> dict[str, np.ndarray]:
    """Return images and their gradients as they are drawn."""
    x, labels = batch.images[:PICTURES], batch.labels[:PICTURES]
    if loss_of == "prediction":
        with torch.no_grad():
            labels = view(view.normalize(x)).argmax(1)
    gradients = pixel_gradients(model, x, labels)
    finite = torch.isfinite(gradients).flatten(1).all(1)
    drawn = [visible_gradient(each.nan_to_num()) for each in gradients]
    return {
        "images": x.contiguous().cpu().numpy(),
        "gradients": torch.stack(drawn).mul(255).round().byte().cpu().numpy(),
        "finite": finite.cpu().numpy(),
        "classes": batch.labels[:PICTURES].cpu().numpy(),
    }


def _tell_bad(
    source: Source, images: ImageSet, bad: NDArray[np.int64], count: int
) -> None:
    """Name images whose gradient has no direction; it is an error if none has one."""
    if not len(bad):
        return
    listed = ", ".join(images.describe(int(i)) for i in bad[:3])
    what = (
        f"{source.name}: the gradients of {len(bad)} of {count} images are zero or not "
        f"finite: {listed}{', ...' if len(bad) > 3 else ''}"
    )
    if len(bad) == count:
        raise ConfigError(what)
    log.warning("%s; they do not count", what)
