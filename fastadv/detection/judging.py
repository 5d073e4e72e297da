"""What a detector finds in images: as they are, under attack, or corrupted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastadv.data.corruptions.corrupt import check_corruptions, corrupt
from fastadv.detection.attack import DetectorAttack
from fastadv.detection.metrics import Findings
from fastadv.detection.rois import quick_rois
from fastadv.device import exact_float32
from fastadv.models.quick_convs import quick_convs


class Batch(Protocol):
    """Images of one step, as `fastadv.detection.batches` yields them."""

    @property
    def images(self) -> list[Tensor]:
        """Images, uint8 [3, H, W] in 0..255 each."""

    @property
    def targets(self) -> list[dict[str, Any]]:
        """The objects of each image; see `Findings.add`."""

    @property
    def indices(self) -> list[int]:
        """Position of each image in its set."""


@dataclass(frozen=True)
class Corruption:
    """One of the fifteen corruptions of ImageNet-C, in one severity.

    Attributes:
        kind: Its name, for example `fog`.
        severity: From 1 (least) to 5.

    Raises:
        ConfigError: The kind or the severity is unknown.

    Source:
        Hendrycks and Dietterich 2019; Michaelis et al. 2019 (1907.07484) for detection.
    """

    kind: str
    severity: int

    def __post_init__(self) -> None:
        check_corruptions([self.kind], [self.severity])

    def __str__(self) -> str:
        return f"{self.kind} {self.severity}"

    def __call__(self, image: Tensor, index: int, seed: int = 0) -> Tensor:
        """Return a corrupted copy of an image, uint8 [3, H, W].

        Args:
            image: The image, uint8 [3, H, W].
            index: Its position in the set, which draws depend on.
            seed: Seed of the draws.
        """
        pixels = image.permute(1, 2, 0).cpu().numpy()
        found = corrupt(pixels, self.kind, self.severity, seed=seed, index=index)
        return torch.from_numpy(found).permute(2, 0, 1).to(image.device)


@dataclass(frozen=True)
class Judged:
    """What was found in all images of a set, under one condition.

    Attributes:
        findings: Detections and true objects, from which metrics follow.
        seconds: Wall time, with the wait for images.
        nonfinite: Number of gradient elements of the attack that were not finite.
    """

    findings: Findings
    seconds: float
    nonfinite: int = 0


@dataclass(frozen=True)
class JudgedBatch:
    """What a detector found in the images of one batch.

    Attributes:
        batch: The batch, with its clean images.
        images: The images that the detector was given, float32 [3, H, W] each, in [0, 1].
        found: The detections of each.
        nonfinite: Number of gradient elements of the attack that were not finite.
    """

    batch: Batch
    images: list[Tensor]
    found: list[dict[str, Tensor]]
    nonfinite: int


def judged_batches(
    detector: nn.Module,
    batches: Iterable[Batch],
    *,
    attack: DetectorAttack | None = None,
    corruption: Corruption | None = None,
    seed: int = 0,
) -> Generator[JudgedBatch, None, None]:
    """Yield what a detector finds in the images of each batch.

    The mode of the detector comes back as it was when the iteration ends. What is found
    in a batch does not depend on the batches before it.

    Args:
        detector: A Faster or Mask R-CNN of torchvision, on the device of the batches.
        batches: Images with their objects.
        attack: Attacks every image before it is given to the detector; None does not.
        corruption: Corrupts every image, before the attack if there is one.
        seed: Seed of the corruption; the attack has its own.
    """
    device = next(detector.parameters()).device
    view = None if attack is None else attack.prepare(detector)
    with evaluating(detector):
        for batch in batches:
            given, nonfinite = batch.images, 0
            if corruption is not None:
                given = [
                    corruption(image, index, seed)
                    for image, index in zip(given, batch.indices, strict=True)
                ]
            if attack is None or view is None:
                images = [image.float() / 255 for image in given]
            else:
                with exact_float32():
                    attacked = attack(
                        view, given, batch.targets, offset=batch.indices[0]
                    )
                images, nonfinite = attacked.images, int(attacked.nonfinite)
            quick = quick_convs(device), quick_rois(device)
            with torch.no_grad(), exact_float32(), quick[0], quick[1]:
                found = detector(images)
            yield JudgedBatch(batch, images, found, nonfinite)


def evaluate_detector(
    detector: nn.Module,
    batches: Iterable[Batch],
    classes: Sequence[str],
    *,
    masks: bool = False,
    attack: DetectorAttack | None = None,
    corruption: Corruption | None = None,
    seed: int = 0,
    note: Callable[[int], None] = lambda images: None,
) -> Judged:
    """Collect what a detector finds in images.

    The mode of the detector, its statistics and its gradients come back as they were.

    Args:
        detector: A Faster or Mask R-CNN of torchvision, on the device of the batches.
        batches: Images with their objects.
        classes: Names of the classes; label k is `classes[k - 1]`.
        masks: Whether masks are collected, too.
        attack: Attacks every image before it is given to the detector; None does not.
        corruption: Corrupts every image, before the attack if there is one.
        seed: Seed of the corruption; the attack has its own.
        note: Is called with the number of images that are done.

    Raises:
        ValueError: Images, objects and classes do not fit together; see `Findings.add`.
    """
    began = time.perf_counter()
    findings = Findings(classes, masks)
    nonfinite, done = 0, 0
    found = judged_batches(
        detector, batches, attack=attack, corruption=corruption, seed=seed
    )
    with contextlib.closing(found):  # modes come back after an error, too
        for each in found:
            for one, target in zip(each.found, each.batch.targets, strict=True):
                findings.add(one, target)
            nonfinite, done = nonfinite + each.nonfinite, done + len(each.images)
            note(done)
    return Judged(findings, time.perf_counter() - began, nonfinite)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode inside the block, then each module in its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
