"""Depth of 16-bit images: cameras and scanners often fill fewer bits of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from fastadv.data.decoding import BadImage, filled_bits
from fastadv.data.sets.image_set import FileSet, ImageSet, option_hint
from fastadv.errors import ConfigError

log = logging.getLogger(__name__)

_SAMPLE = 24  # images looked at per split
_DEPTHS = (8, 10, 12, 14, 16)


def set_depth(sets: Iterable[ImageSet], where: str, bits: int | None = None) -> None:
    """Set how many bits the 16-bit images of a data set are taken to fill.

    Without `bits`, some images of each split are looked at. Where all that have 16 bits
    fill fewer, the images are scaled by what they fill, and that is said.

    Args:
        sets: The splits of the data set.
        where: The data set in messages.
        bits: The number of bits; None finds it out.

    Raises:
        ConfigError: The number is not 8, 10, 12, 14 or 16.
    """
    if bits is not None and bits not in _DEPTHS:
        raise ConfigError(
            f"bits={bits}; expected one of {', '.join(map(str, _DEPTHS))}"
        )
    files = [images for images in sets if isinstance(images, FileSet)]
    if bits is None:
        found = [depth for images in files for depth in _depths(images)]
        bits = max(found, default=16)
        if bits < 16:
            log.warning(
                "%s: images are %d-bit ones in 16-bit files (%d looked at); %d becomes "
                "white. If they are dark ones of 16 bits, give %s",
                where,
                bits,
                len(found),
                (1 << bits) - 1,
                option_hint("bits", "16"),
            )
    for images in files:
        images.bits = bits


def _depths(images: FileSet) -> list[int]:
    found = []
    for index in range(0, len(images), max(1, len(images) // _SAMPLE)):
        try:
            depth = filled_bits(images.read(index))
        except BadImage:
            continue
        if depth is not None:
            found.append(depth)
    return found
