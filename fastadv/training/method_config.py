"""The training methods, what each takes, and the choices of a run. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from fastadv.attacks.config import NORM_ALIAS, AttackConfig, StepsFlag, StepSizeFlag
from fastadv.errors import ConfigError
from fastadv.extensions import look_up, name_of
from fastadv.flags import NormName, Pairs, Pixels, arg
from fastadv.ranges import ABOVE_0, AT_LEAST_1
from fastadv.threat import ThreatModel, usual_l2

BatchNormMode: TypeAlias = Literal["eval", "train"]


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """What a training method takes; `methods.py` holds its losses and names its paper.

    Attributes:
        num_steps: Default number of attack steps. A method with 1 takes no other number,
            and its training is watched for catastrophic overfitting.
        parameters: Parameters of the method besides its attack, with their defaults.
        objective: Loss that the attack maximises.
        own_start: Whether the method, and not the user, chooses where the attack begins.
        small_start: Standard deviation of the noise around the image where the attack
            begins, in pixel units; 0 begins at the image.
        soft_labels: Whether the method works with mixed or smoothed labels.
        attacks: Whether the method attacks its images at all.
        step_share: Length of an attack step in units of eps / num_steps; None stands for
            the default of PGD.
        bn_mode: Mode of BatchNorm in the passes of the attack, as the authors have it;
            None where there are no such passes beside those of training.
    """

    num_steps: int = 3
    parameters: Mapping[str, float] = field(default_factory=dict)
    objective: str = "cross_entropy"
    own_start: bool = False
    small_start: float = 0.0
    soft_labels: bool = True
    attacks: bool = True
    step_share: float | None = None
    bn_mode: BatchNormMode | None = "eval"

    @property
    def one_step(self) -> bool:
        """Whether the attack is a single step."""
        return self.num_steps == 1


METHODS: dict[str, MethodEntry] = {
    "pgd_at": MethodEntry(),
    "standard": MethodEntry(attacks=False, bn_mode=None),
    "trades": MethodEntry(
        num_steps=10,
        parameters={"beta": 6.0},
        objective="kl",
        small_start=0.001,
        step_share=2.5,  # 0.007 of 0.031 in ten steps, as published, is 2.3
    ),
    "mart": MethodEntry(
        num_steps=10,
        parameters={"beta": 5.0},
        small_start=0.001,
        soft_labels=False,
        step_share=2.5,
    ),
    "free": MethodEntry(
        num_steps=1,
        parameters={"replays": 4},
        own_start=True,
        step_share=1.0,
        bn_mode=None,
    ),
    "rs_fgsm": MethodEntry(
        num_steps=1, own_start=True, step_share=1.25, bn_mode="train"
    ),
    "n_fgsm": MethodEntry(
        num_steps=1,
        parameters={"noise": 2.0},
        own_start=True,
        step_share=1.0,
        bn_mode="train",
    ),
    "gradalign": MethodEntry(
        num_steps=1, parameters={"beta": 0.2}, step_share=1.0, bn_mode="train"
    ),
    "discrepancy": MethodEntry(
        num_steps=10,
        parameters={"beta": 500.0},
        objective="feature_distance",
        small_start=0.0005,  # 0.001 as published, for images in [-1, 1]
        step_share=1.25,
    ),
}
_LINF_EPS = 4 / 255

MethodName: TypeAlias = Annotated[
    str, arg(metavar="{" + ",".join(METHODS) + "}|MODULE:NAME")
]
"""The name of a training method, built in or of your own; see `method_named`."""


def method_named(name: str) -> Any:
    """Return what a training method is called by: an entry of `METHODS`, or a class.

    Args:
        name: A key of `METHODS`; `module:name`, which is imported; or the name of an entry
            point in the group `fastadv.methods`. The latter two name a subclass of
            `fastadv.training.methods.Method`, whose attribute `entry` describes it.

    Raises:
        ConfigError: Nothing has this name, it cannot be imported, or is no method.
    """
    try:
        found = look_up("`method`", name, METHODS, "methods")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    entry = getattr(found, "entry", None)
    if name not in METHODS and not (
        isinstance(found, type) and isinstance(entry, MethodEntry)
    ):
        raise ConfigError(
            f"`method={name}` names a {type(found).__name__} and no training method; write "
            "a subclass of fastadv.training.methods.Method"
        )
    return found


def entry_of(name: str) -> MethodEntry:
    """Return what a training method takes; see `method_named`."""
    found = method_named(name)
    entry: MethodEntry = found if isinstance(found, MethodEntry) else found.entry
    return entry


def own_parameters(
    name: str, entry: MethodEntry, pairs: tuple[str, ...]
) -> dict[str, float]:
    """Return the parameters of a method of your own, those given over its defaults.

    Raises:
        ConfigError: A text is not KEY=NUMBER, or the method has no such parameter.
    """
    found = dict(entry.parameters)
    for pair in pairs:
        key, _, value = pair.partition("=")
        if name in METHODS or key not in found:
            known = ", ".join(found) if name not in METHODS else ""
            raise ConfigError(
                f"`method_option={pair}`: `method={name}` has "
                f"{f'the options {known}' if known else 'no such options'}"
                f"{'; its parameters are arguments of their own' * (name in METHODS)}"
            )
        try:
            found[key] = float(value)
        except ValueError:
            raise ConfigError(
                f"`method_option={pair}` must be KEY=NUMBER, e.g. {key}={found[key]:g}"
            ) from None
    return found


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
    fine-tuning of robust networks. MODULE:NAME imports a method of your own; so does a name
    that an installed package adds."""
    method_option: Pairs = ()
    """Parameter KEY=NUMBER of a method of your own."""
    beta: Annotated[float | None, ABOVE_0] = None
    """Weight of the second term of the loss. Default: 6 for trades, 5 for mart, 500 for
    discrepancy; for gradalign 0.2, which with linf is that of 8/255 and grows tenfold with
    every 8/255 of the radius, as published."""
    replays: Annotated[int | None, AT_LEAST_1] = None
    """Number of updates on each batch with the method free; epochs count passes over the
    data. Default: 4."""
    noise: Annotated[float | None, ABOVE_0] = None
    """Radius of the random start of n_fgsm in units of eps. Default: 2."""
    norm: Annotated[NormName, NORM_ALIAS] = "l2"
    """Norm of the perturbation."""
    eps: Pixels | None = None
    """Radius of the perturbation in [0, 1] pixel units, for example 3 or 4/255; 0 trains
    without attack. Default: 4/255 for linf; for l2 it is 3 at 224 px, 0.5 at 32 px, and in
    proportion to other sizes, as far as the flags tell the size."""
    num_steps: StepsFlag = None
    """Number of attack steps per update. Default: 10 for trades, mart and discrepancy, 1
    for the methods of a single step, else 3."""
    step_size: StepSizeFlag = None
    """Length of an attack step in [0, 1] pixel units. Default for pgd_at: 2 eps divided by
    the number of steps, or 2.5 eps for more than three steps; the other methods have
    their own."""
    random_start: bool = False
    """Begin the attack at a random point of the ball."""
    num_restarts: Annotated[int, AT_LEAST_1] = 1
    """Number of random starts of the attack per update, of which the worst counts."""
    bn_mode: BatchNormMode | None = None
    """Statistics by which BatchNorm normalises in the passes of the attack: the running
    ones (eval), or those of the batch (train), which then update the running ones, too.
    Default, as their authors have it: train for rs_fgsm, n_fgsm and gradalign, else eval."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "method", name_of(self.method, METHODS, "methods"))
        entry, name = entry_of(self.method), self.method
        own = name not in METHODS
        parameters = own_parameters(name, entry, self.method_option)
        if self.eps is None:
            usual = _LINF_EPS if self.norm == "linf" else usual_l2(self._usual_side())
            object.__setattr__(self, "eps", usual if entry.attacks else 0.0)
        try:
            eps = self.threat.eps
        except ValueError as error:
            raise ConfigError(str(error)) from None
        given_beta = self.beta is not None
        for key in ("beta", "replays", "noise"):
            value = getattr(self, key)
            if value is not None and (own or key not in entry.parameters):
                users = ", ".join(n for n, e in METHODS.items() if key in e.parameters)
                raise ConfigError(
                    f"`{key}={value:g}` means nothing to `method={name}`; it is for {users}"
                )
            if value is None and not own:
                value = parameters.get(key)
            object.__setattr__(self, key, value)
        if name == "gradalign" and not given_beta and self.norm == "linf":
            # Linear in the radius on a logarithmic scale: 0.2 at 8/255, 2 at 16/255.
            object.__setattr__(self, "beta", 0.2 * 10 ** (eps * 255 / 8 - 1))
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
            reason, hint = "begins at the image itself", "add `random_start`"
            if entry.own_start:
                reason, hint = "has a start of its own", "leave it out"
            raise ConfigError(
                f"`num_restarts={self.num_restarts}`: `method={name}` {reason}; {hint}"
            )
        if self.bn_mode is not None and entry.bn_mode is None:
            raise ConfigError(
                f"`method={name}` has no passes of an attack for `bn_mode={self.bn_mode}`; "
                "leave it out"
            )
        object.__setattr__(self, "bn_mode", self.bn_mode or entry.bn_mode)
        object.__setattr__(self, "num_steps", self.num_steps or entry.num_steps)
        if name == "pgd_at" and self.step_size is None and self.attack_steps > 3:
            object.__setattr__(self, "step_size", 2.5 * eps / self.attack_steps)

    def _usual_side(self) -> int:
        """Return the side of the images in pixels, as far as the choices tell it."""
        return 224

    @property
    def entry(self) -> MethodEntry:
        """What the method takes, and what it is."""
        return entry_of(self.method)

    @property
    def attack_steps(self) -> int:
        """Number of steps of the training attack."""
        return self.num_steps or self.entry.num_steps

    @property
    def parameters(self) -> dict[str, float]:
        """Parameters of the method besides its attack, by name."""
        if self.method not in METHODS:
            return own_parameters(self.method, self.entry, self.method_option)
        return {name: getattr(self, name) for name in self.entry.parameters}

    @property
    def start_noise(self) -> float | None:
        """Deviation of the noise at the start, in pixel units, if it is not 0.001 or 0."""
        noise = self.entry.small_start
        return noise if noise not in (0.0, 0.001) else None

    @property
    def threat(self) -> ThreatModel:
        """Norm and radius of the training attack."""
        return ThreatModel(self.norm, self.eps or 0.0)  # type: ignore[arg-type]

    @property
    def adversarial(self) -> bool:
        """Whether training attacks its images."""
        return self.threat.eps > 0
