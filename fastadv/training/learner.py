"""The model in training, with its optimiser, method, precision and average.

Everything that changes with an update and must be in a checkpoint is here. The loop around
it, with data, validation and saving, is in `trainer.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastadv.attacks import PGD
from fastadv.errors import ConfigError
from fastadv.models import NormalizedModel
from fastadv.models.view import AttackView
from fastadv.runs.distributed import World
from fastadv.threat import ThreatModel
from fastadv.training.config import TrainConfig
from fastadv.training.ema import EMA
from fastadv.training.method_config import MethodConfig
from fastadv.training.methods import DTYPES, Method, Net, method_class
from fastadv.training.mixing import Mixing
from fastadv.training.optimizer_config import default_lr
from fastadv.training.optimizers import make_optimizer
from fastadv.training.overfit import OverfitCheck, OverfitWatch
from fastadv.training.parallel import Parallel
from fastadv.training.step import Update

_FALLBACK_STEPS = 3


def resolve_precision(wanted: str, device: torch.device) -> str:
    """Return the precision `wanted`; `"auto"` is bf16 where a device computes it natively."""
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "fp32"
    major, _ = torch.cuda.get_device_capability(device)
    return "bf16" if major >= 8 else "fp32"


def training_attack(
    config: MethodConfig, side: int, dtype: torch.dtype | None, seed: int = 0
) -> PGD | None:
    """Return the attack of a training method, or None if it does not attack.

    Args:
        config: The method and its attack.
        side: Side of the images in pixels.
        dtype: Data type that the attack computes in; None is that of the weights.
        seed: Random seed of the starts.
    """
    if not config.adversarial:
        return None
    threat, entry = config.threat, config.entry
    step_size, start_eps = config.step_size, None
    if step_size is None and entry.step_share is not None:
        step_size = entry.step_share * threat.eps / config.attack_steps
    if entry.small_start and not config.random_start:
        # Published is normal noise; ours is uniform with the same deviation, from the
        # generator that every random start comes from.
        dimensions = 3 * (side**2 if threat.norm == "l2" else 1)
        start_eps = min(threat.eps, entry.small_start * math.sqrt(dimensions))
    elif config.method == "n_fgsm":
        # A step without projection from x + eta: within a ball that it cannot leave.
        start_eps = config.parameters["noise"] * threat.eps
        threat = ThreatModel(threat.norm, start_eps + (step_size or 0.0))
    drawn = config.random_start or config.method == "rs_fgsm"
    return PGD(
        threat,
        config.attack_steps,
        step_size,
        random_start=drawn or start_eps is not None,
        num_restarts=config.num_restarts,
        objective=entry.objective,
        seed=seed,
        bn_mode=config.bn_mode or "eval",
        dtype=dtype,
        compile=config.compile,
        start_eps=start_eps,
    )


def attacked_view(
    model: NormalizedModel, attack: PGD | None, exact_input: bool
) -> AttackView | None:
    """Return the view of `model` that `attack` works on in training, or None without one.

    In train mode its passes update the BatchNorm statistics of the model, as those of the
    published single-step methods do.
    """
    if attack is None:
        return None
    return AttackView(
        model,
        mode=attack.bn_mode,
        tracks=True,
        dtype=attack.dtype,
        exact_input=exact_input,
    )


def needs_exact_input(
    threat: ThreatModel, side: int, dtype: torch.dtype | None
) -> bool:
    """Return whether inputs of the network must stay float32 while it computes in `dtype`."""
    if dtype is None or threat.eps == 0:
        return False
    return not threat.survives(side, torch.finfo(dtype).eps)


def judging_attack(config: TrainConfig, num_steps: int) -> PGD:
    """Return the attack of validations, in full precision."""
    return PGD.judge(
        config.threat,
        num_steps,
        seed=config.seed,
        # Too few batches to compile for.
        compile="off" if config.compile == "off" else "auto",
    )


class Learner:
    """The model in training and all that an update changes; see the module.

    Args:
        config: Choices of the run.
        model: The model, on the device it trains on, the same on every rank.
        side: Side of the images at full resolution in pixels.
        world: The ranks that train it.

    Attributes:
        model: The model whose weights are updated.
        parallel: Keeps the copies of the model on all ranks the same.
        optimizer: Optimiser of the model's parameters.
        method: The training method.
        update: What surrounds the loss in an update.
        precision: `"fp32"`, `"bf16"` or `"fp16"`.
        exact_input: Whether inputs of the network stay float32 in bf16 or fp16.
        attack: Attack of the method at full radius, or None.
        view: View of the model that is attacked, or None.
        eval_view: The same in evaluation mode, which checks of a one-step method attack.
        watch: Detects catastrophic overfitting; the trainer sets it where `watched`.
        fell_back: Whether a one-step method overfitted and PGD has taken over.

    Raises:
        ConfigError: Choices do not go together.
    """

    def __init__(
        self, config: TrainConfig, model: NormalizedModel, side: int, world: World
    ) -> None:
        spread = config.parallel == "fsdp" and world.size > 1
        if config.ema is not None and spread:
            raise ConfigError(
                "`ema` averages whole weights, `parallel=fsdp` spreads them over the "
                "ranks; leave one out"
            )
        if config.method == "gradalign" and spread:
            raise ConfigError(
                "`method=gradalign` differentiates twice through weights that "
                "`parallel=fsdp` has spread over the ranks by then; use `parallel=ddp`"
            )
        self.config, self.model, self.side, self.world = config, model, side, world
        self._device = model.mean.device
        # Both before `Parallel`, which may change the model in place.
        self.ema = EMA(model, config.ema) if config.ema is not None else None
        self._choose(resolve_precision(config.precision, self._device))
        self.parallel = Parallel(
            model, world, kind=config.parallel, sync_bn=config.sync_bn
        )
        self._assemble()
        self.optimizer = make_optimizer(
            config.optimizer,
            model,
            lr=config.lr or default_lr(config.optimizer),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.watch: OverfitWatch | None = None
        self.fell_back = False
        self._scale = 1.0  # of the radius in this epoch

    def _choose(self, precision: str) -> None:
        self.precision, dtype = precision, DTYPES.get(precision)
        self.attack = training_attack(self.config, self.side, dtype, self.config.seed)
        self.exact_input = needs_exact_input(self.config.threat, self.side, dtype)
        self.view = attacked_view(self.model, self.attack, self.exact_input)
        self.eval_view = self.view
        if self.attack is not None and self.attack.bn_mode == "train":
            judged = self.attack.in_mode("eval")
            self.eval_view = attacked_view(self.model, judged, self.exact_input)

    def _assemble(self) -> None:
        config = self.config
        kind = method_class(config.method)
        forward, exact = self.parallel.network, self.exact_input
        net = Net(self.model, self.precision, forward, exact_input=exact)
        self.method = kind(net, self.attack, self.view, **config.parameters)
        self._plain = Method(net, None, None)
        half = self.precision == "fp16"
        self.update = Update(
            mixing=Mixing(config.label_smoothing, config.mixup, config.cutmix),
            accumulate=config.accumulate,
            clip_grad=config.clip_grad,
            scaler=torch.amp.GradScaler(self._device.type) if half else None,
        )

    def published(self) -> NormalizedModel:
        """Return the model that is validated, tested and saved: the average, if any.

        Every rank must call it.
        """
        return self.ema.model if self.ema is not None else self.parallel.plain()

    def begin_epoch(self, scale: float) -> None:
        """Scale the radius of the attack by `scale` in the epoch that begins.

        With 0 the epoch trains on images as they are, at the cost of standard training.
        """
        self._scale = scale
        if scale == 0:
            return
        self.method.scale(scale)
        if self.watch is not None:
            self.watch.scale(scale)

    @property
    def epoch_method(self) -> Method:
        """The method of this epoch: without an attack while the radius is 0."""
        return self.method if self._scale else self._plain

    def after_step(self) -> None:
        """Average statistics over ranks and update the average, after an update."""
        self.parallel.average_statistics()
        if self.ema is not None:
            self.ema.update(self.model)

    # ---- catastrophic overfitting ----

    @property
    def watched(self) -> bool:
        """Whether training attacks in one step, which may overfit catastrophically."""
        return self.attack is not None and self.attack.num_steps == 1

    def check_overfit(self, step: int) -> OverfitCheck | None:
        """Compare the single-step attack with PGD after update `step`, if that is due.

        After a collapse, where the choices ask for it, the weights of the last check
        without one are restored, and PGD replaces the single step. Every rank must call
        it.
        """
        watch, attack, view = self.watch, self.method.attack, self.eval_view
        if watch is None or attack is None or view is None or not self._scale:
            return None
        if not watch.due(step):
            return None
        self.parallel.gather_weights()
        check = self.world.share(watch.check(view, attack.in_mode("eval"), step))
        if not check.collapsed:
            watch.remember(self.parallel.state())
        elif self.config.on_overfit == "fallback":
            if watch.weights is not None:
                self.parallel.load_state(watch.weights)
            self.optimizer.state.clear()  # momentum of the steps that are undone
            if self.ema is not None:
                self.ema.reset(self.model)
            self._fall_back()
        return check

    def _fall_back(self) -> None:
        self.fell_back, self.watch, self.view = True, None, self.eval_view
        self.attack = PGD(
            self.config.threat,
            _FALLBACK_STEPS,
            random_start=True,
            seed=self.config.seed,
            dtype=DTYPES.get(self.precision),
            compile=self.config.compile,
        )
        self.method = Method(self.method.net, self.attack, self.view)
        self.method.scale(self._scale)

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint. Every rank must call it."""
        scaler = self.update.scaler
        return {
            "weights": self.parallel.state(),
            "optimizer": self.parallel.optimizer_state(self.optimizer),
            "precision": self.precision,
            "method": self.world.gather(self.method.state_dict()),
            "fell_back": self.fell_back,
            "watch": self.watch.weights if self.watch is not None else None,
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, to the bit.

        Raises:
            ConfigError: The run computed in a precision that this device cannot choose.
        """
        if state["precision"] != self.precision:
            # `auto` looked at another device; the run goes on as it began.
            if self.parallel.altered:
                raise ConfigError(
                    f"the run computed in {state['precision']}, which `precision=auto` "
                    f"is not on this device ({self.precision}); resume on one like the "
                    "first"
                )
            self._choose(state["precision"])
            self._assemble()
        self.parallel.load_state(state["weights"])
        self.parallel.load_optimizer_state(self.optimizer, state["optimizer"])
        if state["fell_back"]:
            self._fall_back()
        if self.world.size == len(state["method"]):
            self.method.load_state_dict(state["method"][self.world.rank])
        if self.watch is not None and state["watch"] is not None:
            self.watch.remember(state["watch"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.update.scaler is not None:
            self.update.scaler.load_state_dict(state["scaler"])
