"""The attacks of `pyautoattack`, the package of the authors of AutoAttack.

FAB and Square run here only; its APGD judges ours, on a plain copy of the model that
shares nothing with the attack view.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastadv.attacks.engine import (
    AttackResult,
    check_counts,
    check_labels,
    checked_logits,
)
from fastadv.attacks.objectives import OBJECTIVES, Context
from fastadv.errors import ConfigError, unknown_name
from fastadv.kernels.arguments import memory_order
from fastadv.kernels.pixels import to_pixels
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "square"]

_MIN_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
# The package's own warnings: `checks.py` says the same things once, not per batch.
_quiet = logging.getLogger(f"{__name__}.quiet")
_quiet.setLevel(logging.ERROR)


@dataclass(frozen=True)
class Budget:
    """How hard the attacks try; the defaults are AutoAttack's standard version.

    Attributes:
        num_steps: gradient steps of a run of APGD and FAB.
        num_restarts: runs of each attack, for targeted ones per target.
        num_targets: wrong classes that APGD-T and FAB-T head for.
        num_queries: forward passes of Square.
    """

    num_steps: int = 100
    num_restarts: int = 1
    num_targets: int = 9
    num_queries: int = 5000


STANDARD_BUDGET = Budget()


class PixelModel(nn.Module):
    """An attack view as a model of pixels: logits float32 [N, K] of [0, 1] images."""

    def __init__(self, view: AttackView) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        """Logits of float images [N, C, H, W]."""
        mean, std = (v.view(1, -1, 1, 1) for v in self.view.statistics(x.shape[1]))
        z = ((x - mean) / std).to(self.view.dtype)
        return checked_logits(self.view(z)).float()


class FrozenCopy(nn.Module):
    """A model's own forward pass, on an evaluation-mode copy without weight gradients.

    The package computes input gradients by `.backward()`, which would fill the `.grad`
    of every parameter of the model itself.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(model).requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of float images [N, C, H, W]."""
        return checked_logits(self.copy(x)).float()


class PackageAttack:
    """One attack of the package `pyautoattack`.

    Args:
        name: `"apgd-ce"`, `"apgd-dlr"`, `"apgd-t"`, `"fab"` (targeted) or `"square"`.
        threat: norm and radius, pixel units.
        budget: how hard it tries.
        seed: of its random choices, with the number of the first sample added. They are
            drawn for a batch at once, so that the batch size changes the result of
            Square and of random starts a little.
        independent: attack a plain copy of the model instead of its attack view.

    Raises:
        ConfigError: the package is not installed.
        ValueError: unknown name, or a budget below 1.

    Source:
        Croce and Hein 2020 (AutoAttack, FAB); Andriushchenko et al. 2020 (Square).
    """

    def __init__(
        self,
        name: AttackName,
        threat: ThreatModel,
        budget: Budget = STANDARD_BUDGET,
        *,
        seed: int = 0,
        independent: bool = False,
    ) -> None:
        if name not in get_args(AttackName):
            raise ValueError(unknown_name("attack", name, get_args(AttackName)))
        check_counts(**vars(budget))
        _package()
        self.name = name
        self.threat = threat
        self.budget = budget
        self.seed = seed
        self.independent = independent

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network this attack works on; calls accept it in place of the model."""
        if isinstance(model, (AttackView, FrozenCopy)):
            return model
        return FrozenCopy(model) if self.independent else AttackView(model)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        offset: int = 0,
        active: Tensor | None = None,
    ) -> AttackResult:
        """Attack the samples of a batch that are not misclassified yet.

        Args:
            model: what `prepare` returned, an `AttackView`, a `NormalizedModel`, or any
                module that takes [0, 1] images.
            x: clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
            y: int64 [N], true classes.
            offset: number of the first sample in the data set.
            active: bool [N]; the others are not attacked and count as not fooled.

        Returns:
            As from `APGD`; `loss` is the margin, best wrong logit minus the true one.

        Raises:
            ValueError: too few classes for the attack, or labels that are no class ids.
            TypeError: the model does not return logits [N, K].
        """
        network = self.prepare(model)
        if isinstance(network, AttackView):
            network = PixelModel(network)
        layout = memory_order(x) or torch.contiguous_format
        # The package flattens images by `view`: it takes no other layout.
        pixels = to_pixels(x.detach(), torch.float32).contiguous()
        found = pixels.clone()
        with torch.no_grad():
            logits = network(pixels)
            check_labels(y, logits.shape[1])
            check_classes(self.name, logits.shape[1])
            todo = logits.argmax(1) == y
        todo = todo if active is None else todo & active
        rows = todo.nonzero().squeeze(1)
        if len(rows):
            devices = [x.device] if x.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                attack = self._attack(network, logits.shape[1], self.seed + offset)
                found[rows] = attack.perturb(pixels[rows], y[rows]).detach()
        with torch.no_grad():
            logits = network(found)
            loss = OBJECTIVES["margin"].per_sample(logits, Context(y))
        success = logits.argmax(1) != y
        return AttackResult(
            x_adv=found.contiguous(memory_format=layout),
            success=success if active is None else success & active,
            loss=loss,
            nonfinite=torch.zeros(1, dtype=torch.int64, device=x.device),
        )

    def _attack(self, network: nn.Module, num_classes: int, seed: int) -> Any:
        """The package's attack, with what its standard version sets."""
        package = _package()
        budget = self.budget
        common = {
            "norm": {"linf": "Linf", "l2": "L2"}[self.threat.norm],
            "eps": self.threat.eps,
            "seed": seed,
            "n_restarts": budget.num_restarts,
        }
        targets = min(budget.num_targets, num_classes - 1)
        if self.name == "square":
            return package.square.SquareAttack(
                network, n_queries=budget.num_queries, resc_schedule=False, **common
            )
        common["n_iter"] = budget.num_steps
        if self.name == "fab":
            return package.fab_pt.FABAttack_PT(
                network, targeted=True, n_target_classes=targets, **common
            )
        if self.name == "apgd-t":
            return package.autopgd_base.APGDAttack_targeted(
                network, n_target_classes=targets, logger=_quiet, **common
            )
        loss = self.name.removeprefix("apgd-")
        return package.autopgd_base.APGDAttack(
            network, loss=loss, logger=_quiet, **common
        )


def check_classes(names: Sequence[str], num_classes: int) -> None:
    """Raise ValueError where a model has too few classes for one of the attacks."""
    for name in names:
        least = _MIN_CLASSES.get(name, 0)
        if num_classes < least:
            raise ValueError(
                f"{name} needs at least {least} classes, the model has {num_classes}: "
                "the difference-of-logits ratio divides by lower-ranked logits (DLR by "
                "the third, its targeted form by the third and fourth). Use apgd-ce, "
                "fab, square, or pgd with the margin objective"
            )


def _package() -> Any:
    """The modules of `pyautoattack`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyautoattack
        from pyautoattack import autopgd_base, fab_pt, square  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "FAB, Square and the judge of AutoAttack come from the package pyautoattack, "
            f"which cannot be imported ({error}); install it with: pip install "
            "'fastadv[autoattack]'. apgd-ce, apgd-dlr, apgd-t and pgd need no package"
        ) from error
    return pyautoattack
