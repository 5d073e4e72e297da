"""How batches arrive: the options and the contract of every loader.

Every random choice is a function of (seed, epoch, image index), so nothing depends on
workers, on batches already taken, or on global random state.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.data.config import Backend, OnBadImage
from fastadv.data.counter import derive_key, permutation, uniforms
from fastadv.data.decoding import BadImage
from fastadv.data.loading.colour import (
    COLOUR_DRAWS,
    PUBLISHED_JITTER,
    PUBLISHED_LIGHTING,
    colour_changes,
)
from fastadv.data.loading.geometry import (
    DRAWS,
    Boxes,
    crop_flip_boxes,
    usual_preparation,
)
from fastadv.data.loading.order import EpochOrder, OrderOptions
from fastadv.data.sets.image_set import Augment, ImageSet, sampled_sizes
from fastadv.errors import ConfigError, DataError
from fastadv.kernels.crops import resized_crops
from fastadv.machine import ranks_on_this_machine, usable_cores
from fastadv.preparation import Preparation
from fastadv.ranges import AT_LEAST_0, AT_LEAST_1, Range

log = logging.getLogger(__name__)

# Images that have to be reduced to be stored stay this much larger than random resized
# crops of them, so that a full-size crop is still shrunk slightly, never enlarged.
RRC_STORAGE = 1.15
# Share of the available memory that decoded images may take: the model and its attack
# need the rest.
MEMORY_SHARE = 0.25
_BLANK = 32  # side in pixels of what stands in for a bad image that is left out
_SAMPLE = 64  # images looked at to learn whether all are squares of one size


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(OrderOptions):
    """How to make batches of an image set; the keywords of `make_loader`."""

    resolution: Annotated[int, AT_LEAST_1]
    """Side of the images delivered, in pixels; where a run changes it, the largest."""
    augment: Literal["auto", "none", "crop_flip", "rrc", "utrera"] = "auto"
    """Random resized crop and flip (rrc), reflect-padded crop and flip (crop_flip), that
    of `utrera_transform`, or what suits the set (auto). Evaluation zooms by 256/224 with
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
    channels: int = 3
    """Channels of the images: red, green and blue, or their luma alone (ITU-R 601, as in
    Pillow's mode L; grey images keep their values) for grey networks."""
    device: str | torch.device = "cpu"
    """Where batches are put."""
    on_bad_image: OnBadImage = "skip"
    """With skip, a bad image is counted, named, and in training replaced by one of its
    class, in evaluation left out; with fail, it is an error."""
    workers: Annotated[int | None, AT_LEAST_0] = None
    """Decoding threads (memory, dali) or processes (torchvision; 0: none); by
    default one per core this process may use (ranks on one machine share its cores), at
    most 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (how := self.preparation) is None:
            return
        how.check()
        if how.crop != self.resolution:
            raise ConfigError(
                f"`preparation` crops {how.crop} px, and `resolution` is "
                f"{self.resolution}; they must be equal, as in `preparation.at(resolution)`"
            )

    def augment_of(self, images: ImageSet) -> Augment:
        """Return the augmentation of a set: its own default where this is `"auto"`."""
        return images.augment_as(self.augment)

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
        return default_workers() if self.workers is None else self.workers


def default_workers() -> int:
    """Return this rank's share of the cores, at most eight."""
    # Slurm binds each of its tasks to cores of their own; elsewhere ranks share all.
    sharing = 1 if "SLURM_CPUS_PER_TASK" in os.environ else ranks_on_this_machine()
    return max(1, min(8, usable_cores() // sharing))


def luma(images: torch.Tensor) -> torch.Tensor:
    """Return the luma [N, H, W, 1] of images uint8 [N, H, W, 3], rounded as Pillow does."""
    red, green, blue = images.to(torch.int32).unbind(-1)
    luma = 19595 * red + 38470 * green + 7471 * blue + (1 << 15)
    return (luma >> 16).to(torch.uint8).unsqueeze(-1)


@dataclass
class Batch:
    """Images of one step, as a loader yields them; it unpacks as (images, labels).

    Attributes:
        images: Pixels in 0..255, uint8 [N, 3, H, W] on the device, channels_last: the
            memory is [N, H, W, 3].
        labels: Class ids, int64 [N] on the device.
        indices: Positions in the image set, int64 [N] on the device. In training, the
            replacement of a bad image keeps its position; in evaluation, bad images are
            left out, so that none is judged twice.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield images and labels, so that `images, labels = batch` works."""
        yield self.images
        yield self.labels


class Loader(ABC):
    """Batches of one image set, one epoch per iteration, in the order of `EpochOrder`.

    Iterating to the end advances to the next epoch. Leaving an iteration
    early and starting another begins the same epoch again; only
    `load_state_dict` makes the next iteration start inside an epoch.

    Attributes:
        imageset: Where images come from.
        options: How batches are made.
        order: Which images come when, and how far the epoch has come.
        augment: The augmentation `options.augment` stands for.
        preparation: How images are resized and cropped in evaluation.
        resolution: Side of the images delivered; see `set_resolution`.
        color_jitter: What `options.color_jitter` stands for.
        lighting: What `options.lighting` stands for.
        bad_images: Pairs (name, reason) of every undecodable image met so far.
        backend: `"dali"`, `"memory"` or `"torchvision"`.

    Raises:
        DataError: The set is empty.
        ConfigError: `drop_last` leaves no batch.
    """

    backend: Backend

    def __init__(self, imageset: ImageSet, options: LoaderOptions) -> None:
        self.imageset, self.options = imageset, options
        self.order = EpochOrder(imageset, options)
        self.augment: Augment = options.augment_of(imageset)
        self.preparation = options.preparation_of(imageset)
        cropped = options.train and self.augment == "rrc"
        jitter, lighting = options.color_jitter, options.lighting
        self.color_jitter = PUBLISHED_JITTER * cropped if jitter is None else jitter
        self.lighting = PUBLISHED_LIGHTING * cropped if lighting is None else lighting
        self.resolution = options.resolution
        self.bad_images: list[tuple[str, str]] = []
        self._logged = 0

    @abstractmethod
    def _images(self, batches: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Yield uint8 [N, R, R, 3] on the device for each array of indices."""

    @property
    def epoch(self) -> int:
        """The epoch of the current or next iteration."""
        return self.order.epoch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch on this rank."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of `self.epoch`, then advance it."""
        batches = self.order.begin()
        device = torch.device(self.options.device)
        for indices, images in zip(batches, self._images(batches), strict=True):
            # Before the yield: whoever holds a batch has consumed it.
            self.order.take(indices)
            if self.bad_images and not self.options.train:
                readable = self._readable(indices)
                rows = torch.from_numpy(np.flatnonzero(readable))
                images = images[rows.to(images.device, non_blocking=True)]
                indices = indices[readable]
                if not len(indices):
                    continue
            labels = torch.from_numpy(self.imageset.labels[indices])
            if self.options.channels == 1:
                images = luma(images)
            yield Batch(
                images.permute(0, 3, 1, 2),
                labels.to(device, non_blocking=True),
                torch.from_numpy(indices).to(device, non_blocking=True),
            )
        self._log_bad_images()
        if 0 < len(self.imageset) <= len(self.bad_images) and not self.options.train:
            raise no_readable_image(self.imageset, None, self.bad_images)
        self.order.end()

    @property
    def held_bytes(self) -> int:
        """Bytes in which images are kept, on the host or the device."""
        return 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; see `EpochOrder.set_epoch`."""
        self.order.set_epoch(epoch)

    def set_resolution(self, side: int) -> None:
        """Deliver training images of another side from the next epoch on.

        The same crops are taken; they are resized to `side`.

        Args:
            side: Pixels; at most `options.resolution`, which is the largest of the run.

        Raises:
            ConfigError: The side is larger, or the loader is one for evaluation.
        """
        largest = self.options.resolution
        if not self.options.train and side != largest:
            raise ConfigError(
                f"resolution {side} is not that of this evaluation loader, {largest}; "
                "make another loader"
            )
        if not 1 <= side <= largest:
            raise ConfigError(
                f"resolution {side} is outside [1, {largest}]; make the loader with the "
                "largest resolution of the run"
            )
        self.resolution = side

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, as values that JSON can hold."""
        return self.order.state_dict() | {"resolution": self.resolution}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`: the same batches, to the bit, as without a stop.

        Raises:
            ConfigError: The state was saved with another seed, mode or a larger side.
            DataError: The image set is not the one the state was saved for.
        """
        self.order.load_state_dict(state)
        self.set_resolution(int(state.get("resolution", self.options.resolution)))

    def _draws(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        return augmentation_draws(self.options.seed, self.epoch, indices)

    def _colours(self, indices: NDArray[np.int64]) -> torch.Tensor | None:
        """Return the colour changes of images, float32 [n, 6]; None: none."""
        o = self.options
        if not o.train or not (self.color_jitter or self.lighting):
            return None
        key = derive_key(o.seed, "colour", self.epoch)
        draws = uniforms(key, indices, COLOUR_DRAWS)
        return torch.from_numpy(colour_changes(draws, self.color_jitter, self.lighting))

    def _finished(
        self, images: torch.Tensor, indices: NDArray[np.int64], side: int
    ) -> torch.Tensor:
        """Do on the device what decoding left: shifts, flips and colours."""
        colours = self._colours(indices)
        shifted = self.options.train and self.augment == "crop_flip"
        if not shifted and colours is None and images.shape[1] == side:
            return images
        boxes = self._boxes(indices, images.shape[1])
        return cut_out(images, np.arange(len(indices)), boxes, side, colours)

    def _boxes(self, indices: NDArray[np.int64], size: int) -> Boxes:
        """Return the crops of training images that are squares of `size` pixels."""
        if self.augment == "crop_flip":
            return crop_flip_boxes(self._draws(indices), size)
        whole = np.full(len(indices), size)
        zero = np.zeros(len(indices), dtype=np.int64)
        return Boxes(zero, zero, whole, whole, zero > 0)

    def _readable(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which images were decoded and not replaced by another of their class."""
        bad = {name for name, _ in self.bad_images}
        names = (self.imageset.describe(int(index)) for index in indices)
        return np.array([name not in bad for name in names], dtype=np.bool_)

    def _note_bad(self, bad: list[tuple[str, str]]) -> None:
        self.bad_images.extend(b for b in bad if b not in self.bad_images)

    def _log_bad_images(self) -> None:
        for name, reason in self.bad_images[self._logged :]:
            what = "replaced by one of its class" if self.options.train else "left out"
            log.warning("bad image %s (%s): %s", name, reason, what)
        self._logged = len(self.bad_images)


def cut_out(
    images: torch.Tensor,
    rows: NDArray[np.int64],
    boxes: Boxes,
    side: int,
    colours: torch.Tensor | None,
) -> torch.Tensor:
    """Cut one box out of each of the `rows` of uint8 images; see `resized_crops`."""
    table = torch.from_numpy(np.stack(boxes, axis=1).astype(np.int32))
    cut: torch.Tensor = resized_crops(
        images, torch.from_numpy(rows), table, side, colours
    )
    return cut


def augmentation_draws(
    seed: int, epoch: int, indices: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the draws of the crop and flip of each image, [n, DRAWS]."""
    return uniforms(derive_key(seed, "augment", epoch), indices, DRAWS)


def replacements(imageset: ImageSet, index: int, seed: int) -> Iterator[int]:
    """Yield the other images of the class of `index`, in a seeded order."""
    members = np.flatnonzero(imageset.labels == imageset.labels[index])
    order = permutation(derive_key(seed, "replace", index), len(members))
    yield from (int(m) for m in members[order] if m != index)


def load_or_replace(
    imageset: ImageSet, index: int, options: LoaderOptions
) -> tuple[NDArray[np.uint8], list[tuple[str, str]]]:
    """Load an image, or in training the first readable one that may replace it.

    Returns:
        uint8 [H, W, 3], and (name, reason) of the images that failed. In evaluation, an
        image that failed is a blank one.

    Raises:
        BadImage: It is bad and `on_bad_image` is "fail".
        DataError: No image of its class can be decoded, in training.
    """
    try:
        return imageset.load(index), []
    except BadImage as error:
        if options.on_bad_image == "fail":
            raise
        bad = [(error.name, error.reason)]
    if not options.train:  # the loader leaves it out
        return np.zeros((_BLANK, _BLANK, 3), dtype=np.uint8), bad
    for other in replacements(imageset, index, options.seed):
        try:
            return imageset.load(other), bad
        except BadImage as error:
            bad.append((error.name, error.reason))
    raise no_readable_image(imageset, index, bad)


def no_readable_image(
    imageset: ImageSet, index: int | None, bad: list[tuple[str, str]]
) -> DataError:
    """Return the error for a class, or with None a set, all of whose images are bad."""
    what, advice = "no image", "restore the images"
    if index is not None:
        what = f"no image of class {imageset.classes[int(imageset.labels[index])]!r}"
        advice = "restore it or remove the class"
    return DataError(
        f"{what} in {imageset.name}/{imageset.split} can be decoded ({len(bad)} tried; "
        f"{bad[0][0]}: {bad[0][1]}); {advice}"
    )


def storage_side(imageset: ImageSet, options: LoaderOptions) -> int:
    """Return the side at which decoded images are kept in memory, in pixels.

    Squares of one size stay as they are where random resized crops are cut from them.
    Others are reduced to a common side, never enlarged, and other crops result.
    """
    if not (options.train and options.augment_of(imageset) == "rrc"):
        return options.resolution
    if (side := common_side(imageset)) is not None:
        return side
    shorter = map(min, sampled_sizes(imageset, _SAMPLE))
    return min([round(RRC_STORAGE * options.resolution), *shorter])


def common_side(imageset: ImageSet) -> int | None:
    """Return the side of images that are squares of one size, by a sample; else None."""
    sizes = set(sampled_sizes(imageset, _SAMPLE))
    if len(sizes) != 1:
        return None
    [(height, width)] = sizes
    return height if height == width else None
