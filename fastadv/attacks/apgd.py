"""Auto-PGD (APGD): projected gradient ascent with momentum that adapts its step sizes.

One step is the network's input gradient (see `engine.py`), one fused kernel, and two
masked copies that keep the best iterate and its gradient. At a few checkpoints, each
sample whose loss stopped rising goes back to its best iterate and halves its step size.

The host waits for the device before a run, after steps 3 and 10, and at checkpoints (eight
of them in 100 steps). Samples that are fooled leave the batch there. Between these points
nothing is read from the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from fastadv.attacks.contract import AttackResult
from fastadv.attacks.engine import (
    GradientAttack,
    check_counts,
    check_labels,
    warn_of_probabilities,
)
from fastadv.attacks.objectives import DLR_TARGETED, AnyObjective, Context, succeeded
from fastadv.attacks.selection import take
from fastadv.kernels import apgd_step_
from fastadv.kernels.pixels import to_pixels
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

_MOMENTUM = 0.75  # weight of the new step from the second step on; alpha in the paper
_RHO = 0.75  # share of steps that must raise the loss, or else the step size is halved
# Most samples that are fooled at all are fooled in the first steps, and the first checkpoint
# comes after 22 % of the steps: after these steps, fooled samples leave the batch already.
_EARLY = (3, 10)


def checkpoints(num_steps: int) -> list[int]:
    """Return the numbers of steps after which step sizes are adapted, ascending.

    Source: Croce and Hein 2020, section 3, with the rounding of the authors' code.
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
    """Auto-PGD within a threat model; the number of steps is its only parameter.

    Args:
        threat: Norm and radius, in pixel units.
        num_steps: Gradient steps per run, at least 1.
        objective: `"cross_entropy"` (APGD-CE), `"dlr"` (APGD-DLR), `"dlr_targeted"`
            (APGD-T: one run for each of the highest wrong classes), or any objective
            on the logits.
        num_restarts: Number of runs from different random starts; for the targeted
            objective, per target class. Only samples that are not yet fooled are
            attacked again.
        num_targets: Number of wrong classes that `"dlr_targeted"` aims at, from the
            highest clean logit down; at most one less than there are classes.
        seed: Seed of the random starts; the same seed gives the same result.
        dtype: Compute dtype of the network; None keeps the model's.

    Raises:
        ValueError: A number is out of range, or the objective is on the embedding.

    Example:
        >>> attack = APGD(ThreatModel("linf", "8/255"), objective="dlr_targeted")
        >>> robust_acc = 1 - attack(model, images, labels).success.float().mean()

    Source:
        Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an
        ensemble of diverse parameter-free attacks", algorithm 1.
    """

    name = "apgd"
    _described = ("num_steps", "num_targets")

    def __init__(
        self,
        threat: ThreatModel,
        num_steps: int = 100,
        objective: AnyObjective = "cross_entropy",
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

    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, offset: int, active: Tensor | None
    ) -> AttackResult:
        """Attack the images that are classified correctly.

        The others keep their clean image. A fooled image is the first iterate that
        fools, any other the iterate with the highest loss over all runs.
        """
        view, x_nat, context = self._begin(model, x, y)
        with torch.no_grad():
            logits = self._outputs(view, view.normalize(x_nat))
            check_labels(y, logits.shape[1])
            warn_of_probabilities(view, logits)
            targets = self._targets(logits, y)
            first = replace(context, targets=targets[0])
            loss = self.objective.losses(logits, first).float()
            wrong = succeeded(logits, context, self.objective)
        todo = ~wrong if active is None else ~wrong & active
        found = AttackResult(
            x_adv=to_pixels(x_nat, torch.float32).clone(),
            success=wrong,
            loss=loss.masked_fill(todo, float("-inf")),
            nonfinite=torch.zeros(1, dtype=torch.int64, device=x.device),
        )
        passes = len(x)
        runs = [target for target in targets for _ in range(self.num_restarts)]
        for number, target in enumerate(runs):
            # The host waits for the device here.
            rows = (todo & ~found.success).nonzero().squeeze(1)
            if not len(rows):
                break
            start = self._start(x_nat, self.seed, number, offset)
            aim = take(replace(context, targets=target), rows)
            passes += self._run(view, rows, x_nat[rows], start[rows], aim, found)
        return replace(found, passes=passes)

    def _targets(self, logits: Tensor, labels: Tensor) -> list[Tensor | None]:
        """Return the wrong classes [N] that each run aims at, likeliest first, or None."""
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
    ) -> int:
        """Attack the samples `rows` of the batch once, and update `found` in place.

        Returns:
            The number of images that passed through the network.
        """
        mean, std = view.statistics(start.shape[1])
        forward = partial(self._forward, view)
        z = view.normalize(start)
        grad, loss, outputs = self._gradient(forward, z, context)
        run = _Run(
            rows=rows,
            x_nat=x_nat,
            x=start,
            x_prev=start.clone(),
            z=z,
            grad=grad,
            x_best=start.clone(),
            grad_best=grad.clone(),
            context=context,
            loss=loss,
            best=loss,
            best_before=loss,
            fooled=succeeded(outputs, context, self.objective),
            rises=torch.zeros_like(rows),
            # True, so that the first checkpoint looks at the number of rises only.
            halved=torch.ones_like(rows, dtype=torch.bool),
            step_size=torch.full_like(loss, 2 * self.threat.eps),
        )
        radius = torch.full_like(run.step_size, self.threat.eps)
        checks = checkpoints(self.num_steps)
        since, passes = 0, len(rows)
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
                run.grad, loss, outputs = self._gradient(forward, run.z, run.context)
            else:  # no step follows, so no gradient is needed
                with torch.no_grad():
                    outputs = self._outputs(view, run.z)
                    loss = self.objective.losses(outputs, run.context)
            passes += len(run.rows)
            run.remember(loss, succeeded(outputs, run.context, self.objective))
            if step in checks:
                run.reconsider(step - since)
                since = step
            if step in checks or step in _EARLY:
                run = run.without_fooled(found)
                if not len(run.rows):
                    return passes
        run.report(found)
        return passes


@dataclass
class _Run:
    """State of a run on n samples; the first dimension of every tensor is n."""

    rows: Tensor  # position of each sample in the batch, int64
    x_nat: Tensor
    x: Tensor  # current iterate
    x_prev: Tensor
    z: Tensor  # current iterate as the network's input
    grad: Tensor  # gradient at the current iterate
    x_best: Tensor  # first iterate that fooled the model, or else that of highest loss
    grad_best: Tensor  # gradient at `x_best`
    context: Context
    loss: Tensor  # at the last step
    best: Tensor  # loss at `x_best`
    best_before: Tensor  # value of `best` at the previous checkpoint
    fooled: Tensor  # whether an iterate fooled the model, bool
    rises: Tensor  # number of steps since the checkpoint that raised the loss, int64
    halved: Tensor  # whether the previous checkpoint halved the step size, bool
    step_size: Tensor  # in pixel units, float32

    def remember(self, loss: Tensor, wrong: Tensor) -> None:
        """Keep the iterate and gradient of the samples that do better now."""
        self.rises += loss > self.loss
        self.loss = loss
        better = ~self.fooled & (wrong | (loss > self.best))
        mask = better.view(-1, 1, 1, 1)
        torch.where(mask, self.x, self.x_best, out=self.x_best)
        torch.where(mask, self.grad, self.grad_best, out=self.grad_best)
        self.best = torch.where(better, loss, self.best)
        self.fooled = self.fooled | wrong

    def reconsider(self, steps: int) -> None:
        """Halve step sizes that are too long, and continue there from the best iterate.

        Source: Croce and Hein 2020, conditions 1 and 2 of section 3. As in the paper,
        the first step counts as a rise if the loss after it exceeds that of the start;
        in the authors' code, if the loss after it is positive.
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
        """Report the fooled samples and return the rest; the host waits for the device."""
        left = (~self.fooled).nonzero().squeeze(1)
        if len(left) == len(self.rows):
            return self
        take(self, self.fooled.nonzero().squeeze(1)).report(found)
        return take(self, left)

    def report(self, found: AttackResult) -> None:
        """Write every sample that does better than before into `found`."""
        better = self.fooled | (self.best > found.loss[self.rows])
        mask = better.view(-1, 1, 1, 1)
        x_adv = torch.where(mask, self.x_best, found.x_adv[self.rows])
        found.x_adv[self.rows] = x_adv
        found.loss[self.rows] = torch.where(better, self.best, found.loss[self.rows])
        found.success[self.rows] = self.fooled
