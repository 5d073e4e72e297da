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
# Iterates hardly ever come back earlier.
_FIRST_COMPARED = 6
_ROUNDING = 1e-4  # of outputs, as a share of the largest
_SEED = 0x5EED


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
    hashes: Tensor  # of the iterates so far, int64 [n, steps]
    extremes: Tensor  # least and largest output at each of them, float32 [n, steps, 2]
    repeats: Tensor  # whether an iterate came back, bool

    def judge(self, verdict: AttackResult) -> None:
        """Remember the current iterate where it is the worst so far."""
        better = ~self.fooled & (verdict.success | (verdict.loss > self.best_loss))
        self.best = torch.where(better.view(-1, 1, 1, 1), self.x, self.best)
        self.best_loss = torch.where(better, verdict.loss, self.best_loss)
        self.fooled = self.fooled | verdict.success

    def compare(self, hashed: Tensor, outputs: Tensor) -> None:
        """Find images whose iterate is one of the earlier ones again.

        Equal images have equal outputs, up to the rounding of batches of other sizes,
        unless the network is random; then nothing repeats.

        Args:
            hashed: Hash of each iterate, int64 [n].
            outputs: Outputs of the network at the iterates, [n, K].
        """
        ends = torch.stack(torch.aminmax(outputs.float(), dim=1), dim=1)
        far = (self.extremes - ends[:, None]).abs().amax(2)
        steady = far <= _ROUNDING * ends.abs().amax(1, keepdim=True)
        same = (self.hashes == hashed[:, None]) & steady
        self.repeats = self.repeats | same.any(1)
        self.hashes = torch.cat([self.hashes, hashed[:, None]], dim=1)
        self.extremes = torch.cat([self.extremes, ends[:, None]], dim=1)

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
        hashes=torch.empty(len(start), 0, dtype=torch.int64, device=start.device),
        extremes=lowest.new_empty(len(start), 0, 2),
        repeats=nothing,
    )
    return take(whole, rows)


def _finish(attack: PGD, view: AttackView, run: _Run, found: AttackResult) -> int:
    """Run all steps, write what they find into `found`, and return the passes."""
    mean, std = view.statistics(run.x.shape[1])
    forward = partial(attack._forward, view)
    factors = None
    if attack.threat.norm == "linf" and attack.num_steps > _FIRST_COMPARED:
        draw = torch.Generator().manual_seed(_SEED)
        shape = run.x[0].permute(1, 2, 0).shape
        factors = torch.randint(-(2**62), 2**62, shape, generator=draw)
        factors = factors.to(run.x.device)
    passes = 0
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
        if factors is not None and number >= _FIRST_COMPARED:
            run.compare(_hash(run.x, factors), outputs)
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


def _hash(x: Tensor, factors: Tensor) -> Tensor:
    """Return a sum modulo 2^64 of the bits of each image times random factors, [n].

    Two images have the same one with a probability of about 2^-62.
    """
    bits = x.permute(0, 2, 3, 1).contiguous().view(torch.int32).long()
    return (bits * (2 * factors + 1)).flatten(1).sum(1)


def _looks(device: torch.device, step: int) -> bool:
    return device.type == "cpu" or step in _EARLY_LOOKS or step % _LOOK_EVERY == 0
