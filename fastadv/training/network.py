"""The network that a run trains: created, loaded, or given."""

from __future__ import annotations

import logging
from typing import Any, Final

from fastadv.errors import ConfigError
from fastadv.models import NormalizedModel, create_model
from fastadv.training.config import TrainConfig

log = logging.getLogger(__name__)

_GREY: Final = {"mean": (0.449,), "std": (0.226,)}  # means of ImageNet's three channels


def network_of(
    config: TrainConfig,
    classes: int,
    channels: int,
    weights: str | None,
    given: NormalizedModel | None,
) -> NormalizedModel:
    """Return the network that a run trains.

    Args:
        config: The choices.
        classes: Number of classes of the data.
        channels: Number of channels of the images.
        weights: Source of its weights; None draws them.
        given: A network of the user's own, which is trained in place of one that is
            created. Its head is replaced where it has another number of classes.

    Raises:
        ConfigError: The network reads images of another number of channels.
        CheckpointError: The weights cannot be used.
    """
    if given is not None:
        model = given
        if model.num_classes != classes:
            log.warning(
                "the network has %d classes and the data %d: its head is replaced by a "
                "fresh one",
                model.num_classes,
                classes,
            )
            model.replace_head(classes, config.seed)
    else:
        how: dict[str, Any] = _GREY if config.grey and not weights else {}
        model = create_model(
            config.arch, classes, weights=weights, seed=config.seed, **how
        )
    if model.channels != channels:
        raise ConfigError(
            f"the network {config.arch} reads {model.channels} channels, and the images "
            f"have {channels}; `grey` is for networks of one channel"
        )
    return model
