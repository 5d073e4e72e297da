"""Auto-PGD: projected gradient ascent with momentum that finds its own step sizes.

One step is the network's input gradient (see `engine.py`), one fused kernel, and two
masked copies that remember the best iterate and its gradient. At a few checkpoints each
sample whose loss stopped rising goes back to its best iterate and halves its step.

The host waits for the device at boundaries only: before a run, after steps 3 and 10, and
at checkpoints (eight of them in 100 steps). There, samples that are fooled leave the
batch; between boundaries nothing is read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastadv.attacks.engine import (
    AttackResult,
    GradientAttack,
    check_counts,
    check_labels,
    warn_of_probabilities,
)
from fastadv.attacks.objectives import DLR_TARGETED, Context, Objective, succeeded
from fastadv.kernels import apgd_step_
from fastadv.kernels.arguments import memory_order
from fastadv.kernels.pixels import to_pixels
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

_MOMENTUM = 0.75  # weight of the new step, from the second on; the paper's alpha
_RHO = 0.75  # share of steps that must raise the loss for the step size to stay
# Most samples that fall at all fall in the first steps, and the first checkpoint is only
# at 22 % of them: boundaries here spare fooled samples the way to it.
_EARLY = (3, 10)

_Samples = TypeVar("_Samples", "_Run", Context)


def checkpoints(num_steps: int) -> list[int]:
    """Numbers of steps after which step sizes are reconsidered, ascending.

    Source: Croce and Hein 2020, section 3; with the rounding of the authors' code.
    """
    gap, least, less = (max(int(share * num_steps), 1) for share in (0.22, 0.06, 0.03))
    found = []
    step = gap
    while step <= num_steps:
        found.append(step)
        gap = max(gap - less, least)
        step += gap
    return found


class APGD(GradientAttack):
    """Auto-PGD within a threat model; the budget is its only parameter.

    Args:
        threat: norm and radius, pixel units.
        num_steps: gradient steps per run, >= 1.
        objective: `"cross_entropy"` (APGD-CE), `"dlr"` (APGD-DLR), `"dlr_targeted"`
            (APGD-T: one run for each of the highest wrong classes), or any objective
            on the logits.
        num_restarts: runs from different random starts; for the targeted objective, per
            target. Only samples that are not yet fooled are attacked again.
        num_targets: wrong classes that `"dlr_targeted"` heads for, from the highest
            clean logit down; at most one less than there are classes.
        seed: of the random starts; the same seed gives the same result.
        dtype: compute dtype of the network; None keeps the model's.

    Raises:
        ValueError: a number out of range, or an objective on the embedding.

    Example:
        >>> attack = APGD(ThreatModel("linf", "8/255"), objective="dlr_targeted")
        >>> robust_acc = 1 - attack(model, images, labels).success.float().mean()

    Source:
        Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an
        ensemble of diverse parameter-free attacks", algorithm 1.
    """

    def __init__(
        self,
        threat: ThreatModel,
        num_steps: int = 100,
        objective: str | Objective = "cross_entropy",
        num_restarts: int = 1,
        num_targets: int = 9,
        *,
        seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_counts(
            num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets
        )
        if objective == DLR_TARGETED.name:
            objective = DLR_TARGETED
        super().__init__(
            threat,
            objective,
            num_restarts=num_restarts,
            random_start=True,
            seed=seed,
            bn_mode="eval",
            dtype=dtype,
        )
        if self.objective.outputs != "logits":
            raise ValueError(
                f"objective={self.objective.name!r} looks at the embedding; APGD needs "
                "one on the logits, or use PGD"
            )
        self.num_steps = num_steps
        self.num_targets = num_targets

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        offset: int = 0,
        active: Tensor | None = None,
    ) -> AttackResult:
        """Attack the samples of a batch that are not fooled yet.

        Args:
            model: an `AttackView` (reused, and expected to be refreshed), a
                `NormalizedModel`, or any module that takes [0, 1] images.
            x: clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
            y: int64 [N], true classes (targets for the targeted objective).
            offset: number of the first sample in the random sequence, so that batches
                (or ranks) of one data set draw different starts.
            active: bool [N]; the others are not attacked and count as not fooled.

        Returns:
            For samples that were not attacked or misclassified to begin with, the clean
            image. For fooled ones the first iterate that did it, for the rest the one
            of the highest loss over all runs.

        Raises:
            ValueError: images outside [0, 1], labels that are no class ids, shapes that
                do not fit, or too few classes for the objective.
            TypeError: the model does not return logits [N, K].
        """
        view = self.prepare(model)
        self._check(view, x, y)
        layout = memory_order(x) or torch.contiguous_format
        x_nat = x.detach().contiguous(memory_format=torch.channels_last)
        context = self._context(view, x_nat, y)
        with torch.no_grad():
            logits = self._outputs(view, self._normalized(view, x_nat))
            check_labels(y, logits.shape[1])
            warn_of_probabilities(view, logits)
            targets = self._targets(logits, y)
            first = replace(context, targets=targets[0])
            loss = self.objective.per_sample(logits, first).float()
            wrong = succeeded(logits, context, self.objective)
        todo = ~wrong if active is None else ~wrong & active
        found = AttackResult(
            x_adv=to_pixels(x_nat, torch.float32).clone(),
            success=wrong if active is None else wrong & active,
            loss=loss.masked_fill(todo, float("-inf")),
            nonfinite=torch.zeros(1, dtype=torch.int64, device=x.device),
        )
        runs = [target for target in targets for _ in range(self.num_restarts)]
        for number, target in enumerate(runs):
            rows = (todo & ~found.success).nonzero().squeeze(1)  # the host waits
            if not len(rows):
                break
            start = self._start(x_nat, self.seed, number, offset)
            aim = _take(replace(context, targets=target), rows)
            self._run(view, rows, x_nat[rows], start[rows], aim, found)
        return replace(found, x_adv=found.x_adv.contiguous(memory_format=layout))

    def _targets(self, logits: Tensor, labels: Tensor) -> list[Tensor | None]:
        """What each run heads for: wrong classes [N], the highest first, or nothing."""
        if not self.objective.needs_targets:
            return [None]
        wrong = logits.scatter(1, labels[:, None], float("-inf"))
        count = min(self.num_targets, logits.shape[1] - 1)
        return list(wrong.topk(count, dim=1).indices.unbind(1))

    def _run(
        self,
        view: AttackView,
        rows: Tensor,
        x_nat: Tensor,
        start: Tensor,
        context: Context,
        found: AttackResult,
    ) -> None:
        """One run on the samples `rows` of the batch; `found` takes what is better."""
        mean, std = view.statistics(start.shape[1])
        z = self._normalized(view, start)
        grad, loss, outputs = self._gradient(view, z, context)
        fooled = succeeded(outputs, context, self.objective)
        run = _Run.begin(rows, x_nat, start, z, grad, context, loss, fooled)
        run.step_size.fill_(2 * self.threat.eps)
        radius = torch.full_like(run.step_size, self.threat.eps)
        checks = checkpoints(self.num_steps)
        since = 0
        for step in range(1, self.num_steps + 1):
            with torch.no_grad():
                apgd_step_(
                    run.x,
                    run.x_prev,
                    run.x_nat,
                    run.grad,
                    norm=self.threat.norm,
                    step_size=run.step_size,
                    eps=radius[: len(run.rows)],
                    momentum=1.0 if step == 1 else _MOMENTUM,
                    mean=mean,
                    std=std,
                    z=run.z,
                    nonfinite=found.nonfinite,
                )
            if step < self.num_steps:
                run.grad, loss, outputs = self._gradient(view, run.z, run.context)
            else:  # nothing follows the last gradient
                with torch.no_grad():
                    outputs = self._outputs(view, run.z)
                    loss = self.objective.per_sample(outputs, run.context)
            run.remember(loss, succeeded(outputs, run.context, self.objective))
            if step in checks:
                run.reconsider(step - since)
                since = step
            if step in checks or step in _EARLY:
                run = run.without_fooled(found)
                if not len(run.rows):
                    return
        run.report(found)


@dataclass
class _Run:
    """Samples on their way, n of them; every tensor is [n, ...].

    Attributes:
        rows: int64, which samples of the batch they are.
        x_nat: clean images.
        x: the iterate.
        x_prev: the one before it.
        z: the iterate as the network's input.
        grad: gradient at the iterate.
        x_best: the first iterate that fooled the model; until one does, the iterate of
            the highest loss.
        grad_best: gradient there.
        context: of these samples.
        loss: at the last step.
        best: at `x_best`.
        best_before: `best` at the checkpoint before.
        fooled: bool.
        rises: int64, steps since the checkpoint before that raised the loss.
        halved: bool, whether that checkpoint halved the step size.
        step_size: float32, pixel units.
    """

    rows: Tensor
    x_nat: Tensor
    x: Tensor
    x_prev: Tensor
    z: Tensor
    grad: Tensor
    x_best: Tensor
    grad_best: Tensor
    context: Context
    loss: Tensor
    best: Tensor
    best_before: Tensor
    fooled: Tensor
    rises: Tensor
    halved: Tensor
    step_size: Tensor

    @classmethod
    def begin(
        cls,
        rows: Tensor,
        x_nat: Tensor,
        x: Tensor,
        z: Tensor,
        grad: Tensor,
        context: Context,
        loss: Tensor,
        fooled: Tensor,
    ) -> _Run:
        """At the start `x`, which is overwritten as the run goes on."""
        return cls(
            rows=rows,
            x_nat=x_nat,
            x=x,
            x_prev=x.clone(),
            z=z,
            grad=grad,
            x_best=x.clone(),
            grad_best=grad.clone(),
            context=context,
            loss=loss,
            best=loss,
            best_before=loss,
            fooled=fooled,
            rises=torch.zeros_like(rows),
            halved=torch.ones_like(fooled),  # the first checkpoint asks for rises only
            step_size=torch.empty_like(loss),
        )

    def remember(self, loss: Tensor, wrong: Tensor) -> None:
        """Take over the iterate and gradient of the samples that do better now."""
        self.rises += loss > self.loss
        self.loss = loss
        better = ~self.fooled & (wrong | (loss > self.best))
        mask = better.view(-1, 1, 1, 1)
        torch.where(mask, self.x, self.x_best, out=self.x_best)
        torch.where(mask, self.grad, self.grad_best, out=self.grad_best)
        self.best = torch.where(better, loss, self.best)
        self.fooled = self.fooled | wrong

    def reconsider(self, steps: int) -> None:
        """Halve step sizes that are too long, and go on from the best iterate there.

        Source: Croce and Hein 2020, conditions 1 and 2 of section 3. Their code counts
        the first step as a rise if the loss after it is positive; as in the paper, here
        it is one if the loss exceeds that of the start.
        """
        seldom = self.rises <= _RHO * steps
        stuck = ~self.halved & (self.best_before >= self.best)
        self.halved = seldom | stuck
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        mask = self.halved.view(-1, 1, 1, 1)
        torch.where(mask, self.x_best, self.x, out=self.x)
        self.grad = torch.where(mask, self.grad_best, self.grad)
        self.best_before = self.best
        self.rises = torch.zeros_like(self.rises)

    def without_fooled(self, found: AttackResult) -> _Run:
        """What is left when the fooled samples have been reported; the host waits."""
        left = (~self.fooled).nonzero().squeeze(1)
        if len(left) == len(self.rows):
            return self
        _take(self, self.fooled.nonzero().squeeze(1)).report(found)
        return _take(self, left)

    def report(self, found: AttackResult) -> None:
        """Write what is better than before into `found`."""
        better = self.fooled | (self.best > found.loss[self.rows])
        mask = better.view(-1, 1, 1, 1)
        x_adv = torch.where(mask, self.x_best, found.x_adv[self.rows])
        found.x_adv[self.rows] = x_adv
        found.loss[self.rows] = torch.where(better, self.best, found.loss[self.rows])
        found.success[self.rows] = self.fooled


def _take(whole: _Samples, rows: Tensor) -> _Samples:
    """The same dataclass of tensors (or of such dataclasses, or None) for `rows`."""
    parts: dict[str, Any] = {}
    for name in (field.name for field in fields(whole)):
        value = getattr(whole, name)
        if isinstance(value, Tensor):
            parts[name] = value[rows]
        elif value is not None:
            parts[name] = _take(value, rows)
    return replace(whole, **parts)
