"""Universal perturbations: one perturbation that changes the decision on most images.

It is crafted on one network, batch by batch, and can be added to any image and shown to
any other network. No more than one batch and the perturbation are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadv.attacks.engine import check_counts, check_pixels
from fastadv.attacks.outputs import checked_logits
from fastadv.device import differentiable
from fastadv.kernels import pgd_step_
from fastadv.kernels.pixels import to_pixels
from fastadv.models.calling import input_gradient
from fastadv.models.view import AttackView
from fastadv.phases import phase
from fastadv.threat import ThreatModel

_DECAY = 0.8  # factor of the step size after each epoch
_GREY = 0.5  # pixel value of the image that the fused step adds the perturbation to


@dataclass(frozen=True)
class UniversalAttack:
    """Gradient ascent on one perturbation for all images.

    Every batch moves the perturbation once along the gradient of the summed
    cross-entropy of the network's own decisions on the clean images, so that no labels
    are needed and a network of other classes can be attacked. The loss of an image is
    clipped, so that images that are fooled already do not count.

    Attributes:
        threat: Norm and radius of the perturbation in pixel units; no pixel moves by more
            than one half.
        num_epochs: Passes over the batches, at least 1.
        step_size: Length of the first step in pixel units; later epochs take 0.8 of the
            step before. None means a quarter of the radius.
        clip: Loss above which an image does not count any more, above 0.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> attack = UniversalAttack(ThreatModel("linf", "10/255"))
        >>> delta = attack.craft(model, [batch.images for batch in loader]).delta
        >>> logits = model(perturbed(images, delta))

    Source:
        Shafahi et al. 2020, "Universal adversarial training", algorithm 1, with their
        clipping of the loss at 9. Decisions in the place of labels and the decay of the
        steps are ours.
    """

    threat: ThreatModel
    num_epochs: int = 5
    step_size: float | None = None
    clip: float = 9.0

    def __post_init__(self) -> None:
        check_counts(num_epochs=self.num_epochs)
        if self.threat.eps <= 0:
            raise ValueError(f"eps={self.threat.eps} leaves no room for a perturbation")
        for name, value in (("step_size", self.first_step), ("clip", self.clip)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be a finite number above 0")

    @property
    def first_step(self) -> float:
        """Length of the steps of the first epoch, in pixel units."""
        return self.threat.eps / 4 if self.step_size is None else self.step_size

    def craft(self, model: nn.Module, batches: Iterable[Tensor]) -> Universal:
        """Craft a perturbation on one network; it begins at zero and nothing is drawn.

        Args:
            model: A `NormalizedModel`, its `AttackView`, or any module that takes [0, 1]
                images and returns logits.
            batches: Images [n, C, H, W] of one size, uint8 or float in [0, 1], in an
                order that mixes classes. It is passed through once per epoch, and must
                allow that.

        Raises:
            ValueError: There is no batch, images are outside [0, 1] or of several sizes,
                or outputs are not finite.
            TypeError: The model does not return logits [N, K].
        """
        found = self.epoch(model, batches, 0)
        for number in range(1, self.num_epochs):
            found = self.epoch(model, batches, number, found)
        return found

    @differentiable
    def epoch(
        self,
        model: nn.Module,
        batches: Iterable[Tensor],
        number: int,
        before: Universal | None = None,
    ) -> Universal:
        """Pass once through the batches, as `craft` does in each epoch.

        Args:
            model: The network.
            batches: The images of all epochs.
            number: Number of the epoch, from 0.
            before: What the epoch before returned; None before the first.

        Raises:
            ValueError, TypeError: As of `craft`.
        """
        view = model if isinstance(model, AttackView) else AttackView(model)
        device = next(view.parameters(), torch.zeros(())).device
        nonfinite = torch.zeros(1, dtype=torch.int64, device=device)
        grey = image = None
        if before is not None:
            image = (before.delta.to(device) + _GREY)[None]
            nonfinite += before.nonfinite.to(device)
        for images in batches:
            check_pixels(images)
            x = to_pixels(images.to(device), torch.float32)
            if image is None:
                image = torch.full_like(x[:1], _GREY)
            if grey is None:
                grey = torch.full_like(image, _GREY)
            if x.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"images are {list(x.shape[1:])} after {list(image.shape[1:])}; one "
                    "perturbation needs images of one size"
                )
            zeros = torch.zeros(x.shape[1], device=device)
            pgd_step_(
                image,
                grey,
                self._gradient(view, x, image - _GREY),
                norm=self.threat.norm,
                step_size=self.first_step * _DECAY**number,
                eps=self.threat.eps,
                mean=zeros,
                std=zeros + 1,
                nonfinite=nonfinite,
            )
        if image is None:
            raise ValueError("there is no batch to craft a perturbation on")
        return Universal(image[0] - _GREY, nonfinite)

    def _gradient(self, view: AttackView, x: Tensor, delta: Tensor) -> Tensor:
        """Return the gradient [1, C, H, W] of the loss of a batch by the perturbation."""
        mean, std = (v.view(1, -1, 1, 1) for v in view.statistics(x.shape[1]))
        with torch.no_grad(), phase("attack forward"):
            decided = checked_logits(view(view.normalize(x)))
            if not bool(decided.isfinite().all()):
                raise ValueError("outputs are not finite, so that nothing is decided")
            decided = decided.argmax(1)
        with torch.enable_grad():
            delta = delta.requires_grad_()
            z = ((x + delta).clamp(0, 1) - mean) / std
            with phase("attack forward"):
                logits = checked_logits(view(z.to(view.input_dtype))).float()
            losses = F.cross_entropy(logits, decided, reduction="none")
            with phase("attack backward"):
                total = losses.clamp(max=self.clip).sum()
                grad = input_gradient(total, delta)
        return grad


@dataclass(frozen=True)
class Universal:
    """A universal perturbation.

    Attributes:
        delta: What is added to images, float32 [C, H, W].
        nonfinite: Number of gradient elements that were not finite and moved nothing,
            int64 [1].
    """

    delta: Tensor
    nonfinite: Tensor


def perturbed(images: Tensor, delta: Tensor) -> Tensor:
    """Return images with a universal perturbation, float32 [n, C, H, W] in [0, 1].

    Args:
        images: uint8 in 0..255 or float in [0, 1], [n, C, H, W].
        delta: The perturbation, float32 [C, H, W], of the same size.

    Raises:
        ValueError: The sizes differ; `fitted` resizes a perturbation.
    """
    if delta.shape != images.shape[1:]:
        raise ValueError(
            f"the perturbation is {list(delta.shape)}, images are "
            f"{list(images.shape[1:])}; `fitted` resizes a perturbation"
        )
    moved: Tensor = to_pixels(images, torch.float32) + delta.to(images.device)
    return moved.clamp_(0, 1)


def fitted(delta: Tensor, side: int, threat: ThreatModel) -> Tensor:
    """Return a perturbation for images of another size, float32 [C, side, side].

    It is resized bilinearly with antialiasing. In linf its size cannot grow; in l2 it is
    scaled to the length that it had, so that the budget stays the same.

    Args:
        delta: The perturbation, float32 [C, H, W].
        side: Side of the images in pixels.
        threat: Norm of the perturbation.
    """
    if delta.shape[1:] == (side, side):
        return delta
    sized = F.interpolate(
        delta[None], size=(side, side), mode="bilinear", antialias=True
    )[0]
    if threat.norm == "l2":
        sized = sized * (delta.norm() / sized.norm().clamp_min(1e-12))
    return sized
