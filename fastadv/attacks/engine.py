"""What every gradient attack shares: checks, random start, input gradient, verdict.

The gradient is taken at the normalised input, in the frozen and folded `AttackView`, so
no weight gradient is ever computed and the model does not change. Nothing here waits for
the device, except the checks of labels and of the range of float images.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor, nn

from fastadv.attacks.contract import AttackResult, SingleAttack, check_batch
from fastadv.attacks.objectives import (
    AnyObjective,
    Context,
    get_objective,
    succeeded,
)
from fastadv.attacks.outputs import (
    PROBABILITIES,
    are_probabilities,
    checked_logits,
    logits_of_model,
)
from fastadv.kernels import ball_init
from fastadv.kernels.pixels import to_pixels
from fastadv.models.calling import input_gradient
from fastadv.models.view import AttackView
from fastadv.phases import phase
from fastadv.threat import ThreatModel

_MASK64 = 2**64 - 1
# An objective that is `zero_at_clean` needs a random start even if the caller chose none.
# Its radius is this share of eps: far enough for a gradient, too near to change the result.
_NUDGE = 0.01
_HALF_SCALE = 256.0  # factor of the loss in float16, whose largest number is 65504

log = logging.getLogger(__name__)
_already_checked: WeakSet[nn.Module] = WeakSet()
_seen_floats: WeakSet[nn.Module] = WeakSet()
# Networks whose view was compared with them in training, where each call may make a view.
_agreed: WeakSet[nn.Module] = WeakSet()


Forward: TypeAlias = Callable[[Tensor, Context], tuple[Tensor, Tensor, Tensor]]
"""Maps (normalised images, context) to (summed loss with its graph; without graph: loss
per sample [N], outputs)."""


class GradientAttack(SingleAttack):
    """Base class of the attacks that follow the gradient of an objective.

    The arguments are those of `PGD`. The random start has the radius `start_eps`.
    """

    _described: tuple[str, ...] = ()  # attributes that `describe` adds

    def __init__(
        self,
        threat: ThreatModel,
        objective: AnyObjective,
        *,
        num_restarts: int,
        random_start: bool,
        seed: int,
        bn_mode: Literal["eval", "train"],
        dtype: torch.dtype | None,
    ) -> None:
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(
                f"dtype={dtype} has no gradients; accepted: torch.float32, bfloat16, "
                "float16, float64, or None for the model's own"
            )
        self.threat = threat
        self.objective = get_objective(objective)
        self.num_restarts = num_restarts
        self.random_start = random_start
        self.start_eps = threat.eps
        self.seed = seed
        self.bn_mode: Literal["eval", "train"] = bn_mode
        self.dtype = dtype

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack; see `Attack.describe`."""
        shared = {"objective": self.objective.name, "num_restarts": self.num_restarts}
        own = {name: getattr(self, name) for name in self._described}
        return super().describe() | shared | own

    def prepare(self, model: nn.Module) -> AttackView:
        """Return the view of `model` that this attack works on.

        Raises:
            ValueError: `model` is a view already, with another mode or dtype.
        """
        if isinstance(model, AttackView):
            wanted = self.dtype or model.dtype
            if (model.mode, model.dtype) != (self.bn_mode, wanted):
                raise ValueError(
                    f"the view has mode {model.mode!r} and {model.dtype}, the attack "
                    f"wants {self.bn_mode!r} and {wanted}; give the view the same mode "
                    "and dtype, or give the attack the model"
                )
            model.refresh_if_stale()
            return model
        return AttackView(model, mode=self.bn_mode, dtype=self.dtype)

    def _begin(
        self, model: nn.Module, x: Tensor, y: Tensor, *, training: bool = False
    ) -> tuple[AttackView, Tensor, Context]:
        """Check a batch, and return the view, images in channels_last and the context.

        In training, and where success does not count, labels may be class probabilities or
        other values [N, K]. Where checks wait for the device, labels are not checked in
        training, and pixels only in the first batch of floats. The view is compared with
        the model the first time, in training once for each network.
        """
        check_batch(model, x, y)
        view = self.prepare(model)
        may_be_soft = training or not self.objective.succeeds
        soft = may_be_soft and y.dim() == 2 and y.is_floating_point()
        if x.dim() != 4 or y.shape[:1] != x.shape[:1] or (y.dim() != 1 and not soft):
            raise ValueError(
                f"x has shape {list(x.shape)} and y {list(y.shape)}; expected "
                "[N, C, H, W] and [N]"
            )
        if y.dtype != torch.int64 and not soft:
            raise TypeError(f"y is {y.dtype}; expected class ids, int64 [N]")
        weights = next(view.parameters(), x)
        if not x.device == y.device == weights.device:
            raise ValueError(
                f"x is on {x.device}, y on {y.device}, the model on {weights.device}; "
                "move them to one device"
            )
        if not soft and (not training or y.device.type == "cpu"):
            # Units of a layer are no classes.
            check_labels(y, None if self.objective.layer else view.num_classes)
        if x.is_floating_point():
            if not training or x.device.type == "cpu" or view.live not in _seen_floats:
                check_pixels(x)
            _seen_floats.add(view.live)
        if view.live_reason is None and not (training and view.live in _agreed):
            found = view.compare(x.detach())
            if training and found.reason is None:
                _agreed.add(view.live)
        x_nat = x.detach().contiguous(memory_format=torch.channels_last)
        if not self.objective.needs_clean:
            return view, x_nat, Context(y)
        with torch.no_grad():
            return view, x_nat, Context(y, self._outputs(view, view.normalize(x_nat)))

    def _outputs(self, view: AttackView, z: Tensor) -> Tensor:
        if (layer := self.objective.layer) is not None:
            return view.activations(z, (layer,))[layer]
        if self.objective.outputs == "features":
            return view.features(z)
        return checked_logits(view(z))

    def _start(
        self,
        x_nat: Tensor,
        seed: int,
        restart: int,
        offset: int,
        share: Tensor | None = None,
    ) -> Tensor:
        """Return the first iterate, float32 [N, C, H, W], in memory of its own.

        `share` multiplies the radius for each image [N].
        """
        eps: float | Tensor = self.start_eps
        if not self.random_start:
            if not self.objective.zero_at_clean:
                if x_nat.dtype == torch.uint8:
                    return x_nat.to(torch.float32).div_(255)
                return x_nat.to(torch.float32, copy=True)
            eps *= _NUDGE
        if share is not None:
            eps = eps * share
        # Golden-ratio increments: restarts of one seed are far apart in the key space.
        key = (seed + restart * 0x9E3779B97F4A7C15) & _MASK64
        start: Tensor = ball_init(
            x_nat, norm=self.threat.norm, eps=eps, seed=key, offset=offset
        )
        return start

    def _forward(
        self, view: AttackView, z: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss and the outputs at `z`, as a `Forward` does."""
        outputs = self._outputs(view, z)
        try:
            loss = self.objective.losses(outputs, context)
        except (IndexError, RuntimeError):
            if context.labels.device.type == "cpu" and context.labels.dim() == 1:
                check_labels(context.labels, outputs.shape[-1])
            raise
        return loss.sum(), loss.detach(), outputs.detach()

    def _verdict(self, model: nn.Module, y: Tensor, found: AttackResult) -> Tensor:
        """Return the success on each image, which the model itself decides."""
        if not self.objective.succeeds:
            return found.success
        if isinstance(model, AttackView) and model.live_reason is not None:
            return found.success
        logits = logits_of_model(model, found.x_adv)
        return succeeded(logits, Context(y), self.objective)

    @staticmethod
    def _gradient(
        forward: Forward, z: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input gradient [N, C, H, W] at `z`, loss per sample [N], outputs."""
        with torch.enable_grad():
            with phase("attack forward"):
                total, loss, outputs = forward(z.requires_grad_(), context)
            with phase("attack backward"):
                # Half precision would lose the gradient of a loss near zero. Its length
                # does not matter, because the step takes its sign or direction.
                half = z.dtype == torch.float16
                grad = input_gradient(total * _HALF_SCALE if half else total, z)
        z.requires_grad_(False)
        return grad, loss, outputs

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
        """Judge the iterate `x`, with a forward pass where `outputs` are not given."""
        if outputs is None:
            outputs = self._outputs(view, z)
        if loss is None:
            loss = self.objective.losses(outputs, context)
        if not self.objective.succeeds:
            nothing = torch.zeros_like(loss, dtype=torch.bool)
            return AttackResult(x, nothing, loss.float(), nonfinite)
        logits = view(z) if self.objective.outputs == "features" else outputs
        warn_of_probabilities(view, logits)
        success = succeeded(logits, context, self.objective)
        return AttackResult(x, success, loss.float(), nonfinite)


def own_start(
    start: Tensor, x_nat: Tensor, threat: ThreatModel, share: Tensor | None
) -> Tensor:
    """Return images that a caller chose as the first iterate, moved into the ball.

    Args:
        start: Images [N, C, H, W], uint8 or float in [0, 1].
        x_nat: Clean images, likewise.
        threat: Norm and radius.
        share: Factor of the radius for each image [N], or None.

    Raises:
        ValueError: The shapes differ, or pixels are outside [0, 1].
    """
    if start.shape != x_nat.shape or start.device != x_nat.device:
        raise ValueError(
            f"start has shape {list(start.shape)} on {start.device}; expected images "
            f"like x, {list(x_nat.shape)} on {x_nat.device}"
        )
    check_pixels(start)
    first = start.detach().to(memory_format=torch.channels_last)
    clean = to_pixels(x_nat, torch.float32)
    delta = to_pixels(first, torch.float32) - clean
    eps = torch.full((len(x_nat),), threat.eps, device=x_nat.device)
    radius = (eps if share is None else eps * share).view(-1, 1, 1, 1)
    if threat.norm == "linf":
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    else:
        length = delta.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)
        delta = delta * (radius / length).clamp_max(1)
    moved: Tensor = (clean + delta).clamp_(0, 1)
    return moved.contiguous(memory_format=torch.channels_last)


def check_counts(**numbers: int) -> None:
    """Raise ValueError unless all numbers are integers of at least one."""
    for name, value in numbers.items():
        if not isinstance(value, int):
            raise ValueError(f"{name}={value!r} must be an integer")
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def warn_of_probabilities(view: AttackView, logits: Tensor) -> None:
    """Log a warning, once for each network, if it seems to end in a softmax.

    Only the first call for a network waits for the device.
    """
    if view.live in _already_checked or not logits.numel():
        return
    _already_checked.add(view.live)
    if are_probabilities(logits):
        log.warning(PROBABILITIES)


def check_labels(labels: Tensor, num_classes: int | None = None) -> None:
    """Raise ValueError unless all labels (int64 [N], N may be 0) are class ids."""
    low, high = (min(ids), max(ids)) if (ids := labels.tolist()) else (0, 0)
    if low < 0 or (num_classes is not None and high >= num_classes):
        accepted = ">= 0" if num_classes is None else f"in 0..{num_classes - 1}"
        raise ValueError(
            f"y has labels from {low} to {high}; expected class ids {accepted}. Check "
            "that the labels are those of the classes the model was trained on"
        )


def check_pixels(x: Tensor) -> None:
    """Raise ValueError unless float images lie in [0, 1]; waits for the device."""
    if not (x.is_floating_point() and x.numel()):
        return
    low, high = torch.stack(torch.aminmax(x)).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = (~x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        which = ", ".join(map(str, bad[:10])) + (", ..." if bad[10:] else "")
        raise ValueError(
            f"x has values that are NaN or infinite in {len(bad)} of {len(x)} images (of "
            f"index {which} in the batch); look at what reads or augments the images"
        )
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"x has values in [{low:.3g}, {high:.3g}]; attacks need images in [0, 1]. "
            "Remove Normalize from the transform and give mean/std to NormalizedModel."
        )


def worse_of(a: AttackResult | None, b: AttackResult) -> AttackResult:
    """Choose, per sample, the result that succeeded, or else that of the higher loss."""
    if a is None:
        return b
    take = (b.success & ~a.success) | ((b.success == a.success) & (b.loss > a.loss))
    x_adv = torch.where(take.view(-1, 1, 1, 1), b.x_adv, a.x_adv)
    return AttackResult(
        x_adv,
        torch.where(take, b.success, a.success),
        torch.where(take, b.loss, a.loss),
        b.nonfinite,
    )
