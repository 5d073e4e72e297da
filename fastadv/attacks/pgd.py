"""Projected gradient descent (PGD) on the fused kernels.

One attack step is the network's input gradient (see `engine.py`) and one fused kernel.
The loop over the steps never waits for the device.
"""

from __future__ import annotations

import copy
import math
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastadv.attacks.compiled import CompileMode, CompileReport, Inputs, Runner
from fastadv.attacks.contract import AttackResult
from fastadv.attacks.engine import Forward, GradientAttack, check_counts, worse_of
from fastadv.attacks.objectives import Context, Objective
from fastadv.kernels import normalize, pgd_step_
from fastadv.kernels.arguments import per_sample
from fastadv.kernels.registry import forced_backend
from fastadv.models.view import AttackView
from fastadv.phases import phase
from fastadv.threat import ThreatModel


class _Inputs(NamedTuple):
    """Everything the steps of an attack read that changes between batches."""

    x_nat: Tensor  # clean images [N, C, H, W]
    x: Tensor  # iterate, which the steps overwrite
    labels: Tensor  # [N], or class probabilities [N, K]
    clean: Tensor | None  # outputs of the clean images, where the objective needs them
    mean: Tensor  # of the network's normalisation [C]
    std: Tensor  # of the network's normalisation [C]
    nonfinite: Tensor | None  # counter, int64 [1]; without it nothing is judged


class PGD(GradientAttack):
    """Projected gradient ascent on an objective within a threat model.

    Args:
        threat: Norm and radius, in pixel units.
        num_steps: Gradient steps per restart, at least 1.
        step_size: Length of a step in pixel units. None means 2/3 of eps (Salman et al.
            2020 with three steps), but never so short that all steps together could not
            cross the ball: 2 eps for one step, eps for two.
        random_start: Begin at a random point of the ball instead of the clean image.
        num_restarts: Number of independent runs, of which the worst is kept per sample;
            more than one needs `random_start`.
        objective: A name in `OBJECTIVES`, or an `Objective`.
        keep: Whether the `"last"` iterate is returned or the `"best"` of all iterates
            (success first, then loss), which costs one more forward pass per attack.
        seed: Seed of the random starts; the same seed gives the same result.
        bn_mode: Mode of BatchNorm while attacking, `"eval"` (default) or `"train"`.
        dtype: Compute dtype of the network; None keeps the model's.
        compile: How the steps are run, for an `AttackView` that is attacked again and
            again; see `CompileMode`. Where that is not available, steps run one by one
            and the reason is logged once; see `compile_report`.
        start_eps: Radius of the random start in pixel units; None means eps.

    Raises:
        ValueError: A number is out of range, or restarts come without a random start.

    Example:
        >>> attack = PGD(ThreatModel("linf", "8/255"), num_steps=10, random_start=True)
        >>> result = attack(model, images, labels)
        >>> robust_acc = 1 - result.success.float().mean()

    Source:
        Madry et al. 2018, with the defaults of Salman et al. 2020.
    """

    name = "pgd"

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
        )
        if start_eps is not None:
            self.start_eps = start_eps
        self.num_steps = num_steps
        self.step_size = float(step_size)
        self.keep = keep
        self._runner = Runner(compile)

    @classmethod
    def judge(cls, threat: ThreatModel, num_steps: int, **options: Any) -> PGD:
        """Return the attack that measures robust accuracy.

        It starts at a random point, keeps the best iterate, and takes steps of 2.5 eps /
        num_steps, which cross the ball from anywhere (Madry et al. 2018).

        Args:
            threat: Norm and radius, in pixel units.
            num_steps: Gradient steps per restart, at least 1.
            options: Other arguments of `PGD`, which also replace these choices.
        """
        chosen: dict[str, Any] = {
            "step_size": 2.5 * threat.eps / max(num_steps, 1),
            "random_start": True,
            "keep": "best",
        }
        return cls(threat, num_steps, **chosen | options)

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack; see `Attack.describe`."""
        return super().describe() | {
            "num_steps": self.num_steps,
            "step_size": self.step_size,
            "random_start": self.random_start,
            "keep": self.keep,
        }

    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, offset: int, active: Tensor | None
    ) -> AttackResult:
        """Attack all images, active or not: a recorded batch keeps its shape."""
        view, x_nat, context = self._begin(model, x, y)
        nonfinite = torch.zeros(1, dtype=torch.int64, device=x.device)

        def run(restart: int) -> AttackResult:
            start = self._start(x_nat, self.seed, restart, offset)
            x_adv, success, loss, count = self._run(
                view, x_nat, start, context, nonfinite, view is model
            )
            return AttackResult(x_adv, success, loss, count)

        return reduce(worse_of, map(run, range(self.num_restarts)))

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int | None = None,
        offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return the last iterate, and the same normalised for the network.

        This is for training: it costs `num_steps` input gradients and no other forward
        pass, and nothing is judged. Of several restarts, each image gets the last iterate
        of the one with the largest objective, which takes one forward pass more each.
        For an objective that accepts them, `y` may also be
        class probabilities, float32 [N, K], of mixed images or smoothed labels.

        Returns:
            (x_adv float32 [N, C, H, W] in [0, 1], z float32, both channels_last).
        """
        view, x_nat, context = self._begin(model, x, y, training=True)
        key = self.seed if seed is None else seed

        def run(restart: int) -> tuple[Tensor, ...]:
            start = self._start(x_nat, key, restart, offset)
            return self._run(view, x_nat, start, context, None, view is model)

        x_adv, z = run(0)
        if self.num_restarts == 1:
            return x_adv, z
        x_adv, z = (
            x_adv.clone(),
            z.clone(),
        )  # a recorded run writes into the same memory
        most = self._objective(view, z, context)
        for restart in range(1, self.num_restarts):
            x_other, z_other = run(restart)
            loss = self._objective(view, z_other, context)
            larger = (loss > most).view(-1, 1, 1, 1)
            x_adv = torch.where(larger, x_other, x_adv)
            z = torch.where(larger, z_other, z)
            most = torch.maximum(loss, most)
        return x_adv, z

    @torch.no_grad()
    def _objective(self, view: AttackView, z: Tensor, context: Context) -> Tensor:
        return self.objective.per_sample(self._outputs(view, z), context)

    def compile_report(self) -> CompileReport:
        """Return how the batches so far were run, and how often something was compiled."""
        return self._runner.report()

    def scaled(self, factor: float) -> PGD:
        """Return this attack with radius, step and random start multiplied by `factor`."""
        if factor == 1:
            return self
        attack = copy.copy(self)  # with its runner: the network is compiled only once
        attack.threat = ThreatModel(self.threat.norm, self.threat.eps * factor)
        attack.step_size *= factor
        attack.start_eps *= factor
        return attack

    # ---- parts ----

    def _run(
        self,
        view: AttackView,
        x_nat: Tensor,
        start: Tensor,
        context: Context,
        nonfinite: Tensor | None,
        reused: bool,
    ) -> tuple[Tensor, ...]:
        """Return what `_steps` finds, run in the mode `compile`."""
        mean, std = view.statistics(start.shape[1])
        return self._runner.run(
            view,
            partial(self._forward, view),
            partial(self._steps, view),
            _Inputs(x_nat, start, context.labels, context.clean, mean, std, nonfinite),
            reused=reused,
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
        self, view: AttackView, network: Forward, tensors: Inputs
    ) -> tuple[Tensor, ...]:
        """Run all steps, as a function of tensors (`_Inputs`) that can be recorded.

        With a counter `nonfinite`, it returns the first four fields of the
        `AttackResult` of the iterate that `keep` chooses; without it, the last iterate
        and its normalised image.
        """
        x_nat, x, labels, clean, mean, std, nonfinite = _Inputs(*tensors)  # type: ignore[arg-type]
        context = Context(labels, clean)
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
            grad, loss, outputs = self._gradient(network, z, context)
            if nonfinite is not None and self.keep == "best":
                found = self._judge(
                    view, x.clone(), z, context, nonfinite, outputs, loss
                )
                best = worse_of(best, found)
            with phase("fused step"):
                step(grad)
        if nonfinite is None:
            return x, z
        best = worse_of(best, self._judge(view, x, z, context, nonfinite))
        return best.x_adv, best.success, best.loss, best.nonfinite
