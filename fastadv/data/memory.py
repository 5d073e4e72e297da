"""The in-memory loader: decode once, then index and augment whole batches.

Images are kept as one uint8 array, on the device when there is room, so an
epoch costs neither decoding nor transfer. Images that are not square lose
their ends to the centre crop taken at storage; where that matters, or the set
is large, use the streaming loader.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fastadv.data.geometry import (
    Boxes,
    crop_flip_boxes,
    crop_padding,
    plain_geometry,
    resize_center_crop,
    resized_crop_boxes,
)
from fastadv.data.images import BadImage
from fastadv.data.loaders import (
    MEMORY_SHARE,
    Backend,
    Loader,
    LoaderOptions,
    no_readable_image,
    replacements,
    storage_side,
)
from fastadv.data.sources import ImageSet

_DECODE_CHUNK = 64  # images per task: small ones cost less than scheduling them
_SAMPLE_CHUNK = 128  # images per grid_sample: bounds its float32 copies


class MemoryLoader(Loader):
    """Batches of images decoded at construction; see `Loader`.

    Raises:
        BadImage: With `on_bad_image="fail"`, the first bad image.
        DataError: The set, or one class of it, has no readable image.
    """

    backend: Backend = "memory"

    def __init__(self, imageset: ImageSet, options: LoaderOptions) -> None:
        super().__init__(imageset, options)
        side = storage_side(self.augment, options)
        shorter = side
        if not options.train:
            shorter, side = plain_geometry(self.augment, options.resolution)
        self._store = torch.from_numpy(self._decode(shorter, side))
        device = torch.device(options.device)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self._store.numel() <= MEMORY_SHARE * free:
                self._store = self._store.to(device)
        self._log_bad_images()

    def _decode(self, shorter: int, side: int) -> NDArray[np.uint8]:
        """Return all images, uint8 [n, side, side, 3]; bad ones replaced."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        n = len(self.imageset)
        store = np.empty((n, side, side, 3), dtype=np.uint8)

        def decode(chunk: range) -> list[tuple[int, BadImage]]:
            bad = []
            for i in chunk:
                try:
                    image = self.imageset.load(i)
                except BadImage as err:
                    if self.options.on_bad_image == "fail":
                        raise
                    bad.append((i, err))
                else:
                    store[i] = resize_center_crop(image, shorter, side)
            return bad

        chunks = [
            range(i, min(i + _DECODE_CHUNK, n)) for i in range(0, n, _DECODE_CHUNK)
        ]
        bad: dict[int, BadImage] = {}
        bar = tqdm(
            total=n,
            desc=f"decoding {self.imageset.name}/{self.imageset.split}",
            unit="image",
            delay=2,
            disable=not sys.stderr.isatty(),
        )
        with bar, ThreadPoolExecutor(max(1, self.options.worker_count)) as pool:
            for chunk, failed in zip(chunks, pool.map(decode, chunks), strict=True):
                bad.update(failed)
                bar.update(len(chunk))
        self._note_bad([(err.name, err.reason) for err in bad.values()])
        for i in bad:
            others = replacements(self.imageset, i, self.options.seed)
            other = next((r for r in others if r not in bad), None)
            if other is None:
                raise no_readable_image(self.imageset, i, self.bad_images)
            store[i] = store[other]
        return store

    def _images(self, batches: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        device = torch.device(self.options.device)
        for indices in batches:
            taken = torch.from_numpy(indices).to(self._store.device)
            if not self.options.train or self.augment == "none":
                images = self._store[taken]
            elif self.augment == "crop_flip":
                boxes = crop_flip_boxes(self._draws(indices), self.options.resolution)
                images = _padded_crops(self._store, taken, boxes)
            else:
                side = np.full(len(indices), self._store.shape[1], dtype=np.int64)
                boxes = resized_crop_boxes(self._draws(indices), side, side)
                images = _resized_crops(
                    self._store, taken, boxes, self.options.resolution
                )
            yield images.to(device, non_blocking=True)


def _padded_crops(
    store: torch.Tensor, indices: torch.Tensor, boxes: Boxes
) -> torch.Tensor:
    """Crop and flip by index arithmetic; nothing is padded in memory."""
    side = store.shape[1]
    pad = crop_padding(side)
    along = np.arange(side)[None, :]
    columns = np.where(boxes.flip[:, None], along[:, ::-1], along)
    rows = torch.from_numpy(_reflected(boxes.top[:, None] + along - pad, side))
    cols = torch.from_numpy(_reflected(boxes.left[:, None] + columns - pad, side))
    rows, cols = rows.to(store.device), cols.to(store.device)
    return store[indices[:, None, None], rows[:, :, None], cols[:, None, :]]


def _reflected(position: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    out: NDArray[np.int64] = side - 1 - np.abs(side - 1 - np.abs(position))
    return out


def _resized_crops(
    store: torch.Tensor, indices: torch.Tensor, boxes: Boxes, resolution: int
) -> torch.Tensor:
    """Cut boxes out and resize them bilinearly; uint8 [N, R, R, 3]."""
    side = store.shape[1]
    theta = np.zeros((len(indices), 2, 3), dtype=np.float32)
    theta[:, 0, 0] = np.where(boxes.flip, -boxes.width, boxes.width) / side
    theta[:, 1, 1] = boxes.height / side
    theta[:, 0, 2] = (2 * boxes.left + boxes.width) / side - 1
    theta[:, 1, 2] = (2 * boxes.top + boxes.height) / side - 1
    maps = torch.from_numpy(theta).to(store.device)
    out = torch.empty(
        (len(indices), resolution, resolution, 3),
        dtype=torch.uint8,
        device=store.device,
    )
    for part in range(0, len(indices), _SAMPLE_CHUNK):
        rows = slice(part, part + _SAMPLE_CHUNK)
        images = store[indices[rows]].permute(0, 3, 1, 2).float()
        grid = functional.affine_grid(
            maps[rows], [len(images), 3, resolution, resolution], align_corners=False
        )
        cut = functional.grid_sample(
            images, grid, padding_mode="border", align_corners=False
        )
        out[rows] = cut.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return out
