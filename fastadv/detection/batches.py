"""Batches of images with objects, in the order of `EpochOrder`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastadv.data.config import OnBadImage
from fastadv.data.counter import derive_key, permutation
from fastadv.data.decoding import BadImage
from fastadv.data.loading.loader import default_workers
from fastadv.data.loading.order import EpochOrder, OrderOptions
from fastadv.data.loading.workers import outlive_stop_signals, received, unchanged
from fastadv.detection.augment import augment, without_crowds
from fastadv.detection.sets import DetectionSet, Target
from fastadv.errors import DataError
from fastadv.ranges import AT_LEAST_0

log = logging.getLogger(__name__)

_Request = tuple[int, int]  # (epoch, index)


@dataclass(frozen=True, kw_only=True)
class DetectionLoaderOptions(OrderOptions):
    """How batches are made of a set of images with objects."""

    aspect_factor: Annotated[int | None, AT_LEAST_0] = None
    """Groups of like shape that batches are made of; see `aspect_groups`. None makes none."""
    augment: Literal["flip", "ssd", "none"] = "none"
    """Augmentation in training; see `fastadv.detection.augment`."""
    device: str | torch.device = "cpu"
    """Where batches are put."""
    on_bad_image: OnBadImage = "skip"
    """With skip, a bad image is counted, named, and in training replaced by another, in
    evaluation left out; with fail, it is an error."""
    workers: Annotated[int | None, AT_LEAST_0] = None
    """Decoding processes (0: none); by default one per core this process may use, at
    most 8."""


@dataclass
class DetectionBatch:
    """Images of one step, each of its own size.

    Attributes:
        images: Pixels in 0..255, uint8 [3, H, W] each, on the device.
        targets: The objects of each image, on the device; see `DetectionSet.target`. In
            training without regions of crowds.
        indices: Position of each image in its set.
    """

    images: list[Tensor]
    targets: list[Target]
    indices: list[int]


@dataclass
class _Prepared:
    """A batch as a worker sends it, with bad images as (name, reason)."""

    batch: DetectionBatch
    bad: list[tuple[str, str]]


class DetectionLoader:
    """Batches of one set, one epoch per iteration; its state is that of `EpochOrder`.

    Iterating to the end advances to the next epoch. `load_state_dict` makes the next
    iteration start inside an epoch.

    Args:
        images: The set.
        options: How batches are made.

    Attributes:
        order: Which images come when, and how far the epoch has come.
        bad_images: Pairs (name, reason) of every unreadable image met so far.

    Raises:
        DataError: The set is empty.
    """

    def __init__(self, images: DetectionSet, options: DetectionLoaderOptions) -> None:
        self.images, self.options = images, options
        groups = None
        if options.aspect_factor is not None:
            groups = aspect_groups(images, options.aspect_factor)
        self.order = EpochOrder(images, options, groups)
        self.bad_images: list[tuple[str, str]] = []
        self._requests: list[list[_Request]] = []
        workers = default_workers() if options.workers is None else options.workers
        self._loader: DataLoader[_Prepared | DataError] = DataLoader(
            _Reader(images, options),
            batch_sampler=self._requests,
            num_workers=workers,
            collate_fn=unchanged,
            worker_init_fn=outlive_stop_signals,
            persistent_workers=workers > 0,
            # Its own: otherwise every epoch draws from the global generator.
            generator=torch.Generator(),
        )

    @property
    def epoch(self) -> int:
        """The epoch of the current or next iteration."""
        return self.order.epoch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch on this rank."""
        return len(self.order)

    def __iter__(self) -> Iterator[DetectionBatch]:
        """Yield the batches of `self.epoch`, then advance it."""
        batches = self.order.begin()
        # The list is the DataLoader's, so it keeps its identity.
        self._requests[:] = [[(self.epoch, int(i)) for i in b] for b in batches]
        for indices, prepared in zip(batches, received(self._loader), strict=True):
            # Before the yield: whoever holds a batch has consumed it.
            self.order.take(indices)
            self._note_bad(prepared.bad)
            if prepared.batch.images:
                yield on_device(prepared.batch, self.options.device)
        self.order.end()

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, as values that JSON can hold."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`: the same batches, to the bit, as without a stop."""
        self.order.load_state_dict(state)

    def _note_bad(self, bad: list[tuple[str, str]]) -> None:
        what = "replaced by another" if self.options.train else "left out"
        for name, reason in bad:
            if (name, reason) not in self.bad_images:
                self.bad_images.append((name, reason))
                log.warning("bad image %s (%s): %s", name, reason, what)


def aspect_groups(images: DetectionSet, factor: int) -> NDArray[np.int64]:
    """Return a group for each image by the ratio of its width to its height, int64 [N].

    Args:
        images: The set.
        factor: With 0, there are two groups: tall images, and others. With k above, 2k + 1
            bounds lie between 1/2 and 2, evenly on the scale of logarithms.

    Source:
        `group_by_aspect_ratio.py` of torchvision's detection reference, whose default is
        3; Detectron2 has two groups.
    """
    ratios = np.array([each.width / each.height for each in images.annotated])
    bounds = 2 ** np.linspace(-1, 1, 2 * factor + 1) if factor else np.ones(1)
    groups: NDArray[np.int64] = np.digitize(ratios, bounds).astype(np.int64)
    return groups


def on_device(batch: DetectionBatch, device: str | torch.device) -> DetectionBatch:
    """Return a batch with its tensors on a device."""
    if torch.device(device).type == "cpu":
        return batch

    def moved(value: Any) -> Any:
        return value.to(device, non_blocking=True) if torch.is_tensor(value) else value

    targets = [{k: moved(v) for k, v in each.items()} for each in batch.targets]
    return DetectionBatch([moved(i) for i in batch.images], targets, batch.indices)


@dataclass(eq=False)
class _Reader(Dataset[_Prepared | DataError]):
    """What a worker runs: it turns a batch of requests into images and targets."""

    images: DetectionSet
    options: DetectionLoaderOptions

    def __getitems__(self, requests: list[_Request]) -> _Prepared | DataError:
        try:
            return self._prepared(requests)
        except DataError as error:
            return error

    def _prepared(self, requests: list[_Request]) -> _Prepared:
        batch, bad = DetectionBatch([], [], []), list[tuple[str, str]]()
        train = self.options.train
        for epoch, index in requests:
            found = self._read(index, bad)
            if found is None:
                continue
            image, target = found
            if train:
                target = without_crowds(target)
                image, target = augment(
                    image, target, self.options.augment, self.options.seed, epoch, index
                )
            batch.images.append(image)
            batch.targets.append(target)
            batch.indices.append(index)
        return _Prepared(batch, bad)

    def _read(
        self, index: int, bad: list[tuple[str, str]]
    ) -> tuple[Tensor, Target] | None:
        """Return an image, in training another one where it is bad, else None then."""
        try:
            return self.images[index]
        except BadImage as error:
            if self.options.on_bad_image == "fail":
                raise
            bad.append((error.name, error.reason))
        if not self.options.train:
            return None
        for position in permutation(
            derive_key(self.options.seed, "replace", index), len(self.images)
        ):
            try:
                return self.images[int(position)]
            except BadImage as error:
                bad.append((error.name, error.reason))
        raise DataError(
            f"no image of {self.images.name}/{self.images.split} can be read; the first "
            f"is {bad[0][0]}: {bad[0][1]}"
        )
