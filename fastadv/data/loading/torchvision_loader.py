"""The loader that decodes and augments in worker processes, in every epoch.

Each request carries its epoch: workers outlive epochs and hold no random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from fastadv.data.config import Backend
from fastadv.data.counter import derive_key
from fastadv.data.loading.geometry import (
    resize_center_crop,
    resized_crop,
    resized_crop_boxes,
)
from fastadv.data.loading.loader import (
    Loader,
    LoaderOptions,
    augmentation_draws,
    load_or_replace,
)
from fastadv.data.loading.workers import outlive_stop_signals, received, unchanged
from fastadv.data.sets.image_set import Augment, ImageSet
from fastadv.errors import DataError
from fastadv.preparation import Preparation

Request = tuple[int, int, int]  # (epoch, side, index)


class Prepared(NamedTuple):
    """A batch as a worker sends it: pixels, and the bad images as (name, reason)."""

    images: torch.Tensor  # uint8 [N, R, R, 3]
    bad: list[tuple[str, str]]


class TorchvisionLoader(Loader):
    """Batches that worker processes decode while training goes on; see `Loader`."""

    backend: Backend = "torchvision"

    def __init__(self, imageset: ImageSet, options: LoaderOptions) -> None:
        super().__init__(imageset, options)
        imageset.prepare()
        self._requests: list[list[Request]] = []
        workers = options.worker_count
        self._loader: DataLoader[Prepared | DataError] = DataLoader(
            Decoder(imageset, options, self.augment),
            batch_sampler=self._requests,
            num_workers=workers,
            collate_fn=unchanged,
            worker_init_fn=outlive_stop_signals,
            persistent_workers=workers > 0,
            pin_memory=torch.device(options.device).type == "cuda",
            # Its own: otherwise every epoch draws from the global generator.
            generator=torch.Generator(),
        )

    def _images(self, batches: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        side = self.resolution
        # The list is the DataLoader's, so it keeps its identity.
        self._requests[:] = [[(self.epoch, side, int(i)) for i in b] for b in batches]
        prepared = on_device(self._prepared(), self.options.device)
        for indices, images in zip(batches, prepared, strict=True):
            yield self._finished(images, indices, side)

    def _prepared(self) -> Iterator[torch.Tensor]:
        for prepared in received(self._loader):
            self._note_bad(prepared.bad)
            yield prepared.images


def on_device(
    batches: Iterator[torch.Tensor], device: str | torch.device
) -> Iterator[torch.Tensor]:
    """Yield batches on `device`; to CUDA one is copied while the last is worked on."""
    device = torch.device(device)
    if device.type != "cuda":
        yield from (images.to(device) for images in batches)
        return
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for images in batches:
        with torch.cuda.stream(stream):
            copying = images.to(device, non_blocking=True), stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copying
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(images: torch.Tensor, copied: torch.cuda.Event) -> torch.Tensor:
    current = torch.cuda.current_stream(images.device)
    current.wait_event(copied)
    images.record_stream(current)  # its memory is not the copying stream's to reuse yet
    return images


@dataclass(eq=False)
class Decoder(Dataset[Prepared | DataError]):
    """What a worker runs: it turns a batch of requests into pixels."""

    imageset: ImageSet
    options: LoaderOptions
    augment: Augment

    def __getitems__(self, requests: list[Request]) -> Prepared | DataError:
        # Returned, not raised: the DataLoader would rebuild the exception from
        # its message alone and lose the type.
        try:
            return self.prepared(requests)
        except DataError as error:
            return error

    def prepared(self, requests: list[Request]) -> Prepared:
        """Decode the requested images and cut them out, all of one side."""
        images: list[NDArray[np.uint8]] = []
        bad: list[tuple[str, str]] = []
        for epoch, side, index in requests:
            image, failed = load_or_replace(self.imageset, index, self.options)
            bad += failed
            images.append(self._cut(image, epoch, side, index))
        return Prepared(torch.from_numpy(np.stack(images)), bad)

    def _cut(
        self, image: NDArray[np.uint8], epoch: int, side: int, index: int
    ) -> NDArray[np.uint8]:
        full = self.options.resolution
        if not self.options.train:
            return resize_center_crop(image, self.options.preparation_of(self.imageset))
        if self.augment == "utrera":
            return augment_utrera(image, side, self.options.seed, epoch, index)
        if self.augment != "rrc":
            return resize_center_crop(image, Preparation(resize=full, crop=full))
        draws = augmentation_draws(self.options.seed, epoch, np.array([index]))
        height, width = (np.array([size]) for size in image.shape[:2])
        return resized_crop(image, resized_crop_boxes(draws, height, width), side)


def augment_utrera(
    image: NDArray[np.uint8], side: int, seed: int, epoch: int, index: int
) -> NDArray[np.uint8]:
    """Augment an image uint8 [H, W, 3] to uint8 [side, side, 3]; see `utrera_transform`.

    Random numbers depend on seed, epoch and index alone, and the global random state
    stays as it was.
    """
    from PIL import Image

    transform = utrera_transform(side)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_key(seed, "utrera", epoch, index))
        return np.array(transform(Image.fromarray(image)), dtype=np.uint8)


def utrera_transform(side: int) -> Callable[[Any], Any]:
    """Return the published transforms of Utrera et al. 2021 (2007.05869) of Pillow images.

    They resize, crop the padded image at random, flip, jitter colours by 0.25 and rotate by
    up to 2 degrees; the result has `side` pixels.
    """
    from torchvision import transforms

    composed: Callable[[Any], Any] = transforms.Compose(
        [
            transforms.Resize(side),
            transforms.RandomCrop(side, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.25, 0.25, 0.25),
            transforms.RandomRotation(2),
        ]
    )
    return composed
