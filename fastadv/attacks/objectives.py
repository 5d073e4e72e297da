"""Objectives that attacks maximise: functions of (outputs, context) with a loss per sample.

An objective does not depend on norms, steps or precision. The engine sums losses over the
batch and never averages them, because a mean underflows in half precision.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from fastadv.extensions import look_up


@dataclass(frozen=True)
class Context:
    """Everything that an objective may depend on, beside the outputs.

    Attributes:
        labels: True classes (or the targets of a targeted attack), int64 [N]; for
            cross-entropy also class probabilities, float32 [N, K]. An objective on a
            layer is given its units, int64 [N], or values to compare with, [N, D].
        clean: Outputs of the clean images (logits [N, K] or embedding [N, D]), without
            gradient; present if the objective `needs_clean`.
        targets: Wrong class that an untargeted attack aims at in this run, int64 [N];
            present if the objective `needs_targets`.
    """

    labels: Tensor
    clean: Tensor | None = None
    targets: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A loss per sample, and what an attack must know to maximise it.

    Attributes:
        name: Name by which users choose it.
        per_sample: Function (outputs, context) -> loss [N] to be maximised. Attacks call
            `losses`, which checks its result.
        outputs: Whether `outputs` are the logits or the penultimate embedding.
        needs_clean: Whether `context.clean` must be present; it is computed once per
            attack.
        needs_targets: Whether `context.targets` must be present. Only APGD provides it,
            with one wrong class after another.
        flips_success: Whether success means that the label *is* predicted, as for a
            targeted attack.
        zero_at_clean: Whether the gradient vanishes at the clean image (because the
            distance to the clean output is minimal there), so that the attack must start
            elsewhere.
        layer: Name of the layer whose activation `outputs` is instead, as
            `fastadv.models.activations` takes it; None for logits and embedding.
        succeeds: Whether success, that a class is or is not predicted, counts before the
            loss when iterates are compared. Without it, no attack succeeds.
    """

    name: str
    per_sample: Callable[[Tensor, Context], Tensor]
    outputs: Literal["logits", "features"] = "logits"
    needs_clean: bool = False
    needs_targets: bool = False
    flips_success: bool = False
    zero_at_clean: bool = False
    layer: str | None = None
    succeeds: bool = True

    def losses(self, outputs: Tensor, context: Context) -> Tensor:
        """Return the loss of each of N images, to be maximised.

        Raises:
            TypeError: `per_sample` returned something else than a tensor [N].
        """
        found: object = self.per_sample(outputs, context)
        if isinstance(found, Tensor) and found.shape == outputs.shape[:1]:
            return found
        what = f"a {type(found).__name__}"
        if isinstance(found, Tensor):
            what = f"a tensor of shape {list(found.shape)}"
        raise TypeError(
            f"objective {self.name!r} returned {what}; attacks need one loss per image, "
            f"shape [{len(outputs)}]. Do not average it: losses of PyTorch take "
            'reduction="none"'
        )


def cross_entropy(logits: Tensor, context: Context) -> Tensor:
    """Return the cross-entropy [N] of the true class. Source: Madry et al. 2018."""
    return F.cross_entropy(logits.float(), context.labels, reduction="none")


def targeted(logits: Tensor, context: Context) -> Tensor:
    """Return minus the cross-entropy [N] of the target class in `context.labels`."""
    return -cross_entropy(logits, context)


def margin(logits: Tensor, context: Context) -> Tensor:
    """Return the best wrong logit minus the true one, [N].

    Source: Carlini and Wagner 2017.
    """
    logits, true = logits.float(), context.labels[:, None]
    others = logits.scatter(1, true, float("-inf"))
    return others.amax(1) - logits.gather(1, true).squeeze(1)


def dlr(logits: Tensor, context: Context) -> Tensor:
    """Return the difference-of-logits ratio [N]: the margin over first minus third logit.

    It needs at least three classes. Source: Croce and Hein 2020, equation 6.
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"dlr needs at least 3 classes, got {logits.shape[1]}; use margin"
        )
    top = logits.float().topk(3, dim=1).values
    return margin(logits, context) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, context: Context) -> Tensor:
    """Return the DLR towards one wrong class [N], positive where it outranks the true one.

    It needs at least four classes. Source: Croce and Hein 2020, equation 7.
    """
    if context.targets is None:
        raise ValueError("dlr_targeted aims at one wrong class: fill `targets`")
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
    """Return the KL divergence [N] from the clean prediction (TRADES).

    Source: Zhang et al. 2019.
    """
    clean = _clean(context).float().softmax(1)
    per_class = F.kl_div(logits.float().log_softmax(1), clean, reduction="none")
    return per_class.sum(1)


def feature_distance(features: Tensor, context: Context) -> Tensor:
    """Return the mean squared distance [N] to the clean embedding; needs no labels.

    Source: Zhang et al. 2023 (discrepancy mitigating).
    """
    return (features.float() - _clean(context).float()).square().mean(1)


def _clean(context: Context) -> Tensor:
    if context.clean is None:
        raise ValueError("this objective compares with the clean outputs: fill `clean`")
    return context.clean


AnyObjective: TypeAlias = str | Objective | Callable[..., Any]
"""What attacks take as their objective; see `get_objective`."""

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


# It is not in OBJECTIVES, because only an attack that chooses targets can use it.
DLR_TARGETED = Objective("dlr_targeted", dlr_targeted, needs_targets=True)


def get_objective(objective: AnyObjective) -> Objective:
    """Return the objective that a name, a function or an `Objective` stands for.

    Args:
        objective: A key of `OBJECTIVES`; `module:name`, which is imported; the name of an
            entry point in the group `fastadv.objectives`; an `Objective`, which is returned
            as it is; or a function (logits [N, K], labels [N]) -> loss [N] to be maximised,
            such as `torch.nn.CrossEntropyLoss(reduction="none")`. A function whose second
            parameter is called `context` is given the `Context` in place of the labels.

    Raises:
        ValueError: The name is unknown.
        ConfigError: `module:name` cannot be imported.
        TypeError: It is none of these, or the function does not take two arguments.

    Example:
        >>> def hinge(logits, labels):
        ...     return -F.multi_margin_loss(logits, labels, reduction="none")
        >>> attack = PGD(ThreatModel("linf", "8/255"), objective=hinge)
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        found = look_up("objective", objective, OBJECTIVES, "objectives")
        return found if isinstance(found, Objective) else _own(found, objective)
    return _own(objective)


def _own(objective: Any, name: str | None = None) -> Objective:
    """Return the objective that a user's function is; `name` is how it was named."""
    if not callable(objective):
        raise TypeError(
            f"objective={objective!r} is {type(objective).__name__}; accepted: a name "
            f"({', '.join(OBJECTIVES)}), an Objective, or a function (logits, labels) -> "
            "loss [N]"
        )
    return _of_function(objective, name)


def _of_function(function: Callable[..., Any], name: str | None) -> Objective:
    """Return an objective on the logits that calls `function`."""
    title = str(name or getattr(function, "__name__", type(function).__name__))
    called = getattr(function, "forward", function)  # a module's own signature
    try:
        signature = inspect.signature(called)
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            f"the objective {title!r} cannot be called as {title}(logits, labels); write a "
            "function of logits [N, K] and labels [N] that returns the loss [N]"
        ) from None
    except ValueError:  # a built-in function has no signature
        return Objective(
            title, lambda outputs, context: function(outputs, context.labels)
        )
    second = [*signature.parameters][1:2]
    if second == ["context"]:
        return Objective(title, function)
    return Objective(title, lambda outputs, context: function(outputs, context.labels))


def succeeded(logits: Tensor, context: Context, objective: Objective) -> Tensor:
    """Return whether the attack reached its aim on each row of logits, bool [N].

    Logits that are not finite decide for no class, and so are a wrong answer.
    """
    hit = (logits.argmax(1) == context.labels) & logits.isfinite().all(1)
    return hit if objective.flips_success else ~hit
