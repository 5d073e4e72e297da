"""The watch for catastrophic overfitting of training with single-step attacks.

Within a few updates such a network learns to withstand the single step and nothing else:
its accuracy under that step stays high, under PGD it falls to nothing (Wong et al. 2020,
section 5.1; Andriushchenko and Flammarion 2020). Looking at both on held-out images tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks import PGD
from fastadv.data import ImageSet, Loader
from fastadv.data.counter import derive_key, permutation
from fastadv.data.sets.subsets import Subset
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

HELD = 256  # images looked at: 3 % standard error of a share
_STEPS = 10
ACTIONS = {
    "fallback": "going back to the weights before it, and on with PGD of three steps",
    "stop": "stopping",
    "warn": "going on all the same (--on-overfit warn)",
}
# PGD finds more than a single step in healthy networks, too: 47 against 57 % of CIFAR-10
# at 8/255 (Wong et al. 2020). After a collapse it is near 0 against 80 and more.
_GAP, _SHARE = 0.2, 0.5


@dataclass(frozen=True)
class Look:
    """What one look found.

    Attributes:
        single_acc: accuracy under the single-step attack of training, in [0, 1].
        pgd_acc: accuracy under PGD, in [0, 1].
        collapsed: the first says nothing about the second any more.
    """

    single_acc: float
    pgd_acc: float
    collapsed: bool

    def words(self, step: int) -> str:
        """The finding after update `step`, for a person."""
        return (
            f"catastrophic overfitting at step {step}: {100 * self.single_acc:.0f} % of "
            "held-out images withstand the single-step attack of training, "
            f"{100 * self.pgd_acc:.0f} % PGD"
        )


def collapsed(single_acc: float, pgd_acc: float, n: int) -> bool:
    """Whether PGD finds so much more than the single step on `n` images.

    Its accuracy must be less than half, and lower by 20 points; by more where images are
    so few that three standard errors of the difference are more.
    """
    gap = max(_GAP, 3 * math.sqrt(0.5 / max(n, 1)))
    return single_acc - pgd_acc > gap and pgd_acc < _SHARE * single_acc


class OverfitWatch:
    """Looks every so often, and remembers the weights of the last look that was well.

    Args:
        images: held out of training, uint8 [n, 3, H, W] on the device of the model.
        labels: int64 [n].
        threat: what PGD may do.
        every: updates between looks.
        seed: of the random starts.
        dtype: compute dtype of the attack view.

    Attributes:
        weights: state dict of the last look that was well; None before there was one.
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

    @classmethod
    def on(
        cls,
        loader: Loader,
        threat: ThreatModel,
        *,
        updates_per_epoch: int,
        batch_size: int,
        seed: int,
        dtype: torch.dtype | None,
    ) -> OverfitWatch:
        """Watch on the images of `loader`; see `updates_between` for how often."""
        batches = list(loader)
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        every = updates_between(updates_per_epoch, len(labels), batch_size)
        return cls(images, labels, threat, every=every, seed=seed, dtype=dtype)

    def scale(self, factor: float) -> None:
        """Judge within `factor` times the radius from now on."""
        self._judge = self._full.scaled(factor)

    def due(self, step: int) -> bool:
        """Whether to look after `step` updates."""
        return step % self.every == 0

    def look(self, view: AttackView, attack: PGD, step: int) -> Look:
        """Accuracy on the held images under `attack` and under PGD; waits for the device."""
        view.refresh()
        shares = []
        for each in (attack, self._judge):
            _, z = each.perturb(view, self.images, self.labels, seed=step)
            with torch.no_grad():
                shares.append((view(z).argmax(1) == self.labels).float().mean())
        single_acc, pgd_acc = torch.stack(shares).tolist()
        found = collapsed(single_acc, pgd_acc, len(self.labels))
        return Look(single_acc, pgd_acc, found)

    def remember(self, weights: dict[str, Tensor]) -> None:
        """Keep a copy of `weights`, on the device of the images."""
        device = self.images.device
        self.weights = {
            name: value.detach().to(device, copy=True)
            for name, value in weights.items()
        }


def updates_between(per_epoch: int, images: int, batch: int) -> int:
    """Updates between two looks: half an epoch, or more, to spend a tenth of the time.

    A look costs a forward and a backward pass through `images` for each step of PGD, the
    single step and two verdicts: 24 units; an update five for each image of a `batch`.
    """
    return max(per_epoch // 2, 48 * images // batch, 1)


def held_out(images: ImageSet, seed: int) -> ImageSet:
    """Some of a validation set, at most `HELD`."""
    order = permutation(derive_key(seed, "watch"), len(images))
    return Subset(images, order[:HELD])
