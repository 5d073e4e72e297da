"""The streaming loader: decode and augment in worker processes, every epoch.

For sets that do not fit in memory. Each request carries its epoch, so workers
stay alive between epochs and hold no random state. Not for small sets, where
`memory` is many times faster.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from fastadv.data.geometry import (
    crop_flip_boxes,
    padded_crop,
    plain_geometry,
    resize_center_crop,
    resized_crop,
    resized_crop_boxes,
)
from fastadv.data.loaders import (
    Backend,
    Loader,
    LoaderOptions,
    augmentation_draws,
    load_or_replace,
)
from fastadv.data.sources import Augment, ImageSet
from fastadv.errors import DataError

Request = tuple[int, int]  # (epoch, index)


class _Prepared(NamedTuple):
    images: torch.Tensor  # uint8 [N, R, R, 3]
    bad: list[tuple[str, str]]


class TorchvisionLoader(Loader):
    """Batches decoded on the fly; see `Loader`."""

    backend: Backend = "torchvision"

    def __init__(self, imageset: ImageSet, options: LoaderOptions) -> None:
        super().__init__(imageset, options)
        imageset.prepare()
        self._requests = _Requests()
        workers = options.worker_count
        self._loader: DataLoader[_Prepared | DataError] = DataLoader(
            _Decoder(imageset, options, self.augment),
            batch_sampler=self._requests,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_outlive_stop_signals,
            persistent_workers=workers > 0,
            pin_memory=torch.device(options.device).type == "cuda",
            # Its own: otherwise every epoch draws from the global generator.
            generator=torch.Generator(),
        )

    def _images(self, batches: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        self._requests.batches = [[(self.epoch, int(i)) for i in b] for b in batches]
        for prepared in self._loader:
            if isinstance(prepared, DataError):
                raise prepared
            self._note_bad(prepared.bad)
            yield prepared.images.to(self.options.device, non_blocking=True)


def _outlive_stop_signals(worker: int) -> None:
    """Leave stops to the trainer: a worker that died of one, as when a scheduler signals
    every process of a job, would tear the training step under way.

    SIGTERM from the process that made the worker still ends it; that is how Python ends
    its children when it exits.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class _Requests(Sampler[list[Request]]):
    """The batches of the current epoch, replaced before each iteration."""

    def __init__(self) -> None:
        self.batches: list[list[Request]] = []

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Decoder(Dataset[_Prepared | DataError]):
    """Turns a batch of requests into pixels, in a worker."""

    def __init__(
        self, imageset: ImageSet, options: LoaderOptions, augment: Augment
    ) -> None:
        self.imageset = imageset
        self.options = options
        self.augment = augment

    def __getitems__(self, requests: list[Request]) -> _Prepared | DataError:
        # Returned, not raised: the DataLoader would rebuild the exception from
        # its message alone and lose the type.
        try:
            return self._prepared(requests)
        except DataError as err:
            return err

    def _prepared(self, requests: list[Request]) -> _Prepared:
        side = self.options.resolution
        images = np.empty((len(requests), side, side, 3), dtype=np.uint8)
        bad: list[tuple[str, str]] = []
        for out, (epoch, index) in zip(images, requests, strict=True):
            image, failed = load_or_replace(
                self.imageset, index, self.options.seed, self.options.on_bad_image
            )
            bad += failed
            out[...] = self._augmented(image, epoch, index)
        return _Prepared(torch.from_numpy(images), bad)

    def _augmented(
        self, image: NDArray[np.uint8], epoch: int, index: int
    ) -> NDArray[np.uint8]:
        side = self.options.resolution
        if not self.options.train:
            return resize_center_crop(image, *plain_geometry(self.augment, side))
        if self.augment == "none":
            return resize_center_crop(image, side, side)
        draws = augmentation_draws(self.options.seed, epoch, np.array([index]))
        if self.augment == "crop_flip":
            square = resize_center_crop(image, side, side)
            return padded_crop(square, crop_flip_boxes(draws, side))
        height, width = (np.array([size]) for size in image.shape[:2])
        return resized_crop(image, resized_crop_boxes(draws, height, width), side)


def _unchanged(prepared: Any) -> Any:
    return prepared
