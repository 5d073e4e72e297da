"""The choices of an optimiser and its learning rate over a run. Needs no torch."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from fastadv.errors import ConfigError
from fastadv.ranges import ABOVE_0, AT_LEAST_0, Checked, Range

OptimizerName: TypeAlias = Literal[
    "sgd",
    "adam",
    "adamw",
    "lars",
    "lamb",
    "apex_fused_sgd",
    "apex_fused_adam",
    "apex_fused_lamb",
]
ScheduleName: TypeAlias = Literal["step", "cosine", "onecycle", "constant"]
_PEAK = 0.3
_ADAPTIVE = ("adam", "adamw", "lamb", "apex_fused_adam", "apex_fused_lamb")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """The optimiser of a run and its learning rate."""

    optimizer: OptimizerName = "sgd"
    """Optimiser. adam adds the weight decay to the gradient, adamw takes it off the
    weights; lars and lamb are for large batches; apex_* need NVIDIA apex."""
    lr: Annotated[float | None, ABOVE_0] = None
    """Initial learning rate, with onecycle the highest one. Default: 0.001 for adam,
    adamw, lamb and their apex versions, else 0.1."""
    momentum: Annotated[float, Range(0, 1)] = 0.9
    """Momentum of sgd and lars; beta1 of the others."""
    weight_decay: Annotated[float, AT_LEAST_0] = 1e-4
    """Weight decay of all weights; lars and lamb leave out biases and normalisation."""
    clip_grad: Annotated[float | None, ABOVE_0] = None
    """Maximum norm of the gradient of all weights together; a longer one is scaled
    down. Default: no limit."""
    schedule: ScheduleName = "step"
    """Learning rate over the run: step multiplies it by 0.1 after each third, cosine lets it
    fall to zero, onecycle rises linearly and then falls linearly to zero."""
    peak: Annotated[float, Range(0, 1, "()")] = _PEAK
    """Share of the run after which onecycle reaches the highest learning rate. The authors
    of rs_fgsm and n_fgsm take 0.5, those of gradalign 0.4."""
    milestones: tuple[float, ...] | None = None
    """Shares of the run after which step multiplies the learning rate by 0.1, instead of
    after each third: 0.75 0.9 is after epochs 75 and 90 of 100."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr is None:
            object.__setattr__(self, "lr", default_lr(self.optimizer))
        if self.milestones is not None:
            self._check_milestones(tuple(self.milestones))
        if self.peak != _PEAK and self.schedule != "onecycle":
            raise ConfigError(
                f"`peak={self.peak:g}` belongs to `schedule=onecycle`, not "
                f"{self.schedule}; leave it out"
            )

    def _check_milestones(self, shares: tuple[float, ...]) -> None:
        given = " ".join(f"{share:g}" for share in shares)
        rising = all(a < b for a, b in itertools.pairwise((0.0, *shares, 1.0)))
        if not shares or not rising:
            raise ConfigError(
                f"`milestones={given}` cannot work; they must be rising shares of the "
                "run, between 0 and 1: epochs 75 and 90 of 100 are 0.75 0.9"
            )
        if self.schedule != "step":
            raise ConfigError(
                f"`milestones={given}` belong to `schedule=step`, not {self.schedule}; "
                "leave them out (over a file: `milestones=None`)"
            )
        object.__setattr__(self, "milestones", shares)


def default_lr(optimizer: str) -> float:
    """Return 0.1 as published for SGD, a hundredth where steps are normalised per weight."""
    return 1e-3 if optimizer in _ADAPTIVE else 0.1


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of update `step` (from 0) of `total_steps`."""
    lr = config.lr or default_lr(config.optimizer)
    if config.milestones is not None:
        reached = (step >= round(share * total_steps) for share in config.milestones)
        return lr * 0.1 ** sum(reached)
    return scheduled(lr, config.schedule, step, total_steps, config.peak)


def scheduled(
    lr: float, schedule: str, step: float, total: float, peak: float = _PEAK
) -> float:
    """Return the learning rate at `step` (from 0) of `total`, updates or epochs.

    It is a pure function, so that a resumed run needs no state of a scheduler. `step`
    falls by ten at each third (Salman et al. 2020: every 30 of 90 epochs); `onecycle`
    rises linearly over the share `peak` of the run and falls linearly to zero.
    """
    total = max(total, 1)
    if schedule == "step":
        return lr * 0.1 ** min(int(3 * step // total), 2)
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
    if schedule == "onecycle":
        # More ranks may need fewer updates: a run resumed on them can pass its `total`.
        left = max(1 - step / total, 0.0)
        return lr * min(max(step, 1) / total / peak, left / (1 - peak), 1.0)
    return lr
