"""The contract of every attack: how it is called, what it returns, how it is described."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastadv.attacks.outputs import decided, logits_of_model
from fastadv.device import differentiable
from fastadv.kernels.arguments import memory_order
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

_IMAGES = (torch.uint8, torch.float32, torch.float64)


@dataclass(frozen=True)
class AttackResult:
    """What one attack, or several in a row, found on a batch of N images.

    Attributes:
        x_adv: Adversarial images, float32 [N, C, H, W] in [0, 1], within eps of the
            clean ones.
        success: Whether each image is misclassified, bool [N]; for a targeted objective,
            whether the target is predicted.
        loss: Objective at `x_adv`, float32 [N], of the last attack that ran on an image.
        nonfinite: Number of gradient elements that were not finite and moved nothing,
            int64 [1], over all steps and restarts. Where it is not zero the attack is
            weaker than it looks.
        seconds: Wall time of each attack, as the host sees it: a GPU may still be at
            work when the last one ends.
        stage: For several attacks in a row, the index of the one that fooled each
            image, or their number where none did, int64 [N]; None for one attack.
        passes: Number of images that passed through the network, with or without a
            gradient, over all steps and restarts; 0 of attacks that do not count them.
    """

    x_adv: Tensor
    success: Tensor
    loss: Tensor
    nonfinite: Tensor
    seconds: tuple[float, ...] = (0.0,)
    stage: Tensor | None = None
    passes: int = 0

    @property
    def fell_to(self) -> Tensor:
        """Index of the attack that fooled each image, int64 [N].

        It is the number of attacks where none did. An image that was misclassified
        without any attack falls to the first.
        """
        return (~self.success).long() if self.stage is None else self.stage


class Attack(Protocol):
    """What every attack offers: `PGD`, `APGD`, `PackageAttack`, `Cascade`, or your own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each attack that is run in turn; one name for a single attack."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the network that calls accept in place of `model`, made for many batches."""

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        offset: int = 0,
        active: Tensor | None = None,
    ) -> AttackResult:
        """Attack a batch of N images.

        Args:
            model: What `prepare` returned (it is reused, and expected to be refreshed
                when the weights change), a `NormalizedModel`, or any module that takes
                [0, 1] images and returns logits.
            x: Clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
            y: True classes, int64 [N]; target classes for a targeted objective.
            offset: Number of the first image in the random sequence, so that batches
                (or ranks) of one data set draw different random starts.
            active: Images to attack, bool [N]; None means all. The others count as not
                fooled, and their `x_adv` means nothing.

        Raises:
            ValueError: Images are outside [0, 1], labels are no class ids, shapes do not
                fit, or the model has too few classes for the objective.
            TypeError: The model does not return logits [N, K].
        """

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack in plain values, as a results row stores them.

        There are always `name`, `norm` and `eps` (in pixel units); the other keys depend
        on the kind of attack.
        """


def check_batch(model: object, x: object, y: object) -> None:
    """Raise TypeError unless these are a network, images and labels as attacks take them.

    Shapes, devices and values are checked later, where the network is known.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model is a {type(model).__name__}; attacks take a torch.nn.Module"
        )
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}; attacks take tensors, which "
                f"torch.as_tensor({name}) makes of lists and NumPy arrays"
            )
    if isinstance(x, Tensor) and x.dtype not in _IMAGES:
        raise TypeError(f"x is {x.dtype}; accepted: uint8, float32, float64")


class SingleAttack:
    """Base class of one attack, which times calls and keeps the layout of the images.

    A subclass sets `name` and `threat`, and does its work in `prepare` and `_attack`.
    """

    name: str
    threat: ThreatModel

    @property
    def names(self) -> tuple[str, ...]:
        """Name of the attack, as the contract has it."""
        return (self.name,)

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack; see `Attack.describe`."""
        return {"name": self.name} | asdict(self.threat)

    @differentiable
    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        offset: int = 0,
        active: Tensor | None = None,
        **more: Any,
    ) -> AttackResult:
        """Attack a batch and judge the result; see `Attack.__call__`.

        `more` are arguments of a single kind of attack, such as `eps` and `start` of
        `PGD`.
        """
        check_batch(model, x, y)
        began = time.perf_counter()
        layout = memory_order(x) or torch.contiguous_format
        found = self._attack(model, x, y, offset, active, **more)
        success = self._verdict(model, y, found)
        return replace(
            found,
            x_adv=found.x_adv.contiguous(memory_format=layout),
            success=success if active is None else success & active,
            seconds=(time.perf_counter() - began,),
        )

    def _verdict(self, model: nn.Module, y: Tensor, found: AttackResult) -> Tensor:
        """Return the success on each image, bool [N], which the model itself decides."""
        if isinstance(model, AttackView) and model.live_reason is not None:
            return found.success
        return decided(logits_of_model(model, found.x_adv)) != y

    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, offset: int, active: Tensor | None
    ) -> AttackResult:
        """Attack a batch; images that are not active may be attacked, too."""
        raise NotImplementedError
