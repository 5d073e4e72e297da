"""The loader that keeps decoded images in memory and augments batches in one operator.

Images are one uint8 array, on the device when there is room. Those that are not square
lose their ends to the centre crop taken at storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.data.config import Backend
from fastadv.data.decoding import BadImage
from fastadv.data.loading.geometry import (
    Boxes,
    resize_center_crop,
    resized_crop_boxes,
)
from fastadv.data.loading.loader import (
    MEMORY_SHARE,
    Loader,
    LoaderOptions,
    cut_out,
    no_readable_image,
    replacements,
    storage_side,
)
from fastadv.data.sets.image_set import ImageSet
from fastadv.preparation import Preparation
from fastadv.progress import track

_DECODE_CHUNK = 64  # images per task: small ones cost less than scheduling them


class MemoryLoader(Loader):
    """Batches of images decoded at construction; see `Loader`.

    Attributes:
        exact: Whether the pixels are those of every other loader. Where random resized
            crops are cut from images that had to be resized to be kept, they are not.

    Raises:
        BadImage: With `on_bad_image="fail"`, the first bad image.
        DataError: The set, or one class of it, has no readable image.
    """

    backend: Backend = "memory"

    def __init__(self, imageset: ImageSet, options: LoaderOptions) -> None:
        super().__init__(imageset, options)
        how = self.preparation
        if options.train:
            side = storage_side(imageset, options)
            how = Preparation(resize=side, crop=side)
        self.exact = True
        self._store = torch.from_numpy(self._decode(how))
        device = torch.device(options.device)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self._store.numel() <= MEMORY_SHARE * free:
                self._store = self._store.to(device)
        self._log_bad_images()

    def _decode(self, how: Preparation) -> NDArray[np.uint8]:
        """Return all images, uint8 [n, side, side, 3]; bad ones replaced."""
        n, side = len(self.imageset), how.crop
        cropped = self.options.train and self.augment == "rrc"
        store = np.empty((n, side, side, 3), dtype=np.uint8)

        def decode(chunk: range) -> list[tuple[int, BadImage]]:
            bad = []
            for i in chunk:
                try:
                    image = self.imageset.load(i)
                except BadImage as error:
                    if self.options.on_bad_image == "fail":
                        raise
                    bad.append((i, error))
                else:
                    store[i] = resize_center_crop(image, how)
                    if cropped and image.shape != store[i].shape:
                        self.exact = False
            return bad

        chunks = [range(n)[i : i + _DECODE_CHUNK] for i in range(0, n, _DECODE_CHUNK)]
        bad: dict[int, BadImage] = {}
        name = f"{self.imageset.name}/{self.imageset.split}"
        what = f"chunks of {_DECODE_CHUNK} images decoded, {name}"
        with ThreadPoolExecutor(max(1, self.options.worker_count)) as pool:
            for failed in track(pool.map(decode, chunks), len(chunks), what):
                bad.update(failed)
        self._note_bad([(error.name, error.reason) for error in bad.values()])
        for i in bad:
            if not self.options.train:  # it will be left out
                store[i] = 0
                continue
            others = replacements(self.imageset, i, self.options.seed)
            other = next((r for r in others if r not in bad), None)
            if other is None:
                raise no_readable_image(self.imageset, i, self.bad_images)
            store[i] = store[other]
        return store

    @property
    def held_bytes(self) -> int:
        """Bytes in which the decoded images are kept."""
        return self._store.numel()

    def _images(self, batches: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        device, store, side = self.options.device, self._store, self.resolution
        for indices in batches:
            if self.options.train:
                boxes = self._boxes(indices, store.shape[1])
                colours = self._colours(indices)
                images = cut_out(store, indices, boxes, side, colours)
            else:
                rows = torch.from_numpy(indices).to(store.device, non_blocking=True)
                images = store[rows]
            yield images.to(device, non_blocking=True)

    def _boxes(self, indices: NDArray[np.int64], size: int) -> Boxes:
        if self.augment != "rrc":
            return super()._boxes(indices, size)
        sides = np.full(len(indices), size, dtype=np.int64)
        return resized_crop_boxes(self._draws(indices), sides, sides)
