"""DeepFool: steps to the nearest boundary of the network as if it were linear.

An image leaves the batch as soon as it is misclassified, so that later steps cost only
what the stubborn images need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastadv.attacks.minimal import MinimalNormAttack, dual_norm_of, misclassified
from fastadv.models.calling import input_gradient
from fastadv.models.view import AttackView
from fastadv.phases import phase
from fastadv.threat import ThreatModel

_STEADY = 1e-4  # added to every step, so that it does not end on the boundary itself
_TINY = 1e-8


class DeepFool(MinimalNormAttack):
    """DeepFool in the l2 or linf norm.

    Each step takes the gradients of the highest logits, moves to the nearest boundary of
    the linear network that has them, and a little further.

    Args:
        threat: Norm of the perturbation, and the radius of the verdict, in pixel units.
        num_steps: Largest number of steps, at least 1.
        num_candidates: Number of classes that are considered, those of the highest
            clean logits, the true one included; at least 2.
        overshoot: Share by which each perturbation is longer than the linear network
            asks for.
        refine: Number of halvings behind the attack; see `MinimalNormAttack`.
        dtype: Compute dtype of the network; None keeps the model's.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> found = DeepFool(ThreatModel("l2", 0.5)).minimal(model, images, labels)
        >>> found.distance.median()

    Source:
        Moosavi-Dezfooli, Fawzi and Frossard 2016, with ten candidates as in their code.
    """

    name = "deepfool"

    def __init__(
        self,
        threat: ThreatModel,
        num_steps: int = 50,
        num_candidates: int = 10,
        overshoot: float = 0.02,
        refine: int = 0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_candidates < 2:
            raise ValueError(f"num_candidates={num_candidates} must be at least 2")
        if not 0 <= overshoot < float("inf"):
            raise ValueError(f"overshoot={overshoot} must be a finite number >= 0")
        super().__init__(threat, num_steps, refine=refine, dtype=dtype)
        self.num_candidates = num_candidates
        self.overshoot = overshoot

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack; see `Attack.describe`."""
        return super().describe() | {
            "num_candidates": self.num_candidates,
            "overshoot": self.overshoot,
        }

    def _search(
        self, view: AttackView, x: Tensor, y: Tensor, nonfinite: Tensor
    ) -> Tensor:
        result, clean = x.clone(), x
        with torch.no_grad():
            logits = self._logits(view, x).scatter(1, y[:, None], -torch.inf)
            others = min(self.num_candidates, logits.shape[1]) - 1
            rivals = logits.topk(others, dim=1).indices
        rows = torch.arange(len(x), device=x.device)
        moved = torch.zeros_like(x)
        for step in range(self.num_steps + 1):
            with torch.no_grad():
                done = misclassified(self._logits(view, x), y)
            # The host waits for the device here.
            if done.any():
                result[rows[done]] = x[done]
                left = ~done
                rows, y, rivals = rows[left], y[left], rivals[left]
                x, clean, moved = x[left], clean[left], moved[left]
            if step == self.num_steps or not len(rows):
                break
            moved += self._step(view, x, y, rivals, nonfinite)
            x = (clean + (1 + self.overshoot) * moved).clamp_(0, 1)
        return result

    def _step(
        self, view: AttackView, x: Tensor, y: Tensor, rivals: Tensor, nonfinite: Tensor
    ) -> Tensor:
        """Return the way [N, C, H, W] to the nearest boundary of the linear network."""
        norm = self.threat.norm
        z = view.normalize(x).requires_grad_()
        with torch.enable_grad(), phase("attack forward"):
            logits = self._outputs(view, z).float()
            gaps = logits.gather(1, rivals) - logits.gather(1, y[:, None])
            totals = gaps.sum(0).unbind()
        nearest = torch.full_like(gaps[:, 0], torch.inf)
        way = torch.zeros_like(x)
        for number, gap in enumerate(gaps.unbind(1)):
            last = number == gaps.shape[1] - 1
            with phase("attack backward"):
                grad = input_gradient(totals[number], z, retain_graph=not last)
            grad = self._pixel_gradient(view, grad, nonfinite)
            steepness = dual_norm_of(grad, norm) + _TINY
            distance = gap.detach().abs() / steepness
            if norm == "linf":
                length, direction = distance + _STEADY, grad.sign()
            else:
                length, direction = (distance + _STEADY) / steepness, grad
            nearer = (distance < nearest).view(-1, 1, 1, 1)
            way = torch.where(nearer, length.view(-1, 1, 1, 1) * direction, way)
            nearest = torch.minimum(nearest, distance)
        return way
