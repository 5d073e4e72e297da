"""The options of a loader, which are the keywords of `make_loader`, and their checks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from fastadv.data.config import OnBadImage
from fastadv.data.loading.geometry import usual_preparation
from fastadv.data.loading.order import OrderOptions
from fastadv.data.sets.image_set import Augment, ImageSet
from fastadv.errors import ConfigError
from fastadv.machine import ranks_on_this_machine, usable_cores
from fastadv.preparation import Preparation
from fastadv.ranges import AT_LEAST_0, AT_LEAST_1, Range


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(OrderOptions):
    """How to make batches of an image set; the keywords of `make_loader`.

    Raises:
        ConfigError: A value that cannot work.
    """

    resolution: Annotated[int, AT_LEAST_1]
    """Side of the images delivered, in pixels; where a run changes it, the largest."""
    augment: Literal["auto", "none", "crop_flip", "rrc", "utrera"] = "auto"
    """Random resized crop and flip (rrc), reflect-padded crop and flip (crop_flip), that
    of `loading.utrera`, or what suits the set (auto). Evaluation zooms by 256/224 with
    rrc, unless `preparation` says otherwise."""
    preparation: Preparation | None = None
    """How images are resized and cropped in evaluation, with a crop of `resolution`; None:
    as after training with `augment`."""
    color_jitter: Annotated[float | None, Range(0, 1, "[]")] = 0.0
    """Brightness, contrast and saturation vary by this share in training; None: what
    the augmentation implies, 0.1 with rrc as published and else 0."""
    lighting: Annotated[float | None, Range(0, 1, "[]")] = 0.0
    """Standard deviation of the lighting noise along the principal components of
    ImageNet's colours; None: 0.05 with rrc as published and else 0."""
    device: str | torch.device = "cpu"
    """Where batches are put."""
    on_bad_image: OnBadImage = "skip"
    """With skip, a bad image is counted, named and replaced by one of its class; with fail,
    it is an error."""
    workers: Annotated[int | None, AT_LEAST_0] = None
    """Decoding threads (memory, dali) or processes (torchvision; 0: none); by
    default one per core this process may use (ranks on one machine share its cores), at
    most 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        how = self.preparation
        if how is not None:
            how.check()
        if how is not None and how.crop != self.resolution:
            raise ConfigError(
                f"`preparation` crops {how.crop} px, and `resolution` is "
                f"{self.resolution}; they must be equal, as in `preparation.at(resolution)`"
            )

    def augment_of(self, images: ImageSet) -> Augment:
        """Return the augmentation of a set: its own default where this is `"auto"`."""
        return images.augment_default if self.augment == "auto" else self.augment

    def preparation_of(self, images: ImageSet) -> Preparation:
        """Return how images are resized and cropped in evaluation."""
        usual = usual_preparation(self.augment_of(images), self.resolution)
        return self.preparation or usual

    def unusual_preparation(self, images: ImageSet) -> Preparation | None:
        """Return `preparation`; None if it is the usual one of the augmentation."""
        usual = usual_preparation(self.augment_of(images), self.resolution)
        return None if self.preparation == usual else self.preparation

    @property
    def worker_count(self) -> int:
        """`workers`, or its default: this rank's share of the cores, at most eight."""
        if self.workers is not None:
            return self.workers
        # Slurm binds each of its tasks to cores of their own; elsewhere ranks share all.
        sharing = 1 if "SLURM_CPUS_PER_TASK" in os.environ else ranks_on_this_machine()
        return max(1, min(8, usable_cores() // sharing))
