"""Schedules of the radius and the resolution, which change from epoch to epoch."""

from __future__ import annotations

from fastadv.training.config import TrainConfig

_STAGES = 4


def side_at(config: TrainConfig, resolution: int, epoch: int) -> int:
    """Return the side of the training images in `epoch` (from 0), in pixels.

    It grows in four stages of equally many epochs, linearly from `config.progressive` to
    `resolution`; sides in between are multiples of 32 (of 4 below 128 px). There are few
    sides, since the network is compiled or recorded anew for each.

    Source:
        Tan and Le 2021 (2104.00298), algorithm 1, with four stages.
    """
    first = config.progressive
    if first is None or epoch >= config.epochs:
        return resolution
    stage = min(_STAGES * epoch // config.epochs, _STAGES - 1)
    unit = 32 if resolution >= 128 else 4
    side = first + (resolution - first) * stage / (_STAGES - 1)
    if stage in (0, _STAGES - 1):
        return round(side)
    return min(max(first, round(side / unit) * unit), resolution)


def radius_at(config: TrainConfig, side: int, resolution: int, epoch: int) -> float:
    """Return the radius of the training attack in `epoch`, as a share of the full one.

    It is 0 in the first `config.clean_epochs` epochs and grows linearly over the
    `config.eps_warmup` that follow. An l2 radius is proportional to the side of the
    images, so that each pixel may change as much.
    """
    attacked = max(0, epoch + 1 - config.clean_epochs)
    warm = min(1.0, attacked / (config.eps_warmup + 1))
    return warm * (side / resolution if config.norm == "l2" else 1.0)
