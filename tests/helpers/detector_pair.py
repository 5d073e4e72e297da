"""Training of a detector in which nothing is drawn: of one process, or of each of two ranks.

python -m detector_pair OUT SOURCE DATA, as one of the ranks of the environment.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.trainer import DetectorTrainer
from fastadv.runs.distributed import World, join_ranks

MANY = 10**6


def config(out: str, source: str, data: str, **changes: Any) -> DetectTrainConfig:
    values: dict[str, Any] = {
        "min_size": (64,), "max_size": 96, "width": 8, "sampled_boxes": MANY,
        "proposals": 20, "batch_size": 2, "epochs": 2, "lr": 0.05, "warmup_steps": 0,
        "workers": 0, "device": "cpu", "augment": "none",
    }  # fmt: skip
    return DetectTrainConfig(source=source, data=data, out=out, **values | changes)


def trainer(chosen: DetectTrainConfig, world: World | None = None) -> DetectorTrainer:
    """Return a trainer whose losses are means over equally many boxes of each image.

    Every anchor and every proposal counts, and no proposal is suppressed by another.
    """
    made = DetectorTrainer(chosen, world=world)
    rpn: Any = made.detector.rpn
    rpn.fg_bg_sampler.batch_size_per_image = MANY
    rpn.proposal_matcher.low_threshold = rpn.proposal_matcher.high_threshold
    rpn.nms_thresh = 1.0
    return made


def main() -> None:
    torch.set_num_threads(1)
    with join_ranks("cpu") as world:
        trainer(config(*sys.argv[1:]), world).fit()


if __name__ == "__main__":
    main()
