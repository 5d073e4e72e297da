"""A detector in training: its optimiser, precision, average, and one update of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN

from fastadv.data.counter import derive_key
from fastadv.detection.attack import DetectorAttack
from fastadv.detection.batches import DetectionBatch
from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.rois import quick_rois
from fastadv.detection.view import DetectorView
from fastadv.models.quick_convs import quick_convs
from fastadv.phases import phase
from fastadv.runs.distributed import World
from fastadv.threat import ThreatModel
from fastadv.training.ema import EMA
from fastadv.training.learner import resolve_precision
from fastadv.training.methods import DTYPES
from fastadv.training.optimizer_config import learning_rate
from fastadv.training.optimizers import make_optimizer
from fastadv.training.parallel import average_statistics, wrapped

_WARMUP_FACTOR = 1e-3


class DetectorLearner:
    """A detector and all that an update changes.

    Args:
        config: Choices of the run.
        detector: The detector on its device, the same on every rank.
        world: The ranks that train it.
        total_steps: Number of updates of the whole run.
        warmup_steps: Number of updates over which the learning rate rises.

    Attributes:
        detector: The detector whose weights are updated.
        optimizer: Optimiser of the weights that train.
        precision: `"fp32"`, `"bf16"` or `"fp16"`.
        ema: Average of the weights, or None.
    """

    def __init__(
        self,
        config: DetectTrainConfig,
        detector: FasterRCNN,
        world: World,
        total_steps: int,
        warmup_steps: int,
    ) -> None:
        self.config, self.detector, self.world = config, detector, world
        self._total, self._warmup = total_steps, warmup_steps
        self._device = next(detector.parameters()).device
        self.ema = EMA(detector, config.ema) if config.ema is not None else None
        self.precision = resolve_precision(config.precision, self._device)
        detector.train()
        self._norms = [  # without frozen ones
            module
            for module in detector.modules()
            if isinstance(module, _BatchNorm) and module.training
        ]
        self._network: nn.Module = detector
        if world.size > 1:
            self._network = wrapped(detector, self._device)
        trained = [p for p in detector.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(
            config.optimizer,
            [{"params": trained}],
            lr=config.lr or 0.0,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self._attack: DetectorAttack | None = None
        self._view: DetectorView | None = None
        if config.eps:
            self._attack = DetectorAttack(
                ThreatModel(config.norm, config.eps),  # type: ignore[arg-type]
                config.steps,
                config.step_size,
                loss=config.attack_loss,
            )
        half = self.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self._device.type) if half else None

    @property
    def published(self) -> FasterRCNN:
        """The detector that is tested and kept: the average, if there is one."""
        return self.detector if self.ema is None else self.ema.model

    def rate(self, step: int) -> float:
        """Return the learning rate of update `step`, from 0."""
        rate = learning_rate(self.config, step, self._total)
        if step >= self._warmup:
            return rate
        share = step / self._warmup
        return rate * (_WARMUP_FACTOR * (1 - share) + share)

    def update(self, batch: DetectionBatch, step: int) -> dict[str, Tensor]:
        """Do update `step` on a batch; return its losses by name, unread on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        if self._attack is None:
            images = [image.float() / 255 for image in batch.images]
        else:
            with phase("attack"):
                images = self._attacked(batch, step)
        dtype = DTYPES.get(self.precision)
        with phase("train"), quick_convs(self._device), quick_rois(self._device):
            with torch.autocast(
                self._device.type, dtype, enabled=dtype is not None, cache_enabled=True
            ):
                losses: dict[str, Tensor] = self._network(images, batch.targets)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            scaled = total if self.scaler is None else self.scaler.scale(total)
            scaled.backward()  # type: ignore[no-untyped-call]
        with phase("optimiser"):
            self._apply()
        average_statistics(self._norms, self.world)
        if self.ema is not None:
            self.ema.update(self.detector)
        return {name: loss.detach() for name, loss in losses.items()}

    def _attacked(self, batch: DetectionBatch, step: int) -> list[Tensor]:
        """Return adversarial images of a batch, float [3, H, W] in [0, 1].

        They depend on the seed, the step and the weights, so that a resumed run makes the
        same ones.
        """
        if self._attack is None:
            raise RuntimeError("the run has no attack")
        if self._view is None:
            self._view = self._attack.prepare(self.detector)
        # The view follows the weights by itself, and statistics that were updated, too.
        found = self._attack(
            self._view,
            batch.images,
            batch.targets,
            offset=self.world.rank * len(batch.images),
            seed=derive_key(self.config.seed, "attack", step),
        )
        return found.images

    def _apply(self) -> None:
        if self.config.clip_grad is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            weights = (
                p for group in self.optimizer.param_groups for p in group["params"]
            )
            nn.utils.clip_grad_norm_(weights, self.config.clip_grad)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "weights": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision,
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, to the bit."""
        # `auto` looked at another device; the run goes on as it began.
        self.precision = state["precision"]
        self.detector.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
