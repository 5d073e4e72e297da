"""Checks of a model for what makes its robust accuracy look better than it is.

Together they cost three forward passes and one input gradient, which is little beside an
attack. What a check finds is reported and never repaired.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadv.attacks.objectives import Context, margin
from fastadv.attacks.outputs import (
    PROBABILITIES,
    are_probabilities,
    checked_logits,
    logits_of_model,
)
from fastadv.models.calling import input_gradient
from fastadv.models.view import AttackView

# Outputs, scaled to unit length, that differ by more than this between two passes over the
# same images do not differ by rounding. The bound is that of AutoAttack's own check.
_SAME = 1e-4
# If a black-box attack breaks a larger share of the images after the white-box attacks,
# gradients are said to be masked. The bound is AutoAttack's.
MASKING_GAIN = 0.002
# Along the gradient of an ordinary network nearly every image has a higher loss; along
# random directions, half of them have.
MISLED = 0.25
_STEP = 2 / 255  # length of that step in each pixel


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
        misleading_gradients: Number of images at which a small step along a gradient that
            is not zero raises neither the cross-entropy nor the margin.
    """

    images: int = 0
    probabilities: bool = True
    randomised: bool = False
    train_mode: bool = False
    zero_gradients: int = 0
    misleading_gradients: int = 0

    def __add__(self, other: Checks) -> Checks:
        return Checks(
            self.images + other.images,
            self.probabilities and other.probabilities,
            self.randomised or other.randomised,
            self.train_mode or other.train_mode,
            self.zero_gradients + other.zero_gradients,
            self.misleading_gradients + other.misleading_gradients,
        )

    @property
    def zero_gradient_share(self) -> float:
        """Share of images with a zero gradient, in [0, 1]."""
        return self.zero_gradients / max(self.images, 1)

    @property
    def misleading_gradient_share(self) -> float:
        """Share of images with a gradient that misleads, in [0, 1]."""
        return self.misleading_gradients / max(self.images, 1)

    def flags(self) -> tuple[str, ...]:
        """Return the name of each reason to doubt a robust accuracy, as rows store it."""
        doubts = {
            "probabilities": self.probabilities and self.images > 0,
            "randomised": self.randomised,
            "zero_gradients": self.zero_gradients > 0,
            "misleading_gradients": self.misleading_gradient_share > MISLED,
        }
        return tuple(name for name, found in doubts.items() if found)

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
        if self.misleading_gradient_share > MISLED:
            found.append(
                f"at {100 * self.misleading_gradient_share:.1f} % of the images a small step "
                "along the gradient does not raise the loss: the gradient is not that of "
                "the model, and attacks that follow it overestimate its robustness. Trust "
                "bpda or black-box attacks (square) here"
            )
        return found


def check_model(
    model: nn.Module,
    view: AttackView,
    x: Tensor,
    y: Tensor,
    clean: Tensor | None = None,
) -> Checks:
    """Check a model on one batch.

    Args:
        model: The model as the caller gave it.
        view: View of that model in evaluation mode, whose gradient is looked at.
        x: Clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
        y: True classes, int64 [N].
        clean: Logits [N, K] of the model for these images, where they are known.

    Raises:
        TypeError: The model does not return logits [N, K].
    """
    z = view.normalize(x)
    with torch.enable_grad():
        outputs = checked_logits(view(z.requires_grad_())).float()
        loss = F.cross_entropy(outputs, y, reduction="none")
        grad = input_gradient(loss.sum(), z)
    z = z.detach()
    zero = (grad.flatten(1) == 0).all(1)
    with torch.no_grad():
        std = view.statistics(x.shape[1])[1].view(1, -1, 1, 1)
        there = checked_logits(
            view(z + (_STEP / std * grad.sign()).to(z.dtype))
        ).float()
        context = Context(y)
        rises = F.cross_entropy(there, y, reduction="none") > loss
        rises |= margin(there, context) > margin(outputs, context)
        # Where outputs are not finite, there is nothing to compare.
        known = there.isfinite().all(1) & outputs.isfinite().all(1)
        if clean is None:
            clean = logits_of_model(model, x)
        again = logits_of_model(model, x)
        both = clean.isfinite().all(1) & again.isfinite().all(1)
        apart = F.normalize(clean[both].float()) - F.normalize(again[both].float())
    drawn = view.agreement is not None and view.agreement.randomised
    randomised = drawn or bool((apart.norm(dim=1) > _SAME).any())
    return Checks(
        images=len(y),
        probabilities=are_probabilities(clean),
        randomised=randomised,
        train_mode=any(module.training for module in model.modules()),
        zero_gradients=int(zero.sum()),
        # Another draw may have a lower loss, whatever the gradient.
        misleading_gradients=0 if randomised else int((~rises & ~zero & known).sum()),
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
