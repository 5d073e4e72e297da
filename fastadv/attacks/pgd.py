"""Projected gradient descent on the fused kernels: how an objective is maximised.

One attack step is the network's input gradient and one fused kernel. The gradient is
taken at the normalised input, in the frozen and folded `AttackView`, so no weight
gradient is ever computed and nothing of the model changes. The loop never waits for the
device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fastadv.attacks.objectives import Context, Objective, get_objective, succeeded
from fastadv.kernels import ball_init, normalize, pgd_step_
from fastadv.kernels.ops import memory_order
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

_MASK64 = 2**64 - 1
# Where a random start is needed although none was asked for (see `zero_at_clean`), this
# share of eps is used: far enough for a gradient, too near to change the result.
_NUDGE = 0.01


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    Attributes:
        x_adv: float32 [N, C, H, W] in [0, 1], within eps of the clean images.
        success: bool [N]; for a targeted objective, the target is predicted.
        loss: float32 [N], the objective at `x_adv`.
        nonfinite: int64 [1], gradient elements that were not finite and moved nothing,
            over all steps and restarts. Where it is not zero the attack is weaker than
            it looks.
    """

    x_adv: Tensor
    success: Tensor
    loss: Tensor
    nonfinite: Tensor


class PGD:
    """Projected gradient ascent within a threat model.

    Args:
        threat: norm and radius, pixel units.
        num_steps: gradient steps per restart, >= 1.
        step_size: length of a step in pixel units; None means 2/3 of eps (Salman et
            al. 2020 with three steps), but never so short that the steps together
            could not cross the ball: 2 eps for one step, eps for two.
        random_start: begin at a random point of the ball instead of the clean image.
        num_restarts: independent runs, the worst kept per sample; more than one needs
            `random_start`.
        objective: a name in `OBJECTIVES`, or an `Objective`.
        keep: `"last"` iterate, or the `"best"` over all iterates (one more forward per
            attack; success first, then loss).
        seed: of the random starts; the same seed gives the same result.
        bn_mode: BatchNorm in `"eval"` (default) or `"train"` mode while attacking.
        dtype: compute dtype of the network; None keeps the model's.

    Raises:
        ValueError: a number out of range, or restarts without a random start.

    Example:
        >>> attack = PGD(ThreatModel("linf", "8/255"), num_steps=10, random_start=True)
        >>> result = attack(model, images, labels)
        >>> robust_acc = 1 - result.success.float().mean()

    Source:
        Madry et al. 2018; defaults of Salman et al. 2020.
    """

    def __init__(
        self,
        threat: ThreatModel,
        num_steps: int = 3,
        step_size: float | None = None,
        random_start: bool = False,
        num_restarts: int = 1,
        objective: str | Objective = "cross_entropy",
        keep: Literal["last", "best"] = "last",
        *,
        seed: int = 0,
        bn_mode: Literal["eval", "train"] = "eval",
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("num_steps", num_steps), ("num_restarts", num_restarts)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if num_restarts > 1 and not random_start:
            raise ValueError(
                f"num_restarts={num_restarts} without random_start would repeat the "
                "same attack; add random_start=True"
            )
        if keep not in ("last", "best"):
            raise ValueError(f"keep={keep!r} is unknown; accepted: last, best")
        if step_size is None:
            step_size = threat.eps * 2 / min(num_steps, 3)
        if not (math.isfinite(step_size) and step_size >= 0):
            raise ValueError(f"step_size={step_size} must be a finite number >= 0")
        self.threat = threat
        self.num_steps = num_steps
        self.step_size = float(step_size)
        self.random_start = random_start
        self.num_restarts = num_restarts
        self.objective = get_objective(objective)
        self.keep = keep
        self.seed = seed
        self.bn_mode: Literal["eval", "train"] = bn_mode
        self.dtype = dtype

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, offset: int = 0
    ) -> AttackResult:
        """Attack a batch and judge the result with one more forward pass.

        Args:
            model: an `AttackView` (reused, and expected to be refreshed), a
                `NormalizedModel`, or any module that takes [0, 1] images.
            x: clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
            y: int64 [N], true classes (targets for the targeted objective).
            offset: number of the first sample in the random sequence, so that batches
                (or ranks) of one data set draw different starts.

        Raises:
            ValueError: images outside [0, 1], or shapes that do not fit.
        """
        view = self._view(model)
        self._check(x, y)
        layout = memory_order(x) or torch.contiguous_format
        x_nat = x.detach().contiguous(memory_format=torch.channels_last)
        context = self._context(view, x_nat, y)
        nonfinite = torch.zeros(1, dtype=torch.int64, device=x.device)
        best: AttackResult | None = None
        for restart in range(self.num_restarts):
            start = self._start(x_nat, self.seed, restart, offset)
            for found in self._run(view, x_nat, start, context, nonfinite):
                best = found if best is None else _worse_of(best, found)
        if best is None:
            raise AssertionError("an attack of at least one step yields an iterate")
        x_adv = best.x_adv.contiguous(memory_format=layout)
        return replace(best, x_adv=x_adv)

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int | None = None,
        offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """The last iterate, and the same normalised for the network; nothing is judged.

        What training wants: `num_steps` input gradients and not one forward more.

        Returns:
            (x_adv float32 [N, C, H, W] in [0, 1], z float32, both channels_last).
        """
        view = self._view(model)
        x_nat = x.detach().contiguous(memory_format=torch.channels_last)
        context = self._context(view, x_nat, y)
        start = self._start(x_nat, self.seed if seed is None else seed, 0, offset)
        z = self._normalized(view, start)
        for _ in range(self.num_steps):
            grad, _, _ = self._gradient(view, z, context)
            self._step(view, x_nat, start, z, grad)
        return start, z

    # ---- parts ----

    def _view(self, model: nn.Module) -> AttackView:
        if isinstance(model, AttackView):
            wanted = self.dtype or model.dtype
            if (model.mode, model.dtype) != (self.bn_mode, wanted):
                raise ValueError(
                    f"the view has mode {model.mode!r} and {model.dtype}, the attack "
                    f"wants {self.bn_mode!r} and {wanted}; give the view the same mode "
                    "and dtype, or give the attack the model"
                )
            return model
        return AttackView(model, mode=self.bn_mode, dtype=self.dtype)

    @staticmethod
    def _check(x: Tensor, y: Tensor) -> None:
        if x.dim() != 4 or y.shape != (x.shape[0],):
            raise ValueError(
                f"x has shape {list(x.shape)} and y {list(y.shape)}; expected "
                "[N, C, H, W] and [N]"
            )
        if x.is_floating_point() and x.numel():
            low, high = (v.item() for v in torch.aminmax(x))
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"x has values in [{low:.3g}, {high:.3g}]; attacks need images in "
                    "[0, 1]. Remove Normalize from the transform and give mean/std to "
                    "NormalizedModel."
                )

    def _outputs(self, view: AttackView, z: Tensor) -> Tensor:
        return view.features(z) if self.objective.outputs == "features" else view(z)

    @torch.no_grad()
    def _context(self, view: AttackView, x_nat: Tensor, y: Tensor) -> Context:
        if not self.objective.needs_clean:
            return Context(y)
        return Context(y, self._outputs(view, self._normalized(view, x_nat)))

    @staticmethod
    def _normalized(view: AttackView, x: Tensor) -> Tensor:
        mean, std = view.statistics(x.shape[1])
        z: Tensor = normalize(x, mean=mean, std=std, dtype=view.dtype)
        return z

    def _start(self, x_nat: Tensor, seed: int, restart: int, offset: int) -> Tensor:
        eps = self.threat.eps
        if not self.random_start:
            if not self.objective.zero_at_clean:
                if x_nat.dtype == torch.uint8:
                    return x_nat.to(torch.float32).div_(255)
                return x_nat.to(torch.float32, copy=True)
            eps *= _NUDGE
        # Golden-ratio increments: restarts of one seed are far apart in the key space.
        key = (seed + restart * 0x9E3779B97F4A7C15) & _MASK64
        start: Tensor = ball_init(
            x_nat, norm=self.threat.norm, eps=eps, seed=key, offset=offset
        )
        return start

    def _gradient(
        self, view: AttackView, z: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Input gradient [N, C, H, W] at `z`, per-sample loss [N], and the outputs."""
        with torch.enable_grad():
            outputs = self._outputs(view, z.requires_grad_())
            loss = self.objective.per_sample(outputs, context)
            (grad,) = torch.autograd.grad(loss.sum(), z)
        z.requires_grad_(False)
        return grad, loss.detach(), outputs.detach()

    def _step(
        self,
        view: AttackView,
        x_nat: Tensor,
        x: Tensor,
        z: Tensor,
        grad: Tensor,
        nonfinite: Tensor | None = None,
    ) -> None:
        """Overwrite the iterate `x` and its normalised image `z`, in one kernel."""
        mean, std = view.statistics(x.shape[1])
        with torch.no_grad():
            pgd_step_(
                x,
                x_nat,
                grad,
                norm=self.threat.norm,
                step_size=self.step_size,
                eps=self.threat.eps,
                mean=mean,
                std=std,
                z=z,
                nonfinite=nonfinite,
            )

    def _run(
        self,
        view: AttackView,
        x_nat: Tensor,
        x: Tensor,
        context: Context,
        nonfinite: Tensor,
    ) -> Iterator[AttackResult]:
        """Yield the judged iterates from `x` that `keep` lets compete: the last, or all."""
        z = self._normalized(view, x)
        for _ in range(self.num_steps):
            grad, loss, outputs = self._gradient(view, z, context)
            if self.keep == "best":
                yield self._judge(view, x.clone(), z, context, nonfinite, outputs, loss)
            self._step(view, x_nat, x, z, grad, nonfinite)
        yield self._judge(view, x, z, context, nonfinite)

    @torch.no_grad()
    def _judge(
        self,
        view: AttackView,
        x: Tensor,
        z: Tensor,
        context: Context,
        nonfinite: Tensor,
        outputs: Tensor | None = None,
        loss: Tensor | None = None,
    ) -> AttackResult:
        if outputs is None:
            outputs = self._outputs(view, z)
        if loss is None:
            loss = self.objective.per_sample(outputs, context)
        logits = view(z) if self.objective.outputs == "features" else outputs
        success = succeeded(logits, context, self.objective)
        return AttackResult(x, success, loss.float(), nonfinite)


def _worse_of(a: AttackResult, b: AttackResult) -> AttackResult:
    """Per sample, the one that succeeded; if both or neither did, the higher loss."""
    take = (b.success & ~a.success) | ((b.success == a.success) & (b.loss > a.loss))
    x_adv = torch.where(take.view(-1, 1, 1, 1), b.x_adv, a.x_adv)
    return AttackResult(
        x_adv,
        torch.where(take, b.success, a.success),
        torch.where(take, b.loss, a.loss),
        b.nonfinite,
    )
