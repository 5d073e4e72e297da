"""FMN and DDN: gradient descent within a ball that shrinks and grows around each image.

While the iterate is misclassified the ball shrinks, otherwise it grows, so that the
iterates settle at the boundary. The shortest misclassified iterate counts.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastadv.attacks.minimal import (
    MinimalNormAttack,
    dual_norm_of,
    misclassified,
    norm_of,
)
from fastadv.attacks.objectives import Context
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

_TINY = 1e-12


@dataclass
class _State:
    """What is known of n images before a step; every tensor is [n]."""

    radius: Tensor  # of the ball, in pixel units
    wrong: Tensor  # whether the iterate is misclassified
    found: Tensor  # whether any iterate so far was
    length: Tensor  # norm of the iterate's perturbation
    best: Tensor  # norm of the shortest perturbation of a misclassified iterate
    boundary: Tensor  # distance to the boundary if the network were linear


class _ShrinkingBall(MinimalNormAttack):
    """Base class of FMN and DDN, which set `first_radius` in pixel units."""

    first_radius = math.inf

    def __init__(
        self,
        threat: ThreatModel,
        num_steps: int,
        step_size: float,
        gamma: float,
        objective: str,
        refine: int,
        dtype: torch.dtype | None,
    ) -> None:
        if not 0 < gamma < 1:
            raise ValueError(f"gamma={gamma} must be between 0 and 1")
        if not 0 < step_size < math.inf:
            raise ValueError(f"step_size={step_size} must be a finite number above 0")
        super().__init__(threat, num_steps, objective, refine, dtype=dtype)
        self.step_size = float(step_size)
        self.gamma = gamma

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack; see `Attack.describe`."""
        return super().describe() | {"step_size": self.step_size, "gamma": self.gamma}

    @abstractmethod
    def _radius(self, state: _State, cosine: float) -> Tensor:
        """Return the radii [n] within which the next iterates lie."""

    def _search(
        self, view: AttackView, x: Tensor, y: Tensor, nonfinite: Tensor
    ) -> Tensor:
        norm, context = self.threat.norm, Context(y)
        forward = partial(self._forward, view)
        delta, result = torch.zeros_like(x), x.clone()
        # No perturbation within the pixel box is longer.
        farthest = norm_of(torch.maximum(x, 1 - x), norm)
        state = _State(
            radius=torch.full_like(farthest, self.first_radius),
            wrong=torch.zeros_like(y, dtype=torch.bool),
            found=torch.zeros_like(y, dtype=torch.bool),
            length=torch.zeros_like(farthest),
            best=farthest,
            boundary=farthest,
        )
        for step in range(self.num_steps):
            cosine = (1 + math.cos(math.pi * step / self.num_steps)) / 2
            z = view.normalize(x + delta)
            grad, loss, outputs = self._gradient(forward, z, context)
            grad = self._pixel_gradient(view, grad, nonfinite)
            state.wrong = misclassified(outputs.float(), y)
            state.found = state.found | state.wrong
            state.length = norm_of(delta, norm)
            better = state.wrong & (state.length <= state.best)
            state.best = state.length.where(better, state.best)
            result = (x + delta).where(better.view(-1, 1, 1, 1), result)
            steepness = dual_norm_of(grad, norm).clamp_min(_TINY)
            state.boundary = loss.float().nan_to_num().abs() / steepness
            state.radius = torch.minimum(self._radius(state, cosine), farthest)
            alpha = self.step_size * (0.01 + 0.99 * cosine)
            scale = alpha / grad.flatten(1).norm(dim=1).clamp_min(_TINY)
            delta = delta + scale.view(-1, 1, 1, 1) * grad
            radius = state.radius.view(-1, 1, 1, 1)
            if norm == "linf":
                delta = delta.clamp(-radius, radius)
            else:
                length = delta.flatten(1).norm(dim=1).clamp_min(_TINY)
                delta = delta * (radius / length.view(-1, 1, 1, 1))
            delta = (x + delta).clamp_(0, 1) - x
        return result


class FMN(_ShrinkingBall):
    """The fast minimum-norm attack in the l2 or linf norm.

    The first radius is the distance to the boundary of the network as if it were linear;
    later the ball shrinks or grows by a factor that decays.

    Args:
        threat: Norm of the perturbation, and the radius of the verdict, in pixel units.
        num_steps: Number of gradient steps, at least 1.
        step_size: Length of the first step in l2, in pixel units; steps decay to a
            hundredth of it along a cosine.
        gamma: Factor by which the radius first changes, between 0 and 1; it decays to
            0.001 along a cosine.
        refine: Number of halvings behind the attack; see `MinimalNormAttack`.
        dtype: Compute dtype of the network; None keeps the model's.

    Raises:
        ValueError: A number is out of range.

    Source:
        Pintor, Roli, Brendel and Biggio 2021. As in the authors' code, an l2 iterate lies
        on the sphere, not within it.
    """

    name = "fmn"

    def __init__(
        self,
        threat: ThreatModel,
        num_steps: int = 100,
        step_size: float = 1.0,
        gamma: float = 0.05,
        refine: int = 0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(threat, num_steps, step_size, gamma, "margin", refine, dtype)

    def _radius(self, state: _State, cosine: float) -> Tensor:
        gamma = 0.001 + (self.gamma - 0.001) * cosine
        shrunk = torch.minimum(state.radius * (1 - gamma), state.best)
        grown = (state.radius * (1 + gamma)).where(
            state.found, state.length + state.boundary
        )
        return shrunk.where(state.wrong, grown)


class DDN(_ShrinkingBall):
    """The attack that decouples direction and norm, in l2.

    Args:
        threat: The l2 radius of the verdict, in pixel units.
        num_steps: Number of gradient steps, at least 1.
        first_radius: Radius of the ball before the first step, in pixel units.
        gamma: Factor by which the radius changes in each step, between 0 and 1.
        refine: Number of halvings behind the attack; see `MinimalNormAttack`.
        dtype: Compute dtype of the network; None keeps the model's.

    Raises:
        ValueError: A number is out of range, or the norm is not l2.

    Source:
        Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger 2019. Perturbations are
        not rounded to 8 bits.
    """

    name = "ddn"

    def __init__(
        self,
        threat: ThreatModel,
        num_steps: int = 100,
        first_radius: float = 1.0,
        gamma: float = 0.05,
        refine: int = 0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        if threat.norm != "l2":
            raise ValueError(
                f"ddn minimises l2, not {threat.norm}; use fmn or deepfool"
            )
        if not 0 < first_radius < math.inf:
            raise ValueError(
                f"first_radius={first_radius} must be a finite number above 0"
            )
        super().__init__(threat, num_steps, 1.0, gamma, "cross_entropy", refine, dtype)
        self.first_radius = float(first_radius)

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack; see `Attack.describe`."""
        return super().describe() | {"first_radius": self.first_radius}

    def _radius(self, state: _State, cosine: float) -> Tensor:
        factor = torch.where(state.wrong, 1 - self.gamma, 1 + self.gamma)
        return state.radius * factor
