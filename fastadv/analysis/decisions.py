"""Decisions of a network on batches of images, in evaluation mode."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.errors import CheckpointError
from fastadv.models.view import AttackView


@torch.no_grad()
def finite_logits(view: AttackView, images: Tensor, what: str) -> Tensor:
    """Return the logits of images, float32 [N, K].

    Args:
        view: The network.
        images: Images, uint8 or float in [0, 1], [N, C, H, W], on its device.
        what: Name of the network in messages.

    Raises:
        CheckpointError: A logit is not a finite number.
    """
    logits: Tensor = view(view.normalize(images)).float()
    bad = int((~torch.isfinite(logits)).any(1).sum())
    if bad:
        raise CheckpointError(
            f"{what}: the logits of {bad} of {len(logits)} images of a batch are not "
            "finite, so that it decides nothing; look for NaN or overflow in its weights"
        )
    return logits
