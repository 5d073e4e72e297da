"""AutoAttack: four attacks in a row, each on the images that survived the earlier ones.

APGD-CE and APGD-T run on the fused kernels. FAB-T and Square come from the package
`pyautoattack` (see `package.py`), which can also run all four.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastadv.attacks.apgd import APGD
from fastadv.attacks.contract import Attack, AttackResult
from fastadv.attacks.deepfool import DeepFool
from fastadv.attacks.fmn import DDN, FMN
from fastadv.attacks.objectives import DLR_TARGETED
from fastadv.attacks.package import STANDARD_BUDGET, AttackName, Budget, PackageAttack
from fastadv.device import wait_for
from fastadv.errors import unknown_name
from fastadv.kernels.pixels import to_pixels
from fastadv.threat import ThreatModel

Judge = Literal["fastadv", "package"]

STANDARD: tuple[AttackName, ...] = ("apgd-ce", "apgd-t", "fab", "square")
BLACK_BOX: tuple[AttackName, ...] = ("square",)

MinimalName = Literal["deepfool", "fmn", "ddn"]

_MINIMAL: dict[str, Callable[..., Attack]] = {
    "deepfool": DeepFool,
    "fmn": FMN,
    "ddn": DDN,
}
_OBJECTIVE = {
    "apgd-ce": "cross_entropy",
    "apgd-dlr": "dlr",
    "apgd-t": DLR_TARGETED.name,
}


class Cascade:
    """Attacks in a row, each on the images that survived the earlier ones.

    Args:
        stages: The attacks with their names, in order.
        description: What `describe` returns; None describes each attack in turn.

    Raises:
        ValueError: There is no attack.
    """

    def __init__(
        self,
        stages: Sequence[tuple[str, Attack]],
        description: dict[str, Any] | None = None,
    ) -> None:
        if not stages:
            raise ValueError("a cascade needs at least one attack, got none")
        self.names = tuple(name for name, _ in stages)
        self.stages = tuple(stage for _, stage in stages)
        self._description = description

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the network that the first attack works on; the others accept it, too."""
        return self.stages[0].prepare(model)

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack; see `Attack.describe`."""
        if self._description is not None:
            return dict(self._description)
        stages = [stage.describe() for stage in self.stages]
        shared = {key: stages[0][key] for key in ("norm", "eps")}
        return {"name": "+".join(self.names)} | shared | {"stages": stages}

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        offset: int = 0,
        active: Tensor | None = None,
    ) -> AttackResult:
        """Attack a batch with one attack after the other; see `Attack.__call__`."""
        network = self.prepare(model)
        x_adv, stage_of = to_pixels(x, torch.float32).clone(), torch.zeros_like(y)
        attacked = torch.ones_like(y, dtype=torch.bool) if active is None else active
        left = attacked
        loss = torch.zeros(len(y), device=y.device)
        nonfinite = torch.zeros(1, dtype=torch.int64, device=y.device)
        seconds = []
        for stage in self.stages:
            wait_for(x.device)
            began = time.perf_counter()
            if left.any():
                found = stage(network, x, y, offset=offset, active=left)
                mask = left.view(-1, 1, 1, 1)
                x_adv = torch.where(mask, found.x_adv, x_adv)
                loss = torch.where(left, found.loss, loss)
                nonfinite += found.nonfinite
                left = left & ~found.success
            stage_of += left | ~attacked
            wait_for(x.device)
            seconds.append(time.perf_counter() - began)
        success = attacked & ~left
        return AttackResult(x_adv, success, loss, nonfinite, tuple(seconds), stage_of)


def make_attack(
    name: str,
    threat: ThreatModel,
    budget: Budget = STANDARD_BUDGET,
    *,
    judge: Judge = "fastadv",
    seed: int = 0,
) -> Cascade:
    """Make an attack, or the four of AutoAttack's standard version, by name.

    Args:
        name: `"autoattack"`, an `AttackName`, or a `MinimalName`; attacks that minimise
            the norm take nothing of the budget but the steps.
        threat: Norm and radius, in pixel units.
        budget: Numbers of steps, restarts, targets and queries.
        judge: `"fastadv"` runs APGD on the fused kernels and everything on the attack
            view; `"package"` runs all in `pyautoattack`, on a plain copy of the model.
        seed: Seed of all random choices.

    Raises:
        ConfigError: The package is needed and not installed.
        ValueError: A name is unknown, a number of the budget is below 1, `ddn` is asked
            for another norm than l2, or an attack that minimises the norm for the judge
            `"package"`.
    """
    known = ("autoattack", *get_args(AttackName), *_MINIMAL)
    if name not in known:
        raise ValueError(unknown_name("attack", name, known))
    if judge not in get_args(Judge):
        raise ValueError(unknown_name("judge", judge, get_args(Judge)))
    if name in _MINIMAL:
        if judge != "fastadv":
            raise ValueError(f"judge={judge!r} has no {name}; use judge='fastadv'")
        minimal = _MINIMAL[name](threat, budget.num_steps)
        return Cascade([(name, minimal)], minimal.describe() | {"judge": judge})
    stages: list[tuple[str, Attack]] = []
    for each in STANDARD if name == "autoattack" else (name,):
        if judge == "fastadv" and each in _OBJECTIVE:
            steps, restarts = budget.num_steps, budget.num_restarts
            targets, objective = budget.num_targets, _OBJECTIVE[each]
            attack: Attack = APGD(
                threat, steps, objective, restarts, targets, seed=seed
            )
        else:
            attack = PackageAttack(
                each,  # type: ignore[arg-type]
                threat,
                budget,
                seed=seed,
                independent=judge == "package",
            )
        stages.append((each, attack))
    return Cascade(
        stages,
        {"name": name, "norm": threat.norm, "eps": threat.eps, "judge": judge}
        | asdict(budget),
    )
