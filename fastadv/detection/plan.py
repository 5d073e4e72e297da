"""The plan of a detector's training: its memory, and its time on given numbers of devices.

The run is built as usual, a few of its steps are done and measured, and the rest is
multiplication. Nothing is written.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.trainer import DetectorTrainer
from fastadv.progress import clock
from fastadv.text_tables import text_table
from fastadv.training.looplog import memory_in_use
from fastadv.training.plan import ASSUMED_EFFICIENCY
from fastadv.training.probe import time_steps

STEPS, WARMUP = 10, 2
_JUDGED = 4  # images


@dataclass(frozen=True)
class DetectionPlan:
    """Measurements of a run, and what follows from them.

    Attributes:
        parameters: Number of weights.
        trained_parameters: Number of weights that train.
        memory_gib: Most memory in use while measuring, in GiB.
        steps: Number of steps of the whole run.
        measured_steps: Number of steps that were timed.
        step_seconds: Their mean seconds.
        images_per_s: Images per second of training.
        data_wait: Share of a step spent waiting for the batch, in [0, 1].
        parts: Seconds of each part of the whole run on this device.
        devices: Numbers of devices to project to.
    """

    parameters: int
    trained_parameters: int
    memory_gib: float
    steps: int
    measured_steps: int
    step_seconds: float
    images_per_s: float
    data_wait: float
    parts: dict[str, float]
    devices: tuple[int, ...]

    def projected(self, devices: int) -> float:
        """Return seconds on a number of devices, with the efficiency that is assumed."""
        speed = 1.0 if devices == 1 else devices * ASSUMED_EFFICIENCY
        setup = self.parts["setup"]
        return setup + (sum(self.parts.values()) - setup) / speed

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the projection included."""
        rows = [{"devices": n, "seconds": self.projected(n)} for n in self.devices]
        return asdict(self) | {
            "projection": rows,
            "assumed_efficiency": ASSUMED_EFFICIENCY,
        }

    def text(self) -> str:
        """Return the plan as text for a terminal."""
        parts = [[name, clock(seconds)] for name, seconds in self.parts.items()]
        rows = [
            [n, clock(self.projected(n)), f"{n * self.projected(n) / 3600:.3g}"]
            for n in self.devices
        ]
        return "\n\n".join(
            [
                f"{self.parameters:,} parameters, of which {self.trained_parameters:,} "
                f"train; at most {self.memory_gib:.2f} GiB in use",
                f"{self.images_per_s:.2f} images/s (mean of {self.measured_steps} steps of "
                f"{self.step_seconds:.2f} s, data wait {100 * self.data_wait:.1f} %), "
                f"{self.steps} steps in all",
                text_table(["one device", "time"], parts),
                text_table(["devices", "time", "device-hours"], rows),
                "N devices like this one share every batch, and are taken for "
                f"{100 * ASSUMED_EFFICIENCY:.0f} % of N times as fast: an assumption, which "
                "was not measured. Saving checkpoints is not counted.",
            ]
        )


def plan_detection(
    config: DetectTrainConfig, devices: Sequence[int] = (1,)
) -> DetectionPlan:
    """Build the run of `config`, measure some of its steps, and project it to `devices`.

    Raises:
        ConfigError: Choices contradict each other.
        DataError: The set cannot be used.
    """
    began = time.monotonic()
    trainer = DetectorTrainer(config, dry_run=True)
    setup = time.monotonic() - began
    batches = itertools.chain.from_iterable(itertools.repeat(trainer.loader))
    trainer.detector.train()
    timed = time_steps(
        trainer.update, batches, trainer.device, most=STEPS, warmup=WARMUP
    )
    test = trainer.test_set
    few = test.subset(range(min(_JUDGED, len(test))))
    trainer.test_set, began = few, time.monotonic()
    trainer.judge(trainer.detector)
    judged = (time.monotonic() - began) / len(few) * len(test)
    every = config.eval_every
    tests = 1 + (0 if every is None else (config.epochs - 1) // every)
    parameters = list(trainer.detector.parameters())
    return DetectionPlan(
        parameters=sum(p.numel() for p in parameters),
        trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        memory_gib=memory_in_use(trainer.device, peak=True) / 2**30,
        steps=trainer.total_steps,
        parts={
            "setup": setup,
            "training": trainer.total_steps * timed["step_seconds"],
            "tests": tests * judged,
        },
        devices=tuple(devices),
        **timed,
    )
