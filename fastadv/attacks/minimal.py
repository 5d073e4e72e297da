"""What minimal-norm attacks share: the shortest perturbation that changes the decision.

Where PGD asks whether an image withstands a radius, these attacks search for the smallest
radius that it does not withstand. One search therefore gives the robust accuracy at every
radius. It is an upper bound of the truth: an image may have a shorter perturbation than
the one that was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.attacks.contract import AttackResult
from fastadv.attacks.engine import GradientAttack, check_counts, warn_of_probabilities
from fastadv.attacks.objectives import Context
from fastadv.attacks.outputs import decided
from fastadv.device import differentiable
from fastadv.kernels.pixels import to_pixels
from fastadv.models.view import AttackView
from fastadv.threat import Norm, ThreatModel


@dataclass(frozen=True)
class MinimalResult:
    """The shortest perturbations that were found for a batch of N images.

    Attributes:
        x_adv: Adversarial images, float32 [N, C, H, W] in [0, 1]; the clean image where
            it is misclassified already, or where nothing was found.
        distance: Length of each perturbation in pixel units and the norm of the attack,
            float32 [N]. 0 for images that are misclassified already, infinite where
            nothing was found.
        nonfinite: Number of gradient elements that were not finite and moved nothing,
            int64 [1].
    """

    x_adv: Tensor
    distance: Tensor
    nonfinite: Tensor

    @property
    def found(self) -> Tensor:
        """Whether each image is misclassified at `x_adv`, bool [N]."""
        return self.distance.isfinite()


class MinimalNormAttack(GradientAttack):
    """Base class of the attacks that minimise the norm of a perturbation.

    As an `Attack`, it counts an image as fooled if the perturbation is no longer than the
    radius of the threat model. `minimal` returns the perturbations themselves, whatever
    the radius.

    Args:
        threat: Norm of the perturbation, and the radius of the verdict, in pixel units.
        num_steps: Largest number of gradient steps, at least 1.
        objective: Name of the objective on the logits whose gradient is followed.
        refine: Number of times that the way from the image to its perturbation is halved
            in search of the boundary; each takes one forward pass. 0 returns what the
            attack found, as published.
        dtype: Compute dtype of the network; None keeps the model's.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        threat: ThreatModel,
        num_steps: int,
        objective: str = "margin",
        refine: int = 0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_counts(num_steps=num_steps)
        if refine < 0:
            raise ValueError(f"refine={refine} must be at least 0")
        super().__init__(
            threat,
            objective,
            num_restarts=1,
            random_start=False,
            seed=0,
            bn_mode="eval",
            dtype=dtype,
        )
        self.num_steps = num_steps
        self.refine = refine

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack; see `Attack.describe`."""
        return super().describe() | {
            "num_steps": self.num_steps,
            "refine": self.refine,
        }

    @differentiable
    def minimal(
        self, model: nn.Module, x: Tensor, y: Tensor, *, active: Tensor | None = None
    ) -> MinimalResult:
        """Search for the shortest perturbation of each image that changes the decision.

        The result for an image does not depend on the others of the batch, up to rounding.

        Args:
            model: The network or its view, as of `Attack.__call__`.
            x: Clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
            y: True classes, int64 [N].
            active: Images to search for, bool [N]; None means all. Nothing is found for
                the others.

        Raises:
            ValueError, TypeError: As of `Attack.__call__`.
        """
        view, x_nat, _ = self._begin(model, x, y)
        clean = to_pixels(x_nat, torch.float32)
        nonfinite = torch.zeros(1, dtype=torch.int64, device=x.device)
        distance = torch.full((len(y),), float("inf"), device=x.device)
        x_adv = clean.clone()
        with torch.no_grad():
            logits = self._logits(view, clean)
            warn_of_probabilities(view, logits)
            wrong = misclassified(logits, y)
            if active is not None:
                wrong &= active
            distance[wrong] = 0
            todo = ~wrong if active is None else ~wrong & active
        rows = todo.nonzero().squeeze(1)
        if len(rows):
            found = self._search(view, clean[rows], y[rows], nonfinite)
            found = self._refined(view, clean[rows], y[rows], found)
            lengths = norm_of(found - clean[rows], self.threat.norm)
            # What did not move was not fooled: the image itself is classified correctly.
            distance[rows] = lengths.where(lengths > 0, torch.inf)
            x_adv[rows] = found
        return MinimalResult(x_adv, distance, nonfinite)

    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, offset: int, active: Tensor | None
    ) -> AttackResult:
        """Judge the perturbations by the radius; what is longer leaves the image as it is."""
        view = self.prepare(model)
        found = self.minimal(view, x, y, active=active)
        # A float32 sum over an image rounds in the seventh digit.
        success = found.distance <= self.threat.eps * (1 + 1e-6)
        clean = to_pixels(x, torch.float32)
        x_adv = torch.where(success.view(-1, 1, 1, 1), found.x_adv, clean)
        with torch.no_grad():
            logits = self._logits(view, x_adv)
            loss = self.objective.losses(logits, Context(y)).float()
        return AttackResult(x_adv, success, loss, found.nonfinite)

    def _search(
        self, view: AttackView, x: Tensor, y: Tensor, nonfinite: Tensor
    ) -> Tensor:
        """Return adversarial images of images that are classified correctly.

        Where none was found, the image itself is returned. Elements of gradients that are
        not finite are counted in `nonfinite`.
        """
        raise NotImplementedError

    def _logits(self, view: AttackView, x: Tensor) -> Tensor:
        return self._outputs(view, view.normalize(x)).float()

    @torch.no_grad()
    def _refined(
        self, view: AttackView, clean: Tensor, y: Tensor, found: Tensor
    ) -> Tensor:
        """Return the nearest misclassified point that halving the way finds."""
        low = clean.new_zeros(len(y), 1, 1, 1)
        high = torch.ones_like(low)
        way = found - clean
        for _ in range(self.refine):
            middle = (low + high) / 2
            wrong = misclassified(self._logits(view, clean + middle * way), y)
            wrong = wrong.view(-1, 1, 1, 1)
            low, high = (
                torch.where(wrong, low, middle),
                torch.where(wrong, middle, high),
            )
        return torch.where(high < 1, clean + high * way, found)

    def _pixel_gradient(
        self, view: AttackView, grad: Tensor, nonfinite: Tensor
    ) -> Tensor:
        """Return a gradient by normalised images as one by pixels, and count what is bad."""
        finite = grad.isfinite()
        nonfinite += (~finite).sum()
        std = view.statistics(grad.shape[1])[1].view(1, -1, 1, 1)
        return grad.float().where(finite, 0.0) / std


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Return whether each row of logits decides for another class than `y`, bool [N].

    Logits that are not finite decide for no class, and so are a wrong answer.
    """
    return decided(logits) != y


def norm_of(x: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each perturbation [N, C, H, W], float32 [N]."""
    flat = x.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def dual_norm_of(x: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each gradient that belongs to the norm of perturbations, [N]."""
    flat = x.flatten(1)
    return flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)
