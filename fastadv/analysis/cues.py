"""Shape and texture of images whose both cues are known: drawn ones, or exchanged ones.

`analyze_shape` hands such data sets over to `prepare_cues`. A decision for the class of
the shape follows the shape, one for the class of the texture follows the texture; where
both are of one class, an image tells nothing about the cue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fastadv.analysis.config import ShapeConfig
from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.decisions import finite_logits
from fastadv.analysis.images import options_for, seen_by
from fastadv.analysis.portions import count_batches, numbered_batches
from fastadv.analysis.shape import ShapeBias
from fastadv.data import ImageSet, LoaderOptions, ShapeTex, make_loader, open_dataset
from fastadv.data.sets.exchanged import TextureExchanged
from fastadv.data.sets.subsets import Subset, at_most, base_and_positions
from fastadv.errors import ConfigError
from fastadv.evaluation.rows import source_record, target_record
from fastadv.evaluation.source import check_same_classes, open_for
from fastadv.models.source import Source, open_source
from fastadv.models.view import AttackView
from fastadv.results.analysis_settings import ShapeSetting
from fastadv.results.portions import Portions

Classes = NDArray[np.int64]


@dataclass(frozen=True)
class _Cues:
    """Images with two cues, and images of the same kind to compare with.

    Attributes:
        kind: `shapetex` or `exchange`.
        images: Images whose cues are independent.
        shapes: Class of the shape of each, int64 [n].
        textures: Class of the texture of each, int64 [n].
        others: Images of the same classes in which no cue misleads.
        metric: Name of the accuracy on these.
    """

    kind: str
    images: ImageSet
    shapes: Classes
    textures: Classes
    others: ImageSet
    metric: str


def prepare_cues(config: ShapeConfig, name: str) -> Analysis:
    """Prepare to count decisions for the shape and the texture of a data set's images.

    Args:
        config: The choices; its data set is shapetex, or has exchanged textures.
        name: The source, one of `config.source`.

    Returns:
        The analysis. Beside the rows of cue conflict images it has the accuracy by the
        shape where the texture is random (`shape_accuracy`), by the texture where the
        shape is random (`texture_accuracy`), and on drawn images whose cues agree
        (`agreeing_accuracy`), or on the images as they are (`plain_accuracy`). Arrays beside
        them: `decisions`, `shapes` and `textures`, classes int64 [n].

    Raises:
        CheckpointError, DataError, ConfigError: The source or the images are unusable, or
            have other classes.
    """
    source = open_source(name, download=config.download)
    side = config.resolution or source.resolution
    drawn = config.data.startswith("shapetex")
    cues = (_drawn if drawn else _exchanged)(config, source, side)
    images, plain = seen_by(source, cues.images), seen_by(source, cues.others)
    options = options_for(source, cues.images, config)

    def compute(portions: Portions) -> Findings:
        decide = partial(_decisions, portions, config, source, options)
        rows, decisions = decide("cues", images)
        shapes, textures = cues.shapes[rows], cues.textures[rows]
        for_shape, for_texture = decisions == shapes, decisions == textures
        conflict = shapes != textures
        bias = ShapeBias(
            shape=int((for_shape & conflict).sum()),
            texture=int((for_texture & conflict).sum()),
            other=int((conflict & ~for_shape & ~for_texture).sum()),
        )
        cued = bias.shape + bias.texture
        if not cued:
            raise ConfigError(f"{name}: no decision is for the shape or the texture")
        rows, others = decide("others", plain)
        right = others == cues.others.labels[rows]
        numbers = [
            Measured.share_of("shape_share", bias.shape, cued),
            Measured.share_of("cued_share", cued, int(conflict.sum())),
            Measured.share_of("shape_accuracy", int(for_shape.sum()), len(shapes)),
            Measured.share_of(
                "texture_accuracy", int(for_texture.sum()), len(textures)
            ),
            Measured.share_of(cues.metric, int(right.sum()), len(right)),
        ]
        arrays = {"decisions": decisions, "shapes": shapes, "textures": textures}
        return Findings(numbers, arrays)

    return Analysis(
        source=source_record(source),
        target=target_record(images, side, config.name_with_options(images.name)),
        setting=ShapeSetting(
            num_images=len(cues.images),
            categories=cues.images.classes,
            preparation=options.preparation,
            images=cues.kind,
        ),
        compute=compute,
        seed=config.seed,
    )


def _decisions(
    portions: Portions,
    config: ShapeConfig,
    source: Source,
    options: LoaderOptions,
    what: str,
    images: ImageSet,
) -> tuple[Classes, Classes]:
    """Return the positions of the images that can be read, and what was decided."""

    def decide(first: int) -> Iterator[tuple[int, dict[str, Classes]]]:
        view = AttackView(source.load().eval().to(options.device))
        for number, batch in numbered_batches(
            make_loader(images, **vars(options)), first
        ):
            decided = finite_logits(view, batch.images, source.name).argmax(1)
            rows = batch.indices.cpu().numpy()
            yield number, {"rows": rows, "decisions": decided.cpu().numpy()}

    key = f"{what}-batches-of-{config.batch_size}"
    found = list(portions.each(key, count_batches(images, options), decide))
    rows, decisions = (
        np.concatenate([each[name] for each in found]) for name in ("rows", "decisions")
    )
    return rows, decisions


def _drawn(config: ShapeConfig, source: Source, side: int) -> _Cues:
    """Return drawn images with independent cues, and drawn ones whose cues agree."""
    if "test_correlation" in config.options:
        raise ConfigError(
            "the cues of shapetex are judged where they are independent and where they "
            "agree: leave out the option test_correlation"
        )
    images, others = (
        open_dataset(
            config.data, resolution=side, **config.options, test_correlation=correlation
        ).test
        for correlation in (0.0, 1.0)
    )
    if not isinstance(images, ShapeTex):
        raise ConfigError(
            f"{config.data} draws its own textures: leave out the option texture"
        )
    classes = ShapeTex.SHAPE_NAMES, ShapeTex.TEXTURE_NAMES
    if source.num_classes != len(images.classes) or (
        source.classes and tuple(source.classes) not in classes
    ):
        raise ConfigError(
            f"{source.name} has {source.num_classes} classes"
            f"{_named(source)}; the cues of shapetex need a network of its "
            f"{len(images.classes)} shapes or textures. Train one with `data=shapetex`, or "
            "transfer one to it"
        )
    attributes = images.attributes
    return _Cues(
        "shapetex",
        images,
        attributes["shape"].astype(np.int64),
        attributes["texture"].astype(np.int64),
        others,
        "agreeing_accuracy",
    )


def _named(source: Source) -> str:
    if not source.classes:
        return ""
    return f" ({', '.join(list(source.classes)[:3])}, ...)"


def _exchanged(config: ShapeConfig, source: Source, side: int) -> _Cues:
    """Return test images with the spectrum of others, and the same images as they are."""
    test = open_for(source, config.data, side, config.options).test
    check_same_classes(source, test)
    if not isinstance(test, TextureExchanged) or test.texture_labels is None:
        raise ConfigError(
            f"the classes of the textures of {config.data} are unknown; use "
            "`dataset_option=texture=exchange`, which takes them from images of the set"
        )
    images = at_most(test, config.num_images, config.seed)
    _, positions = base_and_positions(images)
    return _Cues(
        "exchange",
        images,
        images.labels,
        test.texture_labels[positions],
        Subset(test.base, positions),
        "plain_accuracy",
    )
