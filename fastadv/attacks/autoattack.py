"""AutoAttack: four attacks in a row, each on the images that survived those before it.

APGD-CE and APGD-T are ours, on the fused kernels; FAB-T and Square are the package's
(see `package.py`), which can also run all four.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from fastadv.attacks.apgd import APGD
from fastadv.attacks.engine import AttackResult
from fastadv.attacks.objectives import DLR_TARGETED
from fastadv.attacks.package import (
    STANDARD_BUDGET,
    AttackName,
    Budget,
    PackageAttack,
)
from fastadv.errors import unknown_name
from fastadv.kernels.pixels import to_pixels
from fastadv.threat import ThreatModel

Judge = Literal["fastadv", "package"]

STANDARD: tuple[AttackName, ...] = ("apgd-ce", "apgd-t", "fab", "square")
BLACK_BOX: tuple[AttackName, ...] = ("square",)

_OBJECTIVE = {
    "apgd-ce": "cross_entropy",
    "apgd-dlr": "dlr",
    "apgd-t": DLR_TARGETED.name,
}


class Stage(Protocol):
    """An attack that can be one of several in a row."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """What calls accept in place of `model`, to be made once for many batches."""

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        offset: int = 0,
        active: Tensor | None = None,
    ) -> AttackResult:
        """Attack the `active` samples of a batch; see `APGD.__call__`."""


@dataclass(frozen=True)
class CascadeResult(AttackResult):
    """What several attacks in a row found; `loss` is that of the last one on a sample.

    Attributes:
        fell_to: int64 [N], index of the attack that fooled a sample; the number of
            attacks where none did. What is misclassified to begin with falls to the
            first.
        seconds: wall time of each attack.
    """

    fell_to: Tensor
    seconds: tuple[float, ...]


class Cascade:
    """Attacks in a row, each on the samples that survived those before it.

    Args:
        stages: the attacks by name, in order.
    """

    def __init__(self, stages: Sequence[tuple[str, Stage]]) -> None:
        if not stages:
            raise ValueError("a cascade needs at least one attack, got none")
        self.names = tuple(name for name, _ in stages)
        self.stages = tuple(stage for _, stage in stages)

    def prepare(self, model: nn.Module) -> nn.Module:
        """What the first attack works on; the others accept it too."""
        return self.stages[0].prepare(model)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, offset: int = 0
    ) -> CascadeResult:
        """Attack a batch; arguments as for `APGD`."""
        network = self.prepare(model)
        x_adv, fell_to = to_pixels(x, torch.float32).clone(), torch.zeros_like(y)
        active = torch.ones_like(y, dtype=torch.bool)
        loss = torch.zeros(len(y), device=y.device)
        nonfinite = torch.zeros(1, dtype=torch.int64, device=y.device)
        seconds = []
        for stage in self.stages:
            _synchronize(x.device)
            began = time.perf_counter()
            if active.any():
                found = stage(network, x, y, offset=offset, active=active)
                mask = active.view(-1, 1, 1, 1)
                x_adv = torch.where(mask, found.x_adv, x_adv)
                loss = torch.where(active, found.loss, loss)
                nonfinite += found.nonfinite
                active = active & ~found.success
            fell_to += active
            _synchronize(x.device)
            seconds.append(time.perf_counter() - began)
        return CascadeResult(x_adv, ~active, loss, nonfinite, fell_to, tuple(seconds))


def make_attack(
    name: str,
    threat: ThreatModel,
    budget: Budget = STANDARD_BUDGET,
    *,
    judge: Judge = "fastadv",
    seed: int = 0,
) -> Cascade:
    """One attack, or the four of AutoAttack's standard version, by name.

    Args:
        name: `"autoattack"` or an `AttackName`.
        threat: norm and radius, pixel units.
        budget: how hard the attacks try.
        judge: `"fastadv"` runs APGD on the fused kernels and everything on the attack
            view; `"package"` runs all in `pyautoattack`, on a plain copy of the model.
        seed: of all random choices.

    Raises:
        ConfigError: the package is needed and not installed.
        ValueError: unknown name, or a budget below 1.
    """
    known = ("autoattack", *get_args(AttackName))
    if name not in known:
        raise ValueError(unknown_name("attack", name, known))
    if judge not in get_args(Judge):
        raise ValueError(unknown_name("judge", judge, get_args(Judge)))
    stages: list[tuple[str, Stage]] = []
    for each in STANDARD if name == "autoattack" else (name,):
        if judge == "fastadv" and each in _OBJECTIVE:
            ours = APGD(
                threat,
                budget.num_steps,
                _OBJECTIVE[each],
                budget.num_restarts,
                budget.num_targets,
                seed=seed,
            )
            stages.append((each, ours))
        else:
            theirs = PackageAttack(
                each,  # type: ignore[arg-type]
                threat,
                budget,
                seed=seed,
                independent=judge == "package",
            )
            stages.append((each, theirs))
    return Cascade(stages)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
