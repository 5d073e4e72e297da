"""The images of an analysis, prepared as the network expects them."""

from __future__ import annotations

from typing import Any

from fastadv.analysis.config import AnalysisConfig
from fastadv.data import ImageSet, LoaderOptions
from fastadv.device import resolve_device
from fastadv.evaluation.preparing import preparation_for
from fastadv.models.source import Source


def options_for(
    source: Source, images: ImageSet, config: AnalysisConfig
) -> LoaderOptions:
    """Return the options of a loader of a source's images in evaluation mode.

    Args:
        source: The network.
        images: The images, all of the split.
        config: The choices; they overrule what the source expects.

    Raises:
        ConfigError: The choices cannot be met.
    """
    side = config.resolution or source.resolution
    augment: Any = source.augment
    return LoaderOptions(
        batch_size=config.batch_size,
        resolution=side,
        train=False,
        augment=augment,
        preparation=preparation_for(source, images, side, config).how,
        device=resolve_device(config.device),
        workers=config.workers,
        on_bad_image=config.on_bad_image,
    )
