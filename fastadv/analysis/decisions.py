"""Decisions of a network on batches of images, in evaluation mode."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.errors import CheckpointError
from fastadv.evaluation.class_map import ClassMap
from fastadv.models.view import AttackView


@torch.no_grad()
def finite_logits(
    view: AttackView, images: Tensor, what: str, classes: ClassMap | None = None
) -> Tensor:
    """Return the logits of images, float32 [N, K].

    Args:
        view: The network.
        images: Images, uint8 or float in [0, 1], [N, C, H, W], on its device.
        what: Name of the network, or of it and the images, in messages.
        classes: Outputs that stand for each of the K classes of the data. Default: every
            output stands for a class.

    Raises:
        CheckpointError: A logit is not a finite number.
    """
    logits: Tensor = view(view.normalize(images)).float()
    if classes is not None:
        logits = classes.scores(logits)
    bad = int((~torch.isfinite(logits)).any(1).sum())
    if bad:
        raise CheckpointError(
            f"{what}: the logits of {bad} of {len(logits)} images of a batch are not "
            "finite, so that the network decides nothing; look for NaN or overflow in its "
            "weights"
        )
    return logits
