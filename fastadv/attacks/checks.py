"""Checks of a model for what makes its robust accuracy look better than it is.

Together they cost two forward passes and one input gradient, which is little beside an
attack. What a check finds is reported and never repaired.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadv.attacks.engine import PROBABILITIES, are_probabilities, checked_logits
from fastadv.models.view import AttackView

# Outputs, scaled to unit length, that differ by more than this between two passes over the
# same images do not differ by rounding. The bound is that of AutoAttack's own check.
_SAME = 1e-4
# If a black-box attack breaks a larger share of the images after the white-box attacks,
# gradients are said to be masked. The bound is AutoAttack's.
MASKING_GAIN = 0.002


@dataclass(frozen=True)
class Checks:
    """What the checks found on some images; results of batches can be added.

    Attributes:
        images: Number of images that were checked.
        probabilities: Whether every output row is >= 0 and sums to one, as after a
            softmax; logits do not.
        randomised: Whether two forward passes over the same images differ.
        train_mode: Whether a module of the model was in training mode when it was given.
            Attacks and verdicts use the model in evaluation mode, whatever its mode.
        zero_gradients: Number of images at which the input gradient of the cross-entropy
            is zero in every element.
    """

    images: int = 0
    probabilities: bool = True
    randomised: bool = False
    train_mode: bool = False
    zero_gradients: int = 0

    def __add__(self, other: Checks) -> Checks:
        return Checks(
            self.images + other.images,
            self.probabilities and other.probabilities,
            self.randomised or other.randomised,
            self.train_mode or other.train_mode,
            self.zero_gradients + other.zero_gradients,
        )

    @property
    def zero_gradient_share(self) -> float:
        """Share of images with a zero gradient, in [0, 1]."""
        return self.zero_gradients / max(self.images, 1)

    def warnings(self) -> list[str]:
        """Return one sentence for each problem found."""
        found = []
        if self.probabilities and self.images:
            found.append(PROBABILITIES)
        if self.randomised:
            found.append(
                "two passes over the same images differ: the model is randomised, and "
                "attacks that follow one draw overestimate its robustness. Fix its noise, "
                "or attack the average over draws"
            )
        if self.train_mode:
            found.append(
                "the model was given in training mode; it was attacked and judged in "
                "evaluation mode (running BatchNorm statistics, no dropout). Call "
                "model.eval() if that is what you mean"
            )
        if self.zero_gradients:
            found.append(
                f"{100 * self.zero_gradient_share:.1f} % of the images have a zero "
                "cross-entropy gradient: attacks on the cross-entropy leave them where "
                "they are. Trust margin, DLR (apgd-t) or black-box attacks (square) here"
            )
        return found


def check_model(model: nn.Module, view: AttackView, x: Tensor, y: Tensor) -> Checks:
    """Check a model on one batch.

    Args:
        model: The model as the caller gave it; only its training flags are read.
        view: View of that model in evaluation mode.
        x: Clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
        y: True classes, int64 [N].

    Raises:
        TypeError: The model does not return logits [N, K].
    """
    z = view.normalize(x)
    with torch.enable_grad():
        outputs = checked_logits(view(z.requires_grad_())).float()
        (grad,) = torch.autograd.grad(
            F.cross_entropy(outputs, y, reduction="sum"), z, allow_unused=True
        )
    with torch.no_grad():
        again = checked_logits(view(z.detach())).float()
        outputs = outputs.detach()
        apart = (F.normalize(outputs) - F.normalize(again)).norm(dim=1)
        zero = len(y) if grad is None else (grad.flatten(1) == 0).all(1).sum().item()
    return Checks(
        images=len(y),
        probabilities=are_probabilities(outputs),
        randomised=bool((apart > _SAME).any()),
        train_mode=any(module.training for module in model.modules()),
        zero_gradients=int(zero),
    )


def masking_warning(gain: float) -> str | None:
    """Return a warning if black-box attacks broke too many images, or None.

    Args:
        gain: Share of the images that only a black-box attack broke, in [0, 1].

    Source: Athalye, Carlini and Wagner 2018; the bound is AutoAttack's.
    """
    if gain <= MASKING_GAIN:
        return None
    return (
        f"the black-box attack broke {100 * gain:.1f} % of the images that no white-box "
        "attack did: gradients are masked, and the true robust accuracy may be far lower. "
        "Attack a differentiable stand-in of the model and transfer"
    )
