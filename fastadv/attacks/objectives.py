"""What an attack maximises: functions of (outputs, context) with one loss per sample.

An objective knows nothing of norms, steps or precision. Losses are summed over the
batch by the engine, never averaged: a mean underflows in half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from fastadv.errors import unknown_name


@dataclass(frozen=True)
class Context:
    """What an objective may look at besides the outputs.

    Attributes:
        labels: int64 [N], the true classes (or the targets of a targeted attack); for
            cross-entropy also class probabilities, float32 [N, K].
        clean: outputs (logits [N, K] or embedding [N, D]) of the clean images, without
            gradient; present when the objective asks for it.
        targets: int64 [N], the wrong class an untargeted attack heads for at present;
            present when the objective asks for it.
    """

    labels: Tensor
    clean: Tensor | None = None
    targets: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """One entry of `OBJECTIVES`.

    Attributes:
        name: how users ask for it.
        per_sample: (outputs, context) -> loss [N] to be maximised.
        outputs: whether `outputs` are the logits or the penultimate embedding.
        needs_clean: whether `context.clean` must be filled; computed once per attack.
        needs_targets: whether `context.targets` must be filled; only APGD does, with one
            wrong class after another.
        flips_success: a targeted attack succeeds when the label *is* predicted.
        zero_at_clean: the gradient vanishes at the clean image (the distance to the
            clean output is minimal there), so the attack must start elsewhere.
    """

    name: str
    per_sample: Callable[[Tensor, Context], Tensor]
    outputs: Literal["logits", "features"] = "logits"
    needs_clean: bool = False
    needs_targets: bool = False
    flips_success: bool = False
    zero_at_clean: bool = False


def cross_entropy(logits: Tensor, context: Context) -> Tensor:
    """Cross-entropy [N] of the true class. Source: Madry et al. 2018."""
    return F.cross_entropy(logits.float(), context.labels, reduction="none")


def targeted(logits: Tensor, context: Context) -> Tensor:
    """Minus the cross-entropy [N] of the target class in `context.labels`."""
    return -cross_entropy(logits, context)


def _true_and_best_other(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return true, others.amax(1)


def margin(logits: Tensor, context: Context) -> Tensor:
    """Best wrong logit minus the true one, [N]. Source: Carlini and Wagner 2017."""
    true, other = _true_and_best_other(logits, context.labels)
    return other - true


def dlr(logits: Tensor, context: Context) -> Tensor:
    """Difference-of-logits ratio [N]: the margin in units of first minus third logit.

    Source: Croce and Hein 2020, equation 6; needs at least three classes.
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"dlr needs at least 3 classes, got {logits.shape[1]}; use margin"
        )
    true, other = _true_and_best_other(logits, context.labels)
    top = logits.float().topk(3, dim=1).values
    return (other - true) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, context: Context) -> Tensor:
    """DLR towards one wrong class [N]; positive where it outranks the true class.

    Source: Croce and Hein 2020, equation 7; needs at least four classes.
    """
    if context.targets is None:
        raise ValueError("dlr_targeted heads for one wrong class: fill `targets`")
    if logits.shape[1] < 4:
        raise ValueError(
            f"dlr_targeted needs at least 4 classes, got {logits.shape[1]}; use dlr "
            "(from 3) or margin"
        )
    logits = logits.float()
    true = logits.gather(1, context.labels[:, None]).squeeze(1)
    target = logits.gather(1, context.targets[:, None]).squeeze(1)
    top = logits.topk(4, dim=1).values
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return (target - true) / (scale + 1e-12)


def kl_to_clean(logits: Tensor, context: Context) -> Tensor:
    """KL divergence [N] from the clean prediction (TRADES). Source: Zhang 2019."""
    clean = _clean(context).float().softmax(1)
    per_class = F.kl_div(logits.float().log_softmax(1), clean, reduction="none")
    return per_class.sum(1)


def feature_distance(features: Tensor, context: Context) -> Tensor:
    """Mean squared distance [N] to the clean embedding; needs no labels.

    Source: Zhang et al. 2023 (discrepancy mitigating).
    """
    return (features.float() - _clean(context).float()).square().mean(1)


def _clean(context: Context) -> Tensor:
    if context.clean is None:
        raise ValueError("this objective compares with the clean outputs: fill `clean`")
    return context.clean


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("cross_entropy", cross_entropy),
        Objective("targeted", targeted, flips_success=True),
        Objective("margin", margin),
        Objective("dlr", dlr),
        Objective("kl", kl_to_clean, needs_clean=True, zero_at_clean=True),
        Objective(
            "feature_distance",
            feature_distance,
            outputs="features",
            needs_clean=True,
            zero_at_clean=True,
        ),
    )
}


# Not among the names: only an attack that chooses targets can use it.
DLR_TARGETED = Objective("dlr_targeted", dlr_targeted, needs_targets=True)


def get_objective(objective: str | Objective) -> Objective:
    """Look an objective up by name; an `Objective` of your own passes through.

    Raises:
        ValueError: no objective is called so.
    """
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(unknown_name("objective", objective, OBJECTIVES))
    return OBJECTIVES[objective]


def succeeded(logits: Tensor, context: Context, objective: Objective) -> Tensor:
    """Bool [N]: the attack reached its aim on these logits."""
    hit = logits.argmax(1) == context.labels
    return hit if objective.flips_success else ~hit
