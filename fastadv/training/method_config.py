"""The training methods, what each takes, and the choices of a run. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from fastadv.attacks.config import NORM_ALIAS, AttackConfig, StepsFlag, StepSizeFlag
from fastadv.errors import ConfigError
from fastadv.flags import NormName, Pixels
from fastadv.ranges import ABOVE_0, AT_LEAST_1
from fastadv.threat import ThreatModel

MethodName: TypeAlias = Literal[
    "pgd_at",
    "standard",
    "trades",
    "mart",
    "free",
    "rs_fgsm",
    "n_fgsm",
    "gradalign",
    "discrepancy",
]


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """What a training method takes; `methods.py` holds its losses and names its paper.

    Attributes:
        num_steps: Default number of attack steps. A method with 1 takes no other number,
            and its training is watched for catastrophic overfitting.
        parameters: Parameters of the method besides its attack, with their defaults.
        objective: Loss that the attack maximises.
        own_start: Whether the method, and not the user, chooses where the attack begins.
        small_start: Whether the attack begins near the image, and not at it.
        soft_labels: Whether the method works with mixed or smoothed labels.
        attacks: Whether the method attacks its images at all.
        step_share: Length of an attack step in units of eps / num_steps; None stands for
            the default of PGD.
    """

    num_steps: int = 3
    parameters: Mapping[str, float] = field(default_factory=dict)
    objective: str = "cross_entropy"
    own_start: bool = False
    small_start: bool = False
    soft_labels: bool = True
    attacks: bool = True
    step_share: float | None = None

    @property
    def one_step(self) -> bool:
        """Whether the attack is a single step."""
        return self.num_steps == 1


METHODS: dict[MethodName, MethodEntry] = {
    "pgd_at": MethodEntry(),
    "standard": MethodEntry(attacks=False),
    "trades": MethodEntry(
        num_steps=10,
        parameters={"beta": 6.0},
        objective="kl",
        small_start=True,
        step_share=2.5,  # 0.007 of 0.031 in ten steps, as published, is 2.3
    ),
    "mart": MethodEntry(
        num_steps=10,
        parameters={"beta": 5.0},
        small_start=True,
        soft_labels=False,
        step_share=2.5,
    ),
    "free": MethodEntry(
        num_steps=1, parameters={"replays": 4}, own_start=True, step_share=1.0
    ),
    "rs_fgsm": MethodEntry(num_steps=1, own_start=True, step_share=1.25),
    "n_fgsm": MethodEntry(
        num_steps=1, parameters={"noise": 2.0}, own_start=True, step_share=1.0
    ),
    "gradalign": MethodEntry(num_steps=1, parameters={"beta": 0.2}, step_share=1.0),
    "discrepancy": MethodEntry(
        num_steps=10,
        parameters={"beta": 500.0},
        objective="feature_distance",
        small_start=True,
        step_share=1.25,
    ),
}
DEFAULT_EPS = {"l2": 3.0, "linf": 4 / 255}


@dataclass(frozen=True, kw_only=True)
class MethodConfig(AttackConfig):
    """A training method with its attack.

    Raises:
        ConfigError: A value that the method does not use, or that cannot work.
    """

    method: MethodName = "pgd_at"
    """Training method; recipes/*.yaml holds published settings. pgd_at is PGD adversarial
    training, standard trains without attack. trades and mart attack in several steps,
    too; free, rs_fgsm, n_fgsm and gradalign in a single one; discrepancy is for the
    fine-tuning of robust networks."""
    beta: Annotated[float | None, ABOVE_0] = None
    """Weight of the second term of the loss. Default: 6 for trades, 5 for mart, 0.2 for
    gradalign, 500 for discrepancy."""
    replays: Annotated[int | None, AT_LEAST_1] = None
    """Number of updates on each batch with the method free; epochs count passes over the
    data. Default: 4."""
    noise: Annotated[float | None, ABOVE_0] = None
    """Radius of the random start of n_fgsm in units of eps. Default: 2."""
    norm: Annotated[NormName, NORM_ALIAS] = "l2"
    """Norm of the perturbation."""
    eps: Pixels | None = None
    """Radius of the perturbation in [0, 1] pixel units, for example 3 or 4/255; 0 trains
    without attack. Default: 3 for l2, 4/255 for linf."""
    num_steps: StepsFlag = None
    """Number of attack steps per update. Default: 10 for trades, mart and discrepancy, 1
    for the methods of a single step, else 3."""
    step_size: StepSizeFlag = None
    """Length of an attack step in [0, 1] pixel units. Default for pgd_at: 2/3 of eps, or
    what fewer than three steps need to cross the ball; the other methods have their
    own."""
    random_start: bool = False
    """Begin the attack at a random point of the ball."""
    num_restarts: Annotated[int, AT_LEAST_1] = 1
    """Number of random starts of the attack per update, of which the worst counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        entry, name = METHODS[self.method], self.method
        if self.eps is None:
            eps = DEFAULT_EPS[self.norm] if entry.attacks else 0.0
            object.__setattr__(self, "eps", eps)
        try:
            eps = self.threat.eps
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for key in ("beta", "replays", "noise"):
            value = getattr(self, key)
            if value is not None and key not in entry.parameters:
                users = ", ".join(n for n, e in METHODS.items() if key in e.parameters)
                raise ConfigError(
                    f"`{key}={value:g}` means nothing to `method={name}`; it is for {users}"
                )
            value = entry.parameters.get(key) if value is None else value
            object.__setattr__(self, key, value)
        if entry.attacks and eps == 0 and name != "pgd_at":
            raise ConfigError(
                f"`method={name}` attacks and needs an `eps` above 0; training without "
                "attack is `method=standard`"
            )
        if not entry.attacks and eps > 0:
            raise ConfigError(
                f"`method={name}` does not attack, so `eps={eps:g}` would do nothing; "
                "leave `eps` out, or choose another `method`"
            )
        if entry.one_step and self.num_steps not in (None, 1):
            raise ConfigError(
                f"`method={name}` attacks in one step, not in `num_steps={self.num_steps}`"
                "; `method=pgd_at` takes several"
            )
        if self.random_start and entry.own_start:
            raise ConfigError(
                f"`method={name}` has a start of its own; leave `random_start` out"
            )
        starts = self.random_start or entry.small_start
        if self.num_restarts > 1 and not starts:
            reason = (
                "has a start of its own" if entry.own_start else "has one start alone"
            )
            hint = "leave it out" if entry.own_start else "add `random_start`"
            raise ConfigError(
                f"`num_restarts={self.num_restarts}`: `method={name}` {reason}; {hint}"
            )
        object.__setattr__(self, "num_steps", self.num_steps or entry.num_steps)

    @property
    def entry(self) -> MethodEntry:
        """The entry of the method in `METHODS`."""
        return METHODS[self.method]

    @property
    def attack_steps(self) -> int:
        """Number of steps of the training attack."""
        return self.num_steps or self.entry.num_steps

    @property
    def parameters(self) -> dict[str, float]:
        """Parameters of the method besides its attack, by name."""
        return {name: getattr(self, name) for name in self.entry.parameters}

    @property
    def threat(self) -> ThreatModel:
        """Norm and radius of the training attack."""
        return ThreatModel(self.norm, self.eps or 0.0)  # type: ignore[arg-type]

    @property
    def adversarial(self) -> bool:
        """Whether training attacks its images."""
        return self.threat.eps > 0
