"""One training step: attack the batch, then update on what the attack made of it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastadv.attacks import PGD
from fastadv.kernels import normalize
from fastadv.models import NormalizedModel
from fastadv.models.view import AttackView


@dataclass(frozen=True)
class StepResult:
    """What a step measured; tensors stay on the device, unread.

    Attributes:
        loss: mean cross-entropy, float32 scalar.
        correct: number of images of the batch classified correctly, int64 scalar.
    """

    loss: Tensor
    correct: Tensor


def train_step(
    model: NormalizedModel,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    attack: PGD | None = None,
    view: AttackView | None = None,
    seed: int = 0,
    precision: str = "fp32",
) -> StepResult:
    """Update `model` on one batch; with `attack`, on adversarial images only.

    Args:
        model: in the mode it trains in.
        images: uint8 [N, 3, H, W] in 0..255.
        labels: int64 [N].
        optimizer: of the parameters that train.
        attack: None trains on the images as they are.
        view: the attack view of `model`; refreshed here. Required with `attack`.
        seed: of this step's random starts.
        precision: `"fp32"`, or `"bf16"` for autocast.

    Raises:
        ValueError: `attack` without `view`.
    """
    if attack is None:
        z = normalize(images, mean=model.mean, std=model.std)
    elif view is None:
        raise ValueError("an attack needs the view of the model: AttackView(model)")
    else:
        view.refresh()
        _, z = attack.perturb(view, images, labels, seed=seed)
    optimizer.zero_grad(set_to_none=True)
    with _autocast(images.device.type, precision):
        logits = model.forward_normalized(z)
        loss = F.cross_entropy(logits.float(), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    correct = (logits.detach().argmax(1) == labels).sum()
    return StepResult(loss.detach(), correct)


def _autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    if precision == "bf16":
        return torch.autocast(device, dtype=torch.bfloat16)
    return contextlib.nullcontext()
