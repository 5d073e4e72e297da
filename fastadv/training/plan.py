"""The plan of a run: its memory, units of cost, and time on given numbers of devices.

The run is built as usual, a few of its steps are done and measured, and the rest is
multiplication. Nothing is written.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastadv.data import Batch
from fastadv.environment import cpu_name
from fastadv.kernels import use_backend
from fastadv.progress import clock
from fastadv.text_tables import text_table
from fastadv.training.config import TrainConfig
from fastadv.training.images import EVAL_BATCH
from fastadv.training.looplog import memory_in_use
from fastadv.training.probe import (
    SavedMemory,
    Units,
    own_bytes,
    tensors_of,
    time_evaluation,
    time_steps,
)
from fastadv.training.stages import side_at
from fastadv.training.trainer import Trainer

TRAIN, ATTACK, JUDGE = "training pass", "attack pass", "validation attack pass"
# The loss of several devices to communication and to smaller parts of the batch is not
# measured here; the table shows the time without it, and with this efficiency.
ASSUMED_EFFICIENCY = 0.8


@dataclass(frozen=True, kw_only=True)
class LoopPlan:
    """Measurements of the steps of a run, and the time that follows from them.

    Attributes:
        what: Description of the run.
        device: Name of the device it was measured on.
        parameters: Number of weights.
        memory_measured: Most bytes in use while measuring, without validation.
        steps: Number of steps of the whole run.
        measured_steps: Number of steps that were timed.
        step_seconds: Their mean seconds.
        images_per_s: Images per second of training.
        data_wait: Share of a step spent waiting for the batch, in [0, 1].
        parts: Seconds of each part of the whole run on this device.
        devices: Numbers of devices to project to.
    """

    what: str
    device: str
    parameters: int
    memory_measured: int
    steps: int
    measured_steps: int
    step_seconds: float
    images_per_s: float
    data_wait: float
    parts: dict[str, float]
    devices: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Seconds of the whole run on one device."""
        return sum(self.parts.values())

    def projected(self, devices: int, efficiency: float = 1.0) -> float:
        """Return the seconds of the whole run on a number of devices like this one.

        Building the run takes as long on many as on one; the rest is shared, at a share
        `efficiency` in (0, 1] of the joint speed of the devices.
        """
        shared = self.seconds - self.parts["setup"]
        speed = 1.0 if devices == 1 else devices * efficiency
        return self.parts["setup"] + shared / speed

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the projection included."""
        rows = [
            {
                "devices": n,
                "seconds": self.projected(n),
                "device_hours": n * self.projected(n) / 3600,
                "seconds_assumed": self.projected(n, ASSUMED_EFFICIENCY),
                "assumed_efficiency": ASSUMED_EFFICIENCY,
            }
            for n in self.devices
        ]
        return asdict(self) | {"seconds": self.seconds, "projection": rows}

    def cost(self) -> str:
        """Return what else is known of weights and work, as text without a full stop."""
        raise NotImplementedError

    def memory_rows(self) -> list[list[Any]]:
        """Return rows (purpose, GiB) of the memory that is in use."""
        return [["peak, measured in the probe", _gib(self.memory_measured)]]

    def text(self) -> str:
        """Return the plan as text for a terminal."""
        parts = [
            [name, clock(seconds), f"{100 * seconds / self.seconds:.1f} %"]
            for name, seconds in self.parts.items()
        ]
        share = f"{100 * ASSUMED_EFFICIENCY:.0f} %"
        time_rows = [
            [n, clock(full), _hours(n * full), clock(less), _hours(n * less)]
            for n in self.devices
            for full in [self.projected(n)]
            for less in [self.projected(n, ASSUMED_EFFICIENCY)]
        ]
        titles = ["devices", "time", "device-hours", f"time at {share}", "device-hours"]
        return "\n\n".join(
            [
                f"{self.what}\n{self.parameters:,} parameters{self.cost()}",
                text_table(["memory", "GiB"], self.memory_rows()),
                f"{self.images_per_s:.2f} images/s on {self.device} (mean of "
                f"{self.measured_steps} steps of {1e3 * self.step_seconds:.1f} ms, data "
                f"wait {100 * self.data_wait:.1f} %), {self.steps} steps in all",
                text_table(["one device", "time", "share"], parts),
                text_table(titles, time_rows),
                "N devices like this one share every batch. The first time takes them for "
                f"N times as fast, the second for {share} of that: an assumption, which "
                "was not measured. Saving checkpoints is not counted.",
            ]
        )


@dataclass(frozen=True, kw_only=True)
class RunPlan(LoopPlan):
    """The plan of a classifier's training.

    Attributes:
        units: Cost of a step in forward passes of the network, counted in a real step:
            forward, input gradient and weight gradient are one each.
        memory: Bytes of memory for each purpose.
        memory_peak: Bytes at the worst moment, estimated from `memory`.
    """

    units: float
    memory: dict[str, int]
    memory_peak: int

    def cost(self) -> str:
        """Return the cost of a step as text."""
        return (
            f"; a step costs {self.units:.3g} units (forward, input gradient and weight "
            "gradient of the network are one each; clean training is 3)"
        )

    def memory_rows(self) -> list[list[Any]]:
        """Return rows (purpose, GiB) of the memory, with its estimated peak."""
        rows = [[name, _gib(size)] for name, size in self.memory.items() if size]
        rows.append(["peak, estimated", _gib(self.memory_peak)])
        return rows + super().memory_rows()


def plan_run(config: TrainConfig, devices: Sequence[int] = (1,)) -> RunPlan:
    """Build the run of `config`, measure some of its steps, and project it to `devices`.

    Raises:
        ConfigError: Choices contradict each other.
        DataError: The data set cannot be used.
    """
    began = time.monotonic()
    trainer = Trainer(config, dry_run=True)
    setup = time.monotonic() - began
    built = memory_in_use(trainer.device)
    units = Units()
    saved = SavedMemory(
        itertools.chain(tensors_of(trainer.model), tensors_of(trainer.learner.view))
    )
    with use_backend(config.backend):
        batches = itertools.chain.from_iterable(itertools.repeat(trainer.loader))
        trainer.model.train()
        first = next(batches)
        with units.counting(trainer, first.images), saved.recording():
            trainer.update(first)
        timed = time_steps(trainer.update, batches, trainer.device)
        evaluation_seconds = time_evaluation(trainer)
    side, steps = trainer.resolution, len(trainer.loader)
    sides = [side_at(config, side, epoch) for epoch in range(config.epochs)]
    whole_epochs = sum((each / side) ** 2 for each in sides)
    validations = -(-config.epochs // config.eval_every)
    memory = _memory(trainer, saved, built, first)
    what = f"{config.arch} on {trainer.train_set.name} at {side} px, {config.method}"
    if config.adversarial:
        what += f", {config.threat}, {config.attack_steps} steps"
    return RunPlan(
        what=f"{what}; batch {trainer.batch_size}, {config.epochs} epochs",
        device=device_text(trainer.device),
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        units=units.total / len(first.labels),
        memory=memory,
        memory_peak=_peak(memory, recorded=trainer.device.type == "cuda"),
        memory_measured=memory_in_use(trainer.device, peak=True),
        steps=trainer.total_steps,
        **timed,
        parts={
            "setup": setup,
            "training": whole_epochs * steps * timed["step_seconds"],
            "validation": validations * evaluation_seconds(len(trainer.val_set)),
            "test": evaluation_seconds(len(trainer.test_set)),
        },
        devices=tuple(devices),
    )


def _memory(
    trainer: Trainer, saved: SavedMemory, built: int, batch: Batch
) -> dict[str, int]:
    model = trainer.model
    weights = [p for p in model.parameters() if p.requires_grad]
    moments = (
        value
        for state in trainer.optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    kept = saved.peak
    n, pixels = len(batch.labels), batch.images[0].numel()
    judged = min(EVAL_BATCH, len(trainer.test_set))
    attacks = trainer.learner.attack is not None
    parts = {
        "loader": trainer.loader.held_bytes,
        "weights and statistics": own_bytes(tensors_of(model)),
        "attack view": own_bytes(
            tensors_of(trainer.learner.view), but=tensors_of(model)
        ),
    }
    return {
        # Libraries, lists of files: what the process held once the run was built.
        "process": max(0, built - sum(parts.values())),
        **parts,
        "gradients": sum(p.numel() * p.element_size() for p in weights),
        "optimiser": own_bytes(moments),
        # uint8, the float32 iterate, the network's input and the gradient there
        "batch": n * pixels * (1 + 4 + (8 if attacks else 0)),
        TRAIN: kept["train"],
        ATTACK: kept["attack"],
        JUDGE: kept["attack"] * judged // n if attacks else 0,
        # The gradients of output and input of the largest layer, in its backward pass.
        "work space": 2 * saved.largest,
    }


def _peak(memory: dict[str, int], *, recorded: bool) -> int:
    """Return the bytes at the worst moment.

    Passes follow each other and share memory, but a CUDA graph keeps its own.
    """
    train, attack, judge = (memory[name] for name in (TRAIN, ATTACK, JUDGE))
    standing = sum(memory.values()) - train - attack - judge
    if recorded:
        return standing + attack + max(train, judge)
    return standing + max(train, attack, judge)


def device_text(device: torch.device) -> str:
    """Return a device with the name of its hardware."""
    name = f"{cpu_name()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{device} ({name})"


def _gib(size: int) -> str:
    return f"{size / 2**30:.3f}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g}"
