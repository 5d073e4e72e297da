"""How the images of a data set are prepared for a network: what it expects decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fastadv.data import ImageSet
from fastadv.data.config import ImagesConfig
from fastadv.data.loading.geometry import usual_preparation
from fastadv.data.sets.image_set import sampled_sizes
from fastadv.models.source import Source
from fastadv.preparation import Preparation

_SAMPLE = 64  # images looked at to learn whether all have the same size


@dataclass(frozen=True)
class Prepared:
    """How images are prepared, and who decided that.

    Attributes:
        how: Sizes and filter.
        why: The reason, for people.
        chosen: Whether flags decided, and not the source.
    """

    how: Preparation
    why: str
    chosen: bool = False

    def __str__(self) -> str:
        return f"{self.how}: {self.why}"


def preparation_for(
    source: Source,
    images: ImageSet,
    side: int,
    config: ImagesConfig | None = None,
    *,
    whole: bool = False,
) -> Prepared:
    """Return how images are prepared for a network of their resolution.

    What the source expects decides. The images of a network of unknown training stay as
    they are if they already have the size; otherwise their shorter side becomes 256/224 of
    the crop where the data set is one of photographs, and the crop itself elsewhere.

    Args:
        source: The network.
        images: The images, all of the split that is judged.
        side: Side of the images that the network sees, in pixels.
        config: Flags that overrule the source.
        whole: Keep all of each image, with the filter that the source expects.

    Raises:
        ConfigError: The flags cannot be met.
    """
    found = _expected(source, images, side)
    if whole:
        how = replace(found.how, resize=side, squash=False)
        found = Prepared(how, "whole images, as is usual for this data set")
    return overruled(found, config)


def overruled(found: Prepared, config: ImagesConfig | None) -> Prepared:
    """Return a preparation after the flags `resize` and `interpolation`.

    Raises:
        ConfigError: The crop is larger than the resized image.
    """
    given: dict[str, Any] = {
        name: value
        for name in ("resize", "interpolation")
        if (value := getattr(config, name, None)) is not None
    }
    if not given:
        return found
    how = replace(found.how, **given)
    how.check()
    return Prepared(how, "as chosen", chosen=True)


def _expected(source: Source, images: ImageSet, side: int) -> Prepared:
    usual = usual_preparation(images.augment_as(source.augment), side)
    if source.preparation is not None:
        return Prepared(source.preparation.at(side), "as the network expects")
    if source.trained_here:
        return Prepared(usual, "as after its training")
    if usual.resize == side:
        return Prepared(usual, "whole images, as is usual for this data set")
    sizes = sampled_sizes(images, _SAMPLE)
    if len(images) and all(size == (side, side) for size in sizes):
        as_they_are = Preparation(resize=side, crop=side)
        return Prepared(as_they_are, "the images already have that size")
    return Prepared(usual, "the usual share for a network of unknown training")
