"""Projected gradient ascent on the losses of a detector."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from fastadv.attacks.engine import check_counts, check_pixels
from fastadv.detection.view import LOSSES, DetectorView, Target, seeded_sampling
from fastadv.kernels import ball_init, normalize, pgd_step_
from fastadv.phases import phase
from fastadv.threat import ThreatModel

LossName: TypeAlias = Literal["classification", "regression", "both", "all"]

_SEEDS: Final = 2**63  # Seeds of PyTorch's generators are below this.


@dataclass(frozen=True)
class AttackedImages:
    """What an attack on a detector made of a batch of N images.

    Attributes:
        images: Adversarial images, float32 [3, H, W] each, in [0, 1] and within the radius
            of the clean ones.
        losses: What was maximised, before each step, float32 [steps]; the proposals it
            counts are sampled anew each time.
        nonfinite: Number of gradient elements that were not finite and moved nothing,
            int64 [1].
        seconds: Wall time as the host sees it.
    """

    images: list[Tensor]
    losses: Tensor
    nonfinite: Tensor
    seconds: float


class DetectorAttack:
    """Projected gradient ascent on the losses of a Faster or Mask R-CNN.

    Each step is the input gradient of the frozen `DetectorView` and one fused kernel. The
    ball is around the image in its own pixels, before the detector resizes it, and the
    padding of a batch never counts. The losses sample proposals, as in training; the
    samples are drawn from the seed. The last iterate counts, since average precision is no
    property of a single image.

    Args:
        threat: Norm and radius, in pixel units.
        num_steps: Number of gradient steps, at least 1.
        step_size: Length of a step in pixel units; None means 2.5 eps / num_steps.
        random_start: Begin at a random point of the ball instead of the clean image.
        loss: Which losses are maximised, a key of `LOSSES`.
        seed: Seed of random starts and sampled proposals.

    Raises:
        ValueError: A number is out of range, or the loss is unknown.

    Source:
        Madry et al. 2018 for the steps; Zhang and Wang 2019 (1907.10310) for the losses of
        classification and of localisation as objectives.

    Example:
        >>> attack = DetectorAttack(ThreatModel("linf", "8/255"), loss="classification")
        >>> attack.describe()["objective"], attack.step_size * 255
        ('classification', 2.0)
    """

    name = "pgd"

    def __init__(
        self,
        threat: ThreatModel,
        num_steps: int = 10,
        step_size: float | None = None,
        random_start: bool = True,
        loss: LossName = "both",
        *,
        seed: int = 0,
    ) -> None:
        check_counts(num_steps=num_steps)
        if step_size is None:
            step_size = 2.5 * threat.eps / num_steps
        if not (math.isfinite(step_size) and step_size >= 0):
            raise ValueError(f"step_size={step_size} must be a finite number >= 0")
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r} is unknown; accepted: {', '.join(LOSSES)}")
        self.threat, self.num_steps, self.step_size = (
            threat,
            num_steps,
            float(step_size),
        )
        self.random_start, self.loss, self.seed = random_start, loss, seed

    def describe(self) -> dict[str, Any]:
        """Return the settings in plain values, as `AttackRecord` stores them."""
        return {
            "name": self.name,
            **asdict(self.threat),
            "num_steps": self.num_steps,
            "step_size": self.step_size,
            "random_start": self.random_start,
            "num_restarts": 1,
            "objective": self.loss,
            "keep": "last",
        }

    def prepare(self, detector: nn.Module) -> DetectorView:
        """Return the view of `detector` that calls accept in its place, for many batches.

        Raises:
            ValueError: A view of other losses was given, or masks are missing.
            TypeError: It is no R-CNN of torchvision.
        """
        if not isinstance(detector, DetectorView):
            return DetectorView(detector, self.loss)
        if detector.losses != self.loss:
            raise ValueError(
                f"the view has the losses {detector.losses!r}, the attack wants "
                f"{self.loss!r}; give the attack the detector"
            )
        detector.refresh_if_stale()
        return detector

    def __call__(
        self,
        detector: nn.Module,
        images: Sequence[Tensor],
        targets: Sequence[Target],
        *,
        offset: int = 0,
        seed: int | None = None,
    ) -> AttackedImages:
        """Attack a batch of N images, which may differ in size.

        Args:
            detector: The detector, in any mode, or what `prepare` returned.
            images: Clean images on the detector's device, [3, H, W] each; all uint8 in
                0..255 or all float in [0, 1].
            targets: Objects of each image: `boxes`, `labels` and, where their loss counts,
                `masks`. Crowd regions (`iscrowd`) do not count.
            offset: Number of the first image in the random sequence.
            seed: Seed of this call; None takes that of the attack.

        Raises:
            ValueError: Shapes, numbers or ranges do not fit.
            TypeError: It is no R-CNN of torchvision.
        """
        began = time.perf_counter()
        view = self.prepare(detector)
        seed = self.seed if seed is None else seed
        clean, sizes = _on_canvas(images, targets)
        mean, std = view.statistics()
        if clean.device != mean.device:
            raise ValueError(
                f"images are on {clean.device}, the detector on {mean.device}; move them "
                "to one device"
            )
        objects = view.resized(targets, sizes)
        x = self._start(images, clean, seed, offset)
        z = normalize(x, mean=mean, std=std)
        nonfinite = torch.zeros(1, dtype=torch.int64, device=x.device)
        losses = []
        with seeded_sampling((seed + offset * 0x9E3779B1) % _SEEDS, x.device):
            for _ in range(self.num_steps):
                with torch.enable_grad(), phase("attack forward"):
                    total = view(z.requires_grad_(), sizes, objects)
                with phase("attack backward"):
                    (grad,) = torch.autograd.grad(total, z)
                z.requires_grad_(False)
                losses.append(total.detach())
                with phase("fused step"):
                    pgd_step_(
                        x,
                        clean,
                        grad,
                        norm=self.threat.norm,
                        step_size=self.step_size,
                        eps=self.threat.eps,
                        mean=mean,
                        std=std,
                        z=z,
                        nonfinite=nonfinite,
                    )
        found = [
            each[:, :height, :width].contiguous()
            for each, (height, width) in zip(x, sizes, strict=True)
        ]
        taken = time.perf_counter() - began
        return AttackedImages(found, torch.stack(losses).float(), nonfinite, taken)

    def _start(
        self, images: Sequence[Tensor], clean: Tensor, seed: int, offset: int
    ) -> Tensor:
        """Return the first iterates on the canvas, in memory of their own.

        Images are drawn for one by one, so that a start does not depend on the sizes of
        the other images of a batch, and the padding stays as it is.
        """
        if not self.random_start:
            if clean.dtype == torch.uint8:
                return clean.float().div_(255)
            return clean.to(torch.float32, copy=True)
        x = torch.zeros_like(clean, dtype=torch.float32)
        for i, image in enumerate(images):
            start = ball_init(
                image.detach()[None].contiguous(),
                norm=self.threat.norm,
                eps=self.threat.eps,
                seed=seed,
                offset=offset + i,
            )
            x[i, :, : image.shape[1], : image.shape[2]] = start[0]
        return x


def _on_canvas(
    images: Sequence[Tensor], targets: Sequence[Target]
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return images in the upper left corners of one batch, and their sizes."""
    if not images or len(images) != len(targets):
        raise ValueError(
            f"there are {len(images)} images and {len(targets)} targets; give as many "
            "targets as images, and at least one"
        )
    for image in images:
        if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(
                f"an image has shape {list(image.shape)}; expected [3, H, W]"
            )
        if image.dtype != torch.uint8:
            check_pixels(image)
    kinds = {(each.dtype, each.device) for each in images}
    if len(kinds) > 1:
        raise ValueError(
            "images of one batch differ in dtype or device: "
            + ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        )
    sizes = [(int(each.shape[1]), int(each.shape[2])) for each in images]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    canvas = torch.zeros(
        (len(images), 3, height, width), dtype=images[0].dtype, device=images[0].device
    ).contiguous(memory_format=torch.channels_last)
    for i, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        canvas[i, :, :h, :w] = image.detach()
    return canvas, sizes
