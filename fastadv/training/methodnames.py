"""The names of the training methods and what each of them takes. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fastadv.errors import ConfigError

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
    """One entry of `METHODS`; the losses themselves are in `methods.py`.

    Attributes:
        source: paper.
        num_steps: attack steps by default.
        one_step: the attack is a single step: no other `num_steps`, and training is
            watched for catastrophic overfitting.
        parameters: what the method takes besides the attack, with its defaults.
        random_start: `"chosen"` by the user, or `"own"`: the method says where the attack
            begins.
        soft_labels: works with mixed or smoothed labels.
        attacks: whether it attacks at all.
        step_share: attack step in units of eps / num_steps; None is PGD's default.
    """

    source: str
    num_steps: int = 3
    one_step: bool = False
    parameters: Mapping[str, float] = field(default_factory=dict)
    random_start: Literal["chosen", "own"] = "chosen"
    soft_labels: bool = True
    attacks: bool = True
    step_share: float | None = None


METHODS: dict[MethodName, MethodEntry] = {
    "pgd_at": MethodEntry(source="Madry et al. 2018, eq. 2.1; Salman et al. 2020"),
    "standard": MethodEntry(source="no attack", attacks=False),
    "trades": MethodEntry(
        source="Zhang et al. 2019, eq. 5",
        num_steps=10,
        parameters={"beta": 6.0},
        step_share=2.5,  # 0.007 of 0.031 in ten steps, as published, is 2.3
    ),
    "mart": MethodEntry(
        source="Wang et al. 2020, eq. 11",
        num_steps=10,
        parameters={"beta": 5.0},
        soft_labels=False,
        step_share=2.5,
    ),
    "free": MethodEntry(
        source="Shafahi et al. 2019, algorithm 1",
        num_steps=1,
        one_step=True,
        parameters={"replays": 4},
        random_start="own",
        step_share=1.0,
    ),
    "rs_fgsm": MethodEntry(
        source="Wong et al. 2020, algorithm 3",
        num_steps=1,
        one_step=True,
        random_start="own",
        step_share=1.25,
    ),
    "n_fgsm": MethodEntry(
        source="de Jorge et al. 2022, eq. 4",
        num_steps=1,
        one_step=True,
        parameters={"noise": 2.0},
        random_start="own",
        step_share=1.0,
    ),
    "gradalign": MethodEntry(
        source="Andriushchenko and Flammarion 2020, eq. 7",
        num_steps=1,
        one_step=True,
        parameters={"beta": 0.2},
        step_share=1.0,
    ),
    "discrepancy": MethodEntry(
        source="Zhang et al. 2023, discrepancy mitigating",
        num_steps=10,
        parameters={"beta": 500.0},
        step_share=1.25,
    ),
}
PARAMETERS = ("beta", "replays", "noise")

OptimizerName: TypeAlias = Literal[
    "sgd",
    "adamw",
    "lars",
    "lamb",
    "apex_fused_sgd",
    "apex_fused_adam",
    "apex_fused_lamb",
]
_ADAPTIVE = ("adamw", "lamb", "apex_fused_adam", "apex_fused_lamb")


def default_lr(optimizer: str) -> float:
    """0.1 as published for SGD; a hundredth of it where steps are normalised per weight."""
    return 1e-3 if optimizer in _ADAPTIVE else 0.1


def resolve_method(
    name: MethodName,
    *,
    eps: float,
    num_steps: int | None,
    random_start: bool,
    mixes_labels: bool,
    **parameters: float | None,
) -> dict[str, float | int | None]:
    """What a method's steps and parameters are, after what was asked for.

    Raises:
        ConfigError: something was asked for that the method does not use.
    """
    entry = METHODS[name]
    for key, value in parameters.items():
        if value is not None and key not in entry.parameters:
            users = ", ".join(n for n, e in METHODS.items() if key in e.parameters)
            raise ConfigError(
                f"--{key} {value:g} means nothing to --method {name}; it is for {users}"
            )
        if value is not None and value <= 0:
            raise ConfigError(f"--{key} {value:g} cannot work; it must be above 0")
    if entry.attacks and eps == 0 and name != "pgd_at":
        raise ConfigError(
            f"--method {name} attacks and needs an --eps above 0; without attack it is "
            "--method standard"
        )
    if not entry.attacks and eps > 0:
        raise ConfigError(
            f"--method {name} does not attack, so --eps {eps:g} would do nothing; leave "
            "--eps out, or choose another --method"
        )
    if entry.one_step and num_steps not in (None, 1):
        raise ConfigError(
            f"--method {name} attacks in one step, not in --num-steps {num_steps}; "
            "--method pgd_at takes several"
        )
    if random_start and entry.random_start == "own":
        raise ConfigError(
            f"--method {name} has a start of its own; leave --random-start out"
        )
    if mixes_labels and not entry.soft_labels:
        raise ConfigError(
            f"--method {name} needs one true class per image; leave out "
            "--label-smoothing, --mixup and --cutmix"
        )
    found: dict[str, float | int | None] = {
        key: entry.parameters.get(key) if value is None else value
        for key, value in parameters.items()
    }
    return found | {"num_steps": num_steps or entry.num_steps}
