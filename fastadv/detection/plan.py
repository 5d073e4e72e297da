"""The plan of a detector's training: its memory, and its time on given numbers of devices.

The run is built as usual, a few of its steps are done and measured, and the rest is
multiplication. Nothing is written.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.trainer import DetectorTrainer
from fastadv.kernels import use_backend
from fastadv.training.looplog import memory_in_use
from fastadv.training.plan import LoopPlan, device_text
from fastadv.training.probe import time_steps

STEPS, WARMUP = 10, 2
_JUDGED = 4  # images


@dataclass(frozen=True, kw_only=True)
class DetectionPlan(LoopPlan):
    """The plan of a detector's training.

    Attributes:
        trained_parameters: Number of weights that train.
    """

    trained_parameters: int

    def cost(self) -> str:
        """Return how many weights train, as text."""
        return f", of which {self.trained_parameters:,} train"


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
    test = trainer.test_set
    few = trainer.test_set = test.subset(range(min(_JUDGED, len(test))))
    with use_backend(config.backend):
        trainer.detector.train()
        timed = time_steps(
            trainer.update, batches, trainer.device, most=STEPS, warmup=WARMUP
        )
        began = time.monotonic()
        trainer.judge(trainer.detector)
    judged = (time.monotonic() - began) / len(few) * len(test)
    every = config.eval_every
    tests = 1 + (0 if every is None else (config.epochs - 1) // every)
    parameters = list(trainer.detector.parameters())
    what = "Mask R-CNN" if config.masks else "Faster R-CNN"
    return DetectionPlan(
        what=f"{what} on {trainer.facts.arch}, {test.name}; batch {config.batch_size}, "
        f"{config.epochs} epochs",
        device=device_text(trainer.device),
        parameters=sum(p.numel() for p in parameters),
        trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        memory_measured=memory_in_use(trainer.device, peak=True),
        steps=trainer.total_steps,
        parts={
            "setup": setup,
            "training": trainer.total_steps * timed["step_seconds"],
            "tests": tests * judged,
        },
        devices=tuple(devices),
        **timed,
    )
