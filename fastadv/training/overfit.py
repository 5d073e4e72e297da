"""Detection of catastrophic overfitting in training with single-step attacks.

Within a few updates such a network learns to withstand the single step and nothing else:
its accuracy under that step stays high, under PGD it falls to nothing (Wong et al. 2020,
section 5.1; Andriushchenko and Flammarion 2020). Both are measured on held-out images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks import PGD
from fastadv.data import ImageSet
from fastadv.data.counter import derive_key, permutation
from fastadv.data.sets.subsets import Subset
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

WATCHED = 256  # images: the standard error of a share is 3 %
_STEPS = 10
ACTIONS = {
    "fallback": "going back to the weights before it, and on with PGD of three steps",
    "stop": "stopping",
    "warn": "going on all the same (`on_overfit=warn`)",
}
# PGD finds more than a single step in healthy networks, too: 47 against 57 % of CIFAR-10
# at 8/255 (Wong et al. 2020). After a collapse it is near 0 against 80 and more.
_GAP, _SHARE = 0.2, 0.5


@dataclass(frozen=True)
class OverfitCheck:
    """The accuracies that one check measured, in [0, 1].

    Attributes:
        single_acc: Accuracy under the single-step attack of training.
        pgd_acc: Accuracy under PGD.
        collapsed: Whether PGD breaks far more images than the single step.
    """

    single_acc: float
    pgd_acc: float
    collapsed: bool

    def message(self, step: int) -> str:
        """Return the finding after update `step` as a sentence."""
        return (
            f"catastrophic overfitting at step {step}: {100 * self.single_acc:.0f} % of "
            "held-out images withstand the single-step attack of training, "
            f"{100 * self.pgd_acc:.0f} % PGD"
        )


def collapsed(single_acc: float, pgd_acc: float, n: int) -> bool:
    """Return whether PGD breaks far more of `n` images than the single step does.

    The accuracy under PGD must be less than half of the other, and lower by 20 points, or
    by three standard errors of the difference where those are more.
    """
    gap = max(_GAP, 3 * math.sqrt(0.5 / max(n, 1)))
    return single_acc - pgd_acc > gap and pgd_acc < _SHARE * single_acc


class OverfitWatch:
    """Checks regularly, and keeps the weights of the last check without a collapse.

    Args:
        images: Images held out of training, uint8 [n, 3, H, W] on the model's device.
        labels: Their classes, int64 [n].
        threat: The threat model of PGD.
        every: Number of updates between checks.
        seed: Seed of the random starts.
        dtype: Compute dtype of the attack view.

    Attributes:
        weights: State dict of the last check without a collapse; None before the first.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        *,
        every: int,
        seed: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.images, self.labels, self.every = images, labels, every
        self.weights: dict[str, Tensor] | None = None
        self._full = self._judge = PGD.judge(
            threat, _STEPS, seed=seed, dtype=dtype, compile="off"
        )

    def scale(self, factor: float) -> None:
        """Let PGD search within `factor` times the radius from now on."""
        self._judge = self._full.scaled(factor)

    def due(self, step: int) -> bool:
        """Return whether a check is due after `step` updates."""
        return step % self.every == 0

    def check(self, view: AttackView, attack: PGD, step: int) -> OverfitCheck:
        """Measure accuracy under `attack` and under PGD; waits for the device."""
        view.refresh()
        shares = []
        for each in (attack, self._judge):
            _, z = each.perturb(view, self.images, self.labels, seed=step)
            with torch.no_grad():
                shares.append((view(z).argmax(1) == self.labels).float().mean())
        single_acc, pgd_acc = torch.stack(shares).tolist()
        found = collapsed(single_acc, pgd_acc, len(self.labels))
        return OverfitCheck(single_acc, pgd_acc, found)

    def remember(self, weights: dict[str, Tensor]) -> None:
        """Keep a copy of the state dict `weights`, on the device of the images."""
        device = self.images.device
        self.weights = {
            name: value.detach().to(device, copy=True)
            for name, value in weights.items()
        }


def updates_between(per_epoch: int, images: int, batch: int) -> int:
    """Return the number of updates between two checks.

    It is half an epoch, or more, so that checks take at most a tenth of the time. A check
    costs a forward and a backward pass of each image for each step of PGD, the single step
    and two verdicts: 24 units for each of `images`; an update costs five for each image of
    a batch of `batch`.
    """
    return max(per_epoch // 2, 48 * images // batch, 1)


def watched_images(images: ImageSet, seed: int) -> ImageSet:
    """Return at most `WATCHED` images of a validation set, chosen by `seed`."""
    order = permutation(derive_key(seed, "watch"), len(images))
    return Subset(images, order[:WATCHED])
