"""The setting of detection: how a detector was built and trained, and what it was given.

`fastadv.results.settings` lists it among all kinds of rows and says what each needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

_NAMES = {"faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN"}


@dataclass(frozen=True, kw_only=True)
class TrainingAttack:
    """The attack that made the images that a detector was fine-tuned on."""

    norm: str  # Norm of the attack, `l2` or `linf`.
    eps: float  # Radius in pixel units.
    num_steps: int  # Steps of the attack.
    loss: str  # Losses that it maximised, for example `both`.

    def __str__(self) -> str:
        return f"{self.loss}, {self.norm} {self.eps:g}, {self.num_steps} steps"


@dataclass(frozen=True, kw_only=True)
class DetectionSetting:
    """How a detector was built and trained, and on which images it was judged."""

    kind: ClassVar[str] = "detection"

    detector: str  # `faster_rcnn`, or `mask_rcnn` which finds masks, too.
    split: str = "test"  # Split of the data set.
    # Number of images that it was judged on; None for all of the split.
    num_images: int | None = None
    scratch: bool = False  # Whether the backbone began with random weights.
    # Number of stages of the backbone that did not train; None if unknown.
    frozen_stages: int | None = None
    frozen_norm: bool | None = None  # Whether BatchNorm of the backbone was frozen.
    min_size: int | None = None  # Length in pixels that shorter sides were resized to.
    max_size: int | None = None  # Greatest length of longer sides after that.
    anchor_scale: float | None = None  # Side of anchors in units of the stride.
    epochs: int | None = None  # Epochs of training.
    batch_size: int | None = None  # Images per update.
    lr: float | None = None  # Learning rate.
    num_train: int | None = None  # Number of images trained on.
    # The attack that it was fine-tuned under; None for images as they are.
    attack: TrainingAttack | None = None
    corruption: str | None = None  # Kind of corruption of the images; None for none.
    severity: int | None = None  # Its severity, from 1 to 5.

    def key(self) -> tuple[Any, ...]:
        """Return what was built, trained and judged, but for the number of images."""
        return (*self.training(), self.split, self.corruption, self.severity)

    def training(self) -> tuple[Any, ...]:
        """Return what was built and how it was trained."""
        return (
            self.detector,
            self.scratch,
            self.frozen_stages,
            self.frozen_norm,
            self.min_size,
            self.max_size,
            self.anchor_scale,
            self.epochs,
            self.batch_size,
            self.lr,
            self.attack,
        )

    def label(self) -> str:
        """Return the detector, its training and what was done to the images."""
        phrases = [_NAMES.get(self.detector, self.detector)]
        if self.scratch:
            phrases.append("from scratch")
        if self.epochs is not None:
            phrases.append(f"{self.epochs} epochs")
        if self.min_size is not None:
            phrases.append(f"shorter side {self.min_size} px")
        if self.frozen_stages is not None:
            phrases.append(f"{self.frozen_stages} frozen stages")
        if self.attack is not None:
            phrases.append(f"fine-tuned under attack ({self.attack})")
        if self.corruption is not None:
            phrases.append(f"{self.corruption} {self.severity}")
        return ", ".join(phrases)
