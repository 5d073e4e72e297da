"""The decision boundary along the direction of an attack: how far, and how steep.

Along the straight way from an image in the direction of its perturbation, the margin of
the logits is the logit of the class less the highest other one. The boundary lies where
it is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks.minimal import norm_of
from fastadv.attacks.objectives import Context, margin
from fastadv.threat import ThreatModel

Classify = Callable[[Tensor], Tensor]
"""Maps images [n, C, H, W] in [0, 1] to logits [n, K]."""

_DOUBLINGS = range(-6, 7)  # powers of two of the radius at which the way is tried
_HALVINGS = 8


@dataclass(frozen=True)
class Boundary:
    """What lies along the direction of an attack on n images.

    Attributes:
        distance: Way to the boundary in pixel units and the norm of the attack, float32
            [n]; infinite where it was not met within 64 radii, NaN where there is no
            direction: the image is misclassified, or the attack did not move it.
        steepness: Fall of the probability of the class less that of the other one, per
            pixel unit, at the boundary, float32 [n]; NaN where the boundary was not met.
        profile: Probability of the class less the highest other one at each of the
            positions, float32 [n, positions]; NaN where there is no direction.
    """

    distance: Tensor
    steepness: Tensor
    profile: Tensor


@torch.no_grad()
def along_attack(
    classify: Classify,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    threat: ThreatModel,
    positions: Sequence[float] = (),
) -> Boundary:
    """Follow the direction of an attack from each image to the decision boundary.

    The way is tried at 2^-6, 2^-5, ..., 2^6 radii; between the first point that is
    misclassified and the one before it, eight halvings find the boundary. Points are
    clipped to the pixel box.

    Args:
        classify: The network.
        x: Clean images, float32 [n, C, H, W] in [0, 1].
        x_adv: The same under attack.
        y: Classes, int64 [n].
        threat: Norm in which the way is measured, and the radius.
        positions: Places of the profile on the way, in radii.
    """
    length = norm_of(x_adv - x, threat.norm)
    right = classify(x).argmax(1) == y
    known = right & (length > 0)
    way = (x_adv - x) / length.clamp_min(1e-12).view(-1, 1, 1, 1)
    context = Context(y)

    def logits_at(t: Tensor) -> Tensor:
        return classify((x + t.view(-1, 1, 1, 1) * way).clamp_(0, 1)).float()

    low, high = torch.zeros_like(length), torch.full_like(length, torch.inf)
    for power in _DOUBLINGS:
        open_ = high.isinf()
        if not (open_ & known).any():
            break
        t = torch.full_like(length, threat.eps * 2.0**power)
        wrong = logits_at(t).argmax(1) != y
        high = torch.where(open_ & wrong, t, high)
        low = torch.where(open_ & ~wrong, t, low)
    met = known & high.isfinite()
    high = high.where(met, low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        wrong = logits_at(middle).argmax(1) != y
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    before, after = logits_at(low), logits_at(high)
    ahead, behind = -margin(before, context), -margin(after, context)
    slope = (ahead - behind) / (high - low)
    distance = low + ahead / slope
    # At the boundary both probabilities are p, and their difference falls by p times the
    # fall of the logit margin. Near it p is the mean of both.
    at = logits_at(distance.where(met, 0)).softmax(1)
    own = at.gather(1, y[:, None]).squeeze(1)
    share = own + margin(at, context) / 2
    profile = [
        _certainty(logits_at(torch.full_like(length, p * threat.eps)), y)
        for p in positions
    ]
    nan = torch.full_like(length, torch.nan)
    return Boundary(
        distance.where(met, torch.inf).where(known, nan),
        (share * slope).where(met, nan),
        torch.stack([each.where(known, nan) for each in profile], 1)
        if profile
        else x.new_zeros(len(x), 0),
    )


def _certainty(logits: Tensor, y: Tensor) -> Tensor:
    return -margin(logits.softmax(1), Context(y))
