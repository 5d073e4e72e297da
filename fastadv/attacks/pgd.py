"""Projected gradient descent (PGD) on the fused kernels.

One attack step is the network's input gradient (see `engine.py`) and one fused kernel.
The loop over the steps never waits for the device.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastadv.attacks.compiled import CompileMode, CompileReport, Inputs, Runner
from fastadv.attacks.contract import AttackResult
from fastadv.attacks.early import attack_until_certain
from fastadv.attacks.engine import (
    Forward,
    GradientAttack,
    check_counts,
    own_start,
    worse_of,
)
from fastadv.attacks.objectives import AnyObjective, Context
from fastadv.device import differentiable
from fastadv.kernels import normalize, pgd_step_
from fastadv.kernels.arguments import per_sample
from fastadv.kernels.registry import forced_backend
from fastadv.models.view import AttackView
from fastadv.phases import phase
from fastadv.threat import ThreatModel

_FEW_STEPS = 3


class _Inputs(NamedTuple):
    """Everything the steps of an attack read that changes between batches."""

    x_nat: Tensor  # clean images [N, C, H, W]
    x: Tensor  # iterate, which the steps overwrite
    labels: Tensor  # [N], or class probabilities [N, K]
    clean: Tensor | None  # outputs of the clean images, where the objective needs them
    mean: Tensor  # of the network's normalisation [C]
    std: Tensor  # of the network's normalisation [C]
    nonfinite: Tensor | None  # counter, int64 [1]; without it nothing is judged
    share: Tensor | None  # of radius and step for each image [N]; None: all of it


class PGD(GradientAttack):
    """Projected gradient ascent on an objective within a threat model.

    Args:
        threat: Norm and radius, in pixel units.
        num_steps: Gradient steps per restart, at least 1.
        step_size: Length of a step in pixel units. None means 2 eps / num_steps for up to
            three steps (Salman et al. 2020 take three of 2/3 eps), and 2.5 eps / num_steps
            for more (Madry et al. 2018).
        random_start: Begin at a random point of the ball instead of the clean image.
        num_restarts: Number of independent runs, of which the worst is kept per sample;
            more than one needs `random_start`.
        objective: Loss that is maximised: `"cross_entropy"`, `"margin"`, `"dlr"`, `"kl"`,
            `"feature_distance"`, `module:name`, an `Objective`, or a function
            (logits [N, K], labels [N]) -> loss [N]. `"targeted"` minimises the
            cross-entropy of the classes that are given as `y`, which are then the targets.
        keep: Whether a call judges the `"best"` of all iterates (success first, then
            loss) or the `"last"`. It makes no difference to `perturb`.
        seed: Seed of the random starts. Calls with the same seed give the same result;
            `perturb` has a seed of its own.
        bn_mode: Mode of BatchNorm while attacking, `"eval"` (default) or `"train"`.
        dtype: Compute dtype of the network; None keeps the model's.
        compile: How the steps are run, for an `AttackView` that is attacked again and
            again; see `CompileMode`. Where that is not available, steps run one by one
            and the reason is logged once; see `compile_report`.
        start_eps: Radius of the random start in pixel units; None means eps.
        early_stop: Whether images leave the batch of a call once their verdict is certain:
            when they are fooled, and when the attack begins to repeat itself on them (see
            `early`). Success is the same; `x_adv` of a fooled image is the first iterate
            that fools, and images that are not active are left alone. Needs
            `keep="best"`; it has no effect where BatchNorm uses the batch, or where
            steps are compiled or recorded by request.

    A call, and `perturb`, also take `eps`, a radius for each image (float [N], pixel units;
    steps and random starts shrink or grow with it), and `start`, images [N, C, H, W] where
    the first run begins, which are moved into the ball where they are outside.

    Raises:
        ValueError: A number is out of range, or restarts come without a random start.

    Example:
        >>> attack = PGD(ThreatModel("linf", "8/255"), num_steps=10, random_start=True)
        >>> result = attack(model, images, labels)
        >>> robust_acc = 1 - result.success.float().mean()

    Source:
        Madry et al. 2018, with the three steps of Salman et al. 2020 by default.
    """

    name = "pgd"
    _described = ("num_steps", "step_size", "random_start", "keep")

    def __init__(
        self,
        threat: ThreatModel,
        num_steps: int = 3,
        step_size: float | None = None,
        random_start: bool = False,
        num_restarts: int = 1,
        objective: AnyObjective = "cross_entropy",
        keep: Literal["last", "best"] = "best",
        *,
        seed: int = 0,
        bn_mode: Literal["eval", "train"] = "eval",
        dtype: torch.dtype | None = None,
        compile: CompileMode = "auto",
        start_eps: float | None = None,
        early_stop: bool = False,
    ) -> None:
        check_counts(num_steps=num_steps, num_restarts=num_restarts)
        if num_restarts > 1 and not random_start:
            raise ValueError(
                f"num_restarts={num_restarts} without random_start would repeat the "
                "same attack; add random_start=True"
            )
        if keep not in ("last", "best"):
            raise ValueError(f"keep={keep!r} is unknown; accepted: last, best")
        if early_stop and keep != "best":
            raise ValueError(f"early_stop needs keep='best', not {keep!r}")
        if step_size is None:
            step_size = threat.eps * (2 if num_steps <= 3 else 2.5) / num_steps
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
        self.early_stop = early_stop
        # Random starts of `perturb`; attacks made of this one share it.
        self._drawn = [0]
        self._runner = Runner(compile)

    @classmethod
    def judge(cls, threat: ThreatModel, num_steps: int, **options: Any) -> PGD:
        """Return the attack that measures robust accuracy.

        It starts at a random point, keeps the best iterate, and takes steps of 2.5 eps /
        num_steps, which cross the ball from anywhere (Madry et al. 2018). Images leave
        it once their verdict is certain.

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
        chosen |= options
        chosen.setdefault("early_stop", chosen["keep"] == "best")
        return cls(threat, num_steps, **chosen)

    @property
    def weakness(self) -> str | None:
        """A reason why a robust accuracy under this attack would be too high, or None."""
        if self.keep == "last":
            return "it judges the last iterate alone, which need not be the worst"
        if self.num_steps * self.step_size < self.threat.eps:
            return "all of its steps together are shorter than the radius"
        if self.num_steps <= _FEW_STEPS and not self.random_start:
            return (
                f"{self.num_steps} step(s) from the image itself are meant for training"
            )
        return None

    def _attack(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        offset: int,
        active: Tensor | None,
        *,
        eps: Tensor | None = None,
        start: Tensor | None = None,
    ) -> AttackResult:
        """Attack all images, active or not, unless they may leave.

        A recorded batch keeps its shape.
        """
        view, x_nat, context = self._begin(model, x, y)
        share = self._share(eps, x_nat)

        def begin(restart: int) -> Tensor:
            if start is not None and restart == 0:
                return own_start(start, x_nat, self.threat, share)
            return self._start(x_nat, self.seed, restart, offset, share)

        alone = self.bn_mode == "eval" and self.objective.succeeds
        if self.early_stop and alone and self._runner.mode in ("auto", "off"):
            return attack_until_certain(
                self, view, x_nat, context, begin, share=share, active=active
            )
        nonfinite = torch.zeros(1, dtype=torch.int64, device=x.device)

        def run(restart: int) -> AttackResult:
            x_adv, success, loss, count = self._run(
                view, x_nat, begin(restart), context, nonfinite, view is model, share
            )
            nonfinite.copy_(count)  # a recording counts in memory of its own
            return AttackResult(x_adv, success, loss, nonfinite)

        found = reduce(worse_of, map(run, range(self.num_restarts)))
        passes = len(x) * self.num_restarts * (self.num_steps + 1)
        return replace(found, passes=passes)

    @differentiable
    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int | None = None,
        offset: int = 0,
        eps: Tensor | None = None,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the last iterate, and the same normalised for the network.

        This is for training: it costs `num_steps` input gradients and no other forward
        pass, and nothing is judged. Of several restarts, each image gets the last iterate
        of the one with the largest objective, which takes one forward pass more each.

        Args:
            model: The view of the network, or the network, as of `Attack.__call__`.
            x: Clean images, uint8 in 0..255 or float in [0, 1], [N, C, H, W].
            y: True classes, int64 [N]; for an objective that accepts them also class
                probabilities, float32 [N, K], of mixed images or smoothed labels.
            seed: Seed of the random start, to draw the same one again. None draws a new
                one at every call, in a sequence that the seed of the attack determines.
            offset: Number of the first image in the random sequence; several ranks with
                the same seed need different ones.
            eps: Radius of each image in pixel units, float [N]; None: that of the threat
                model. The length of a step changes in proportion.
            start: Images [N, C, H, W] in [0, 1] where the first run begins; None: the
                images themselves, or a random point with `random_start`.

        Returns:
            (x_adv float32 [N, C, H, W] in [0, 1], z in the dtype of the view, the same
            normalised; both channels_last).

        Raises:
            ValueError: Images are outside [0, 1], labels are no class ids, or shapes do
                not fit. On accelerators only the first batch of each network is checked.
            TypeError: The model does not return logits [N, K].
        """
        view, x_nat, context = self._begin(model, x, y, training=True)
        share = self._share(eps, x_nat)
        first, key = 0, seed
        if key is None:
            first, key = self._drawn[0], self.seed
            self._drawn[0] += self.num_restarts

        def run(restart: int) -> tuple[Tensor, ...]:
            if start is not None and restart == first:
                begin = own_start(start, x_nat, self.threat, share)
            else:
                begin = self._start(x_nat, key, restart, offset, share)
            return self._run(view, x_nat, begin, context, None, view is model, share)

        x_adv, z = run(first)
        if self.num_restarts == 1:
            return x_adv, z
        # A recorded run writes into the same memory again.
        x_adv, z = x_adv.clone(), z.clone()
        most = self._objective(view, z, context)
        for restart in range(first + 1, first + self.num_restarts):
            x_other, z_other = run(restart)
            loss = self._objective(view, z_other, context)
            larger = (loss > most).view(-1, 1, 1, 1)
            x_adv = torch.where(larger, x_other, x_adv)
            z = torch.where(larger, z_other, z)
            most = torch.maximum(loss, most)
        return x_adv, z

    def _share(self, eps: Tensor | None, x: Tensor) -> Tensor | None:
        """Return the radius of each image as a share of that of the threat model, [N]."""
        if eps is None:
            return None
        if not isinstance(eps, Tensor) or eps.shape != x.shape[:1]:
            shape = list(eps.shape) if isinstance(eps, Tensor) else type(eps).__name__
            raise ValueError(
                f"eps is {shape}; expected the radius of each image in pixel units, a "
                f"tensor [{len(x)}]. One radius for all belongs into the ThreatModel"
            )
        eps = eps.to(device=x.device, dtype=torch.float32)
        if not bool((eps.isfinite() & (eps >= 0)).all()):
            raise ValueError("eps has values that are negative or not finite")
        most = float(eps.amax()) if len(eps) else 0.0
        if self.threat.norm == "linf" and most > 1:
            raise ValueError(
                f"eps has values up to {most:g}; linf radii are in [0, 1] pixel units"
            )
        if self.threat.eps == 0:
            raise ValueError(
                "eps of images is a share of the threat model's, which is 0; give the "
                "threat model the usual radius"
            )
        return eps / self.threat.eps

    @torch.no_grad()
    def _objective(self, view: AttackView, z: Tensor, context: Context) -> Tensor:
        return self.objective.losses(self._outputs(view, z), context)

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

    def in_mode(self, bn_mode: Literal["eval", "train"]) -> PGD:
        """Return this attack with another mode of BatchNorm."""
        if bn_mode == self.bn_mode:
            return self
        attack = copy.copy(self)
        attack.bn_mode = bn_mode
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
        share: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return what `_steps` finds, run in the mode `compile`."""
        mean, std = view.statistics(start.shape[1])
        return self._runner.run(
            view,
            partial(self._forward, view),
            partial(self._steps, view),
            _Inputs(
                x_nat,
                start,
                context.labels,
                context.clean,
                mean,
                std,
                nonfinite,
                share,
            ),
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
        x_nat, x, labels, clean, mean, std, nonfinite, share = _Inputs(*tensors)  # type: ignore[arg-type]
        radii = {
            name: per_sample(name, value, x) if share is None else value * share
            for name, value in (
                ("step_size", self.step_size),
                ("eps", self.threat.eps),
            )
        }
        context = Context(labels, clean)
        z = normalize(x, mean=mean, std=std, dtype=view.input_dtype)
        step = partial(
            pgd_step_,
            x,
            x_nat,
            norm=self.threat.norm,
            **radii,
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
