"""AutoAttack: four attacks in a row, each on the images that survived the earlier ones.

APGD-CE and APGD-T run on the fused kernels. FAB-T and Square come from the package
`pyautoattack` (see `package.py`), which can also run all four.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastadv.attacks.apgd import APGD
from fastadv.attacks.contract import Attack, AttackResult
from fastadv.attacks.deepfool import DeepFool
from fastadv.attacks.fmn import DDN, FMN
from fastadv.attacks.objectives import DLR_TARGETED
from fastadv.attacks.outputs import checked_logits
from fastadv.attacks.package import (
    STANDARD_BUDGET,
    AttackName,
    Budget,
    PackageAttack,
    undefined,
)
from fastadv.device import differentiable, wait_for
from fastadv.errors import ConfigError, unknown_name
from fastadv.extensions import look_up
from fastadv.kernels.pixels import to_pixels
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

log = logging.getLogger(__name__)

Judge = Literal["fastadv", "package"]

STANDARD: tuple[AttackName, ...] = ("apgd-ce", "apgd-t", "fab", "square")
# Attacks that do not follow the gradient of the model as it is.
BLACK_BOX = ("square", "bpda", "transfer")

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
        leaves_out: Whether an attack that does not exist for as few classes as the model
            has is left out, with a warning, instead of an error. See `for_classes`.
        instead: The attack that takes the place of one that is left out, by its name.

    Raises:
        ValueError: There is no attack.
    """

    def __init__(
        self,
        stages: Sequence[tuple[str, Attack]],
        description: dict[str, Any] | None = None,
        *,
        leaves_out: bool = False,
        instead: Mapping[str, tuple[str, Attack]] | None = None,
    ) -> None:
        if not stages:
            raise ValueError("a cascade needs at least one attack, got none")
        self._said: set[str] = set()  # names of attacks that were said to be left out
        self.names = tuple(name for name, _ in stages)
        self.stages = tuple(stage for _, stage in stages)
        self._description = description
        self.leaves_out = leaves_out
        self._instead = dict(instead or {})

    @classmethod
    def of(cls, attack: Attack) -> Cascade:
        """Return an attack as a cascade of one stage; a cascade stays as it is."""
        if isinstance(attack, Cascade):
            return attack
        return cls([(attack.names[0], attack)], attack.describe())

    def then(self, attack: Attack, described: str) -> Cascade:
        """Return this cascade with one more attack at its end.

        Args:
            attack: The attack.
            described: What `describe` says under the name of the attack.
        """
        stages: list[tuple[str, Attack]] = [
            *zip(self.names, self.stages, strict=True),
            (attack.names[0], attack),
        ]
        description = self.describe() | {attack.names[0]: described}
        options: dict[str, Any] = {"leaves_out": self.leaves_out}
        return Cascade(stages, description, instead=self._instead, **options)

    def for_classes(self, num_classes: int) -> Cascade:
        """Return the cascade of the attacks that exist for a number of classes.

        Its description says what was left out. A cascade that leaves nothing out is
        returned as it is.
        """
        present = [
            (number, found)
            for number in range(len(self.stages))
            if (found := self._stage(number, num_classes)) is not None
        ]
        stages = [found for _, found in present]
        names = tuple(name for name, _ in stages)
        if not self.leaves_out or names == self.names:
            return self
        missing = [name for name in self.names if name not in names]
        description = self.describe() | {"left_out": "+".join(missing)}
        if more := [name for name in names if name not in self.names]:
            description["instead"] = "+".join(more)
        return Cascade(stages, description)

    def _stage(self, number: int, num_classes: int | None) -> tuple[str, Attack] | None:
        """Return an attack with its name, what takes its place, or None.

        Where an attack is left out, a warning says so, once for each cascade.
        """
        name, stage = self.names[number], self.stages[number]
        reason = None if num_classes is None else undefined(name, num_classes)
        if not self.leaves_out or reason is None or num_classes is None:
            return name, stage
        other = self._instead.get(name)
        if other is not None and undefined(other[0], num_classes) is not None:
            other = None
        if name not in self._said:
            self._said.add(name)
            what = "is left out" if other is None else f"gives way to {other[0]}"
            log.warning("%s; it %s", reason, what)
        return other

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

    @differentiable
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
        num_classes = _num_classes(network, x) if self.leaves_out else None
        x_adv, stage_of = to_pixels(x, torch.float32).clone(), torch.zeros_like(y)
        attacked = torch.ones_like(y, dtype=torch.bool) if active is None else active
        left = attacked
        loss = torch.zeros(len(y), device=y.device)
        nonfinite = torch.zeros(1, dtype=torch.int64, device=y.device)
        seconds, passes = [], 0
        for number in range(len(self.stages)):
            wait_for(x.device)
            began = time.perf_counter()
            stage = self._stage(number, num_classes)
            if left.any() and stage is not None:
                found = stage[1](network, x, y, offset=offset, active=left)
                mask = left.view(-1, 1, 1, 1)
                x_adv = torch.where(mask, found.x_adv, x_adv)
                loss = torch.where(left, found.loss, loss)
                nonfinite += found.nonfinite
                passes += found.passes
                left = left & ~found.success
            stage_of += left | ~attacked
            wait_for(x.device)
            seconds.append(time.perf_counter() - began)
        success = attacked & ~left
        return AttackResult(
            x_adv, success, loss, nonfinite, tuple(seconds), stage_of, passes
        )


def _own_attack(
    name: str, made_by: Any, threat: ThreatModel, budget: Budget, seed: int
) -> Cascade:
    """Return the attack of a user, under the name that the user gave."""
    attack = made_by
    if isinstance(made_by, type) or not hasattr(made_by, "describe"):
        if not callable(made_by):
            raise ConfigError(
                f"attack {name!r} is {type(made_by).__name__}; expected an attack, or a "
                "function that is given a ThreatModel and returns one"
            )
        parameters = inspect.signature(made_by).parameters
        offered = asdict(budget) | {"seed": seed}
        taken = {key: value for key, value in offered.items() if key in parameters}
        attack = made_by(threat, **taken)
    lacks = [
        each
        for each in ("names", "prepare", "describe", "__call__")
        if isinstance(attack, type) or not hasattr(attack, each)
    ]
    if lacks:
        raise ConfigError(
            f"attack {name!r} made {type(attack).__name__}, which is no attack: it lacks "
            f"{', '.join(lacks)}; see fastadv.attacks.Attack, or derive from SingleAttack"
        )
    return Cascade([(name, attack)], attack.describe() | {"name": name})


@torch.no_grad()
def _num_classes(network: nn.Module, x: Tensor) -> int:
    """Return the number of logits, with a forward pass of one image if it is not stated."""
    if not isinstance(network, AttackView):
        return int(checked_logits(network(to_pixels(x[:1], torch.float32))).shape[1])
    stated = network.num_classes
    return stated or int(checked_logits(network(network.normalize(x[:1]))).shape[1])


def make_attack(
    name: str,
    threat: ThreatModel,
    budget: Budget = STANDARD_BUDGET,
    *,
    judge: Judge = "fastadv",
    seed: int = 0,
) -> Cascade:
    """Make an attack, or the four of AutoAttack's standard version, by name.

    For a model of two or three classes AutoAttack leaves APGD-T out, which is not defined
    there, and says so. For three classes APGD-DLR takes its place; for two, maximising the
    cross-entropy and the margin are the same, and the other attacks are complete.

    Args:
        name: `"autoattack"`, an `AttackName`, or a `MinimalName`; attacks that minimise
            the norm take nothing of the budget but the steps. `module:name`, or the name
            of an entry point in the group `fastadv.attacks`, stands for an `Attack`, or
            for a function that is given the threat model and returns one. It is also
            given those of `num_steps`, `num_restarts`, `num_targets`, `num_queries` and
            `seed` that it has parameters for.
        threat: Norm and radius, in pixel units.
        budget: Numbers of steps, restarts, targets and queries.
        judge: `"fastadv"` runs APGD on the fused kernels and everything on the attack
            view; `"package"` runs all in `pyautoattack`, on a plain copy of the model.
        seed: Seed of all random choices.

    Raises:
        ConfigError: The package is needed and not installed, or `module:name` cannot be
            imported or makes no attack.
        ValueError: A name is unknown, a number of the budget is below 1, `ddn` is asked
            for another norm than l2, or an attack that minimises the norm for the judge
            `"package"`.
    """
    known = ("autoattack", *get_args(AttackName), *_MINIMAL)
    if name not in known:
        made_by = look_up("attack", name, dict.fromkeys(known), "attacks")
        return _own_attack(name, made_by, threat, budget, seed)
    if judge not in get_args(Judge):
        raise ValueError(unknown_name("judge", judge, get_args(Judge)))
    if name in _MINIMAL:
        if judge != "fastadv":
            raise ValueError(f"judge={judge!r} has no {name}; use judge='fastadv'")
        minimal = _MINIMAL[name](threat, budget.num_steps)
        return Cascade([(name, minimal)], minimal.describe() | {"judge": judge})

    def made(each: str) -> tuple[str, Attack]:
        if judge == "fastadv" and each in _OBJECTIVE:
            steps, restarts = budget.num_steps, budget.num_restarts
            targets, objective = budget.num_targets, _OBJECTIVE[each]
            return each, APGD(threat, steps, objective, restarts, targets, seed=seed)
        return each, PackageAttack(
            each,  # type: ignore[arg-type]
            threat,
            budget,
            seed=seed,
            independent=judge == "package",
        )

    whole = name == "autoattack"
    return Cascade(
        [made(each) for each in (STANDARD if whole else (name,))],
        {"name": name, "norm": threat.norm, "eps": threat.eps, "judge": judge}
        | asdict(budget),
        leaves_out=whole,
        instead={"apgd-t": made("apgd-dlr")} if whole else None,
    )
