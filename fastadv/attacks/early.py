"""PGD on images that leave the batch as soon as their verdict is certain.

An image leaves when an iterate fools the network, and when its iterate is the same as at
an earlier step: steps of one length in the directions of signs are deterministic, so that
the attack would only repeat itself. Verdicts are those of the whole run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastadv.attacks.contract import AttackResult
from fastadv.attacks.objectives import Context
from fastadv.attacks.selection import take
from fastadv.kernels import normalize, pgd_step_
from fastadv.kernels.arguments import per_sample
from fastadv.kernels.pixels import to_pixels
from fastadv.models.view import AttackView
from fastadv.phases import phase

if TYPE_CHECKING:
    from fastadv.attacks.pgd import PGD

# Off the CPU, the host waits for the device where it asks who has left.
_EARLY_LOOKS = (1, 3)
_LOOK_EVERY = 10
# Steps between two iterates that later ones are compared with; they become more, so that
# cycles of any length are found.
_LEAST_GAP = 8
_ROUNDING = 1e-4  # of outputs, as a share of the largest


@dataclass
class _Run:
    """State of a run on n images; the first dimension of every tensor is n."""

    rows: Tensor  # position of each image in the batch, int64
    x_nat: Tensor
    x: Tensor  # current iterate
    z: Tensor  # current iterate as the network's input
    step_size: Tensor
    eps: Tensor
    context: Context
    best: Tensor  # first iterate that fooled the network, or else that of highest loss
    best_loss: Tensor
    fooled: Tensor  # bool
    kept: Tensor  # an earlier iterate, with which later ones are compared
    kept_outputs: Tensor  # of the network at `kept`, [n, K]
    repeats: Tensor  # whether the iterate came back to `kept`, bool

    def judge(self, verdict: AttackResult) -> None:
        """Remember the current iterate where it is the worst so far."""
        better = ~self.fooled & (verdict.success | (verdict.loss > self.best_loss))
        self.best = torch.where(better.view(-1, 1, 1, 1), self.x, self.best)
        self.best_loss = torch.where(better, verdict.loss, self.best_loss)
        self.fooled = self.fooled | verdict.success

    def compare(self, outputs: Tensor) -> None:
        """Find images whose iterate is the kept one again.

        Equal images have equal outputs, up to the rounding of batches of other sizes,
        unless the network is random; then nothing repeats.
        """
        same = (self.x == self.kept).flatten(1).all(1)
        far = (outputs - self.kept_outputs).abs().amax(1)
        steady = far <= _ROUNDING * outputs.abs().amax(1)
        self.repeats = self.repeats | (same & steady)

    def keep(self, outputs: Tensor) -> None:
        """Compare later iterates with the current one."""
        self.kept, self.kept_outputs = self.x.clone(), outputs

    def report(self, found: AttackResult) -> None:
        """Write every image that does better than in runs before into `found`."""
        rows = self.rows
        better = self.fooled | (self.best_loss > found.loss[rows])
        mask = better.view(-1, 1, 1, 1)
        found.x_adv[rows] = torch.where(mask, self.best, found.x_adv[rows])
        found.loss[rows] = torch.where(better, self.best_loss, found.loss[rows])
        found.success[rows] = self.fooled


def attack_until_certain(
    attack: PGD,
    view: AttackView,
    x_nat: Tensor,
    context: Context,
    begin: Callable[[int], Tensor],
    *,
    share: Tensor | None,
    active: Tensor | None,
) -> AttackResult:
    """Run an attack on N images, each only until its verdict is certain.

    Args:
        attack: The attack, which keeps the best iterate.
        view: The network, in evaluation mode.
        x_nat: Clean images, uint8 or float32 [N, C, H, W].
        context: Labels of the images, and what the objective needs else.
        begin: Returns the first iterate of all images, float32, by the number of the
            restart.
        share: Radius of each image as a share of that of the attack [N]; None: all of it.
        active: Images to attack, bool [N]; None means all. The others keep their clean
            image and count as not fooled.

    Returns:
        The result: the first iterate of an image that fools the network, or else the one
        of the highest loss. An image that was fooled is not attacked again.
    """
    everything = torch.ones(len(x_nat), dtype=torch.bool, device=x_nat.device)
    wanted = everything if active is None else active
    found = AttackResult(
        x_adv=to_pixels(x_nat, torch.float32).clone(),
        success=torch.zeros_like(wanted),
        loss=torch.full(wanted.shape, -torch.inf, device=x_nat.device),
        nonfinite=torch.zeros(1, dtype=torch.int64, device=x_nat.device),
    )
    passes = 0
    for restart in range(attack.num_restarts):
        # The host waits for the device here.
        rows = (wanted & ~found.success).nonzero().squeeze(1)
        if not len(rows):
            break
        # All images draw their starts, so that each draws the one of a whole run.
        run = _begun(attack, view, x_nat, context, begin(restart), share, rows)
        passes += _finish(attack, view, run, found)
    loss = found.loss.where(wanted, 0.0)
    return replace(found, loss=loss, passes=passes)


def _begun(
    attack: PGD,
    view: AttackView,
    x_nat: Tensor,
    context: Context,
    start: Tensor,
    share: Tensor | None,
    rows: Tensor,
) -> _Run:
    mean, std = view.statistics(start.shape[1])
    radii = {
        name: per_sample(name, value, start) if share is None else value * share
        for name, value in (("step_size", attack.step_size), ("eps", attack.threat.eps))
    }
    nothing = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    lowest = torch.full(nothing.shape, -torch.inf, device=start.device)
    whole = _Run(
        rows=torch.arange(len(start), device=start.device),
        x_nat=x_nat,
        x=start,
        z=normalize(start, mean=mean, std=std, dtype=view.input_dtype),
        **radii,
        context=context,
        best=start,
        best_loss=lowest,
        fooled=nothing,
        kept=start,
        kept_outputs=lowest[:, None],
        repeats=nothing,
    )
    return take(whole, rows)


def _finish(attack: PGD, view: AttackView, run: _Run, found: AttackResult) -> int:
    """Run all steps, write what they find into `found`, and return the passes."""
    mean, std = view.statistics(run.x.shape[1])
    forward = partial(attack._forward, view)
    cycles = attack.threat.norm == "linf"
    kept_at, passes = 0, 0
    each = 2 if attack.objective.outputs == "features" else 1
    for number in range(attack.num_steps + 1):
        passes += each * len(run.rows)
        if number == attack.num_steps:  # no step follows, so no gradient is needed
            run.judge(attack._judge(view, run.x, run.z, run.context, found.nonfinite))
            break
        grad, loss, outputs = attack._gradient(forward, run.z, run.context)
        run.judge(
            attack._judge(
                view, run.x, run.z, run.context, found.nonfinite, outputs, loss
            )
        )
        if cycles:
            if number > kept_at:
                run.compare(outputs)
            if number == 0 or number - kept_at >= max(_LEAST_GAP, number // 4):
                run.keep(outputs)
                kept_at = number
        if _looks(run.x.device, number):
            left = (~(run.fooled | run.repeats)).nonzero().squeeze(1)
            if len(left) < len(run.rows):
                gone = (run.fooled | run.repeats).nonzero().squeeze(1)
                take(run, gone).report(found)
                run, grad = take(run, left), grad[left]
            if not len(run.rows):
                return passes
        with torch.no_grad(), phase("fused step"):
            pgd_step_(
                run.x,
                run.x_nat,
                grad,
                norm=attack.threat.norm,
                step_size=run.step_size,
                eps=run.eps,
                mean=mean,
                std=std,
                z=run.z,
                nonfinite=found.nonfinite,
            )
    run.report(found)
    return passes


def _looks(device: torch.device, step: int) -> bool:
    return device.type == "cpu" or step in _EARLY_LOOKS or step % _LOOK_EVERY == 0
