"""Projected gradient descent on the fused kernels: how an objective is maximised.

One attack step is the network's input gradient (see `engine.py`) and one fused kernel.
The loop never waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from fastadv.attacks.compiled import CompileMode, CompileReport, Runner
from fastadv.attacks.engine import (
    AttackResult,
    GradientAttack,
    check_counts,
    worse_of,
)
from fastadv.attacks.objectives import Context, Objective
from fastadv.kernels import normalize, pgd_step_
from fastadv.kernels.arguments import memory_order, per_sample
from fastadv.kernels.registry import forced_backend
from fastadv.models.view import AttackView
from fastadv.phases import phase
from fastadv.threat import ThreatModel


class PGD(GradientAttack):
    """Projected gradient ascent within a threat model.

    Args:
        threat: norm and radius, pixel units.
        num_steps: gradient steps per restart, >= 1.
        step_size: length of a step in pixel units; None means 2/3 of eps (Salman et
            al. 2020 with three steps), but never so short that the steps together
            could not cross the ball: 2 eps for one step, eps for two.
        random_start: begin at a random point of the ball instead of the clean image.
        start_eps: radius of that random point, pixel units; None means that of `threat`.
        num_restarts: independent runs, the worst kept per sample; more than one needs
            `random_start`.
        objective: a name in `OBJECTIVES`, or an `Objective`.
        keep: `"last"` iterate, or the `"best"` over all iterates (one more forward per
            attack; success first, then loss).
        seed: of the random starts; the same seed gives the same result.
        bn_mode: BatchNorm in `"eval"` (default) or `"train"` mode while attacking.
        dtype: compute dtype of the network; None keeps the model's.
        compile: how the steps are run, for an `AttackView` that is attacked again and
            again: `"off"`, one by one; `"inductor"`, with the network compiled by
            `torch.compile`; `"graph"`, recorded as one CUDA graph (which keeps the
            memory of a batch); `"full"`, both; `"auto"`, a graph on CUDA, else off.
            Where that cannot be had, steps run one by one and the reason is logged
            once; see `compile_report`.

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
        compile: CompileMode = "auto",
        start_eps: float | None = None,
    ) -> None:
        check_counts(num_steps=num_steps, num_restarts=num_restarts)
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
        if start_eps is not None and not 0 <= start_eps <= threat.eps:
            raise ValueError(
                f"start_eps={start_eps} must lie within the ball, in [0, {threat.eps}]"
            )
        super().__init__(
            threat,
            objective,
            num_restarts=num_restarts,
            random_start=random_start,
            seed=seed,
            bn_mode=bn_mode,
            dtype=dtype,
            start_eps=start_eps,
        )
        self.num_steps = num_steps
        self.step_size = float(step_size)
        self.keep = keep
        self._runner = Runner(compile)

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
        view = self.prepare(model)
        self._check(view, x, y)
        layout = memory_order(x) or torch.contiguous_format
        x_nat = x.detach().contiguous(memory_format=torch.channels_last)
        context = self._context(view, x_nat, y)
        nonfinite = torch.zeros(1, dtype=torch.int64, device=x.device)
        best: AttackResult | None = None
        for restart in range(self.num_restarts):
            start = self._start(x_nat, self.seed, restart, offset)
            found = AttackResult(
                *self._run(model, view, x_nat, start, context, nonfinite)
            )
            best = found if best is None else worse_of(best, found)
        if best is None:
            raise AssertionError("an attack has at least one restart")
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

        What training wants: `num_steps` input gradients and not one forward more. Here,
        for an objective that takes them, `y` may also be class probabilities, float32
        [N, K]: of mixed images, or smoothed.

        Returns:
            (x_adv float32 [N, C, H, W] in [0, 1], z float32, both channels_last).
        """
        view = self.prepare(model)
        self._check(view, x, y, values=False, soft=True)
        x_nat = x.detach().contiguous(memory_format=torch.channels_last)
        context = self._context(view, x_nat, y)
        start = self._start(x_nat, self.seed if seed is None else seed, 0, offset)
        x_adv, z = self._run(model, view, x_nat, start, context, None)
        return x_adv, z

    def compile_report(self) -> CompileReport:
        """How the batches so far were run, and how often that was compiled for."""
        return self._runner.report()

    def scaled(self, factor: float) -> PGD:
        """The same attack with radius, step and random start times `factor`."""
        if factor == 1:
            return self
        attack = PGD(
            ThreatModel(self.threat.norm, self.threat.eps * factor),
            self.num_steps,
            self.step_size * factor,
            self.random_start,
            self.num_restarts,
            self.objective,
            self.keep,
            seed=self.seed,
            bn_mode=self.bn_mode,
            dtype=self.dtype,
            compile=self._runner.mode,
            start_eps=self.start_eps * factor,
        )
        attack._runner = self._runner  # the network is compiled once for every radius
        return attack

    # ---- parts ----

    def _run(
        self,
        model: nn.Module,
        view: AttackView,
        x_nat: Tensor,
        start: Tensor,
        context: Context,
        nonfinite: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """What `_steps` finds, run as `compile` says."""
        mean, std = view.statistics(start.shape[1])

        def steps(
            x_nat: Tensor,
            x: Tensor,
            labels: Tensor,
            clean: Tensor | None,
            mean: Tensor,
            std: Tensor,
            nonfinite: Tensor | None,
        ) -> tuple[Tensor, ...]:
            context = Context(labels, clean)
            return self._steps(view, x_nat, x, context, mean, std, nonfinite)

        return self._runner.run(
            view,
            steps,
            (x_nat, start, context.labels, context.clean, mean, std, nonfinite),
            reused=view is model,
            constants=(
                self.threat,
                self.num_steps,
                self.step_size,
                self.objective,
                self.keep,
                forced_backend(),
            ),
        )

    def _steps(
        self,
        view: AttackView,
        x_nat: Tensor,
        x: Tensor,
        context: Context,
        mean: Tensor,
        std: Tensor,
        nonfinite: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """All steps from the iterate `x`, overwritten: a function of tensors, to record.

        Returns:
            With a counter `nonfinite`, the fields of the `AttackResult` of the iterate
            that `keep` chooses; without, the last iterate and its normalised image.
        """
        z = normalize(x, mean=mean, std=std, dtype=view.dtype)
        step = partial(
            pgd_step_,
            x,
            x_nat,
            norm=self.threat.norm,
            step_size=per_sample("step_size", self.step_size, x),
            eps=per_sample("eps", self.threat.eps, x),
            mean=mean,
            std=std,
            z=z,
            nonfinite=nonfinite,
        )
        best: AttackResult | None = None
        for _ in range(self.num_steps):
            grad, loss, outputs = self._gradient(view, z, context)
            if nonfinite is not None and self.keep == "best":
                found = self._judge(
                    view, x.clone(), z, context, nonfinite, outputs, loss
                )
                best = found if best is None else worse_of(best, found)
            with phase("fused step"):
                step(grad)
        if nonfinite is None:
            return x, z
        last = self._judge(view, x, z, context, nonfinite)
        best = last if best is None else worse_of(best, last)
        return best.x_adv, best.success, best.loss, best.nonfinite

    def _forward(
        self, view: AttackView, z: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        eager = partial(super()._forward, view)
        return self._runner.forward(view, eager, z, context)
