"""The DALI loader, which decodes crops by NVIDIA DALI in every epoch.

The pipeline is given bytes and crop windows, so every loader delivers the same order and
crops. Images that DALI would decode differently are decoded by `decode_rgb`.
"""

from __future__ import annotations

import functools
import importlib
import io
import itertools
import logging
import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.data.config import Backend
from fastadv.data.decoding import MAX_PIXELS, BadImage
from fastadv.data.loading.geometry import (
    central,
    resized_crop_boxes,
    scaled_size,
)
from fastadv.data.loading.loader import Loader, LoaderOptions, augmentation_draws
from fastadv.data.loading.torchvision_loader import Decoder
from fastadv.data.sets.image_set import ImageSet
from fastadv.data.sets.subsets import files_and_positions
from fastadv.errors import ConfigError
from fastadv.preparation import Preparation

log = logging.getLogger(__name__)

_AHEAD = 2  # batches being read, and as many being decoded, before they are needed
# Device and pinned host memory that a decoding thread has from the start, in bytes: what
# DALI's ImageNet example reserves, so that no image makes it allocate on the way.
_CUDA_MEMORY = {
    "device_memory_padding": 211_025_920,
    "host_memory_padding": 140_544_512,
}


class DALILoader(Loader):
    """Batches decoded by DALI; see `Loader`.

    Raises:
        ConfigError: DALI cannot serve this set on this device.
    """

    backend: Backend = "dali"

    def __init__(self, imageset: ImageSet, options: LoaderOptions) -> None:
        super().__init__(imageset, options)
        found = files_and_positions(imageset)
        reason = declined_reason(imageset, options)
        if reason is not None or found is None:
            raise ConfigError(
                f"the dali loader cannot run: {reason}; use the torchvision loader"
            )
        imageset.prepare()
        self._files, self._positions = found
        self._decoder = Decoder(imageset, options, self.augment)
        self._pipeline: Any = None
        self._running: deque[_Fed] = deque()

    @property
    def _crops(self) -> bool:
        """Whether the pipeline takes random resized crops; otherwise whole images."""
        return self.options.train and self.augment == "rrc"

    def _images(self, batches: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        epoch, side = self.epoch, self.resolution
        waiting = iter(batches)
        reading: deque[Future[_Fed]] = deque()
        if self._running:
            # An iteration was left early: what its pipeline still holds is of no use.
            self._pipeline = None
        running = self._running = deque()
        pool = ThreadPoolExecutor(max(1, self.options.worker_count))
        try:
            while True:
                room = 2 * _AHEAD - len(reading) - len(running)
                for indices in itertools.islice(waiting, room):
                    reading.append(pool.submit(self._read, indices, epoch, side))
                while reading and len(running) < _AHEAD:
                    running.append(reading.popleft().result())
                    self._start(running[-1])
                if not running:
                    return
                fed = running[0]
                images = self._decoded(running, epoch, side)
                self._note_bad(fed.bad)
                yield self._finished(images, fed.indices, side)
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, indices: NDArray[np.int64], epoch: int, side: int) -> _Fed:
        """Read one batch with its crop windows; decode the images that DALI shall not."""
        data = [_placeholder()] * len(indices)
        sizes = np.full((len(indices), 2), _PLACEHOLDER_SIDE, dtype=np.int64)
        own = {}
        bad: list[tuple[str, str]] = []
        for row, index in enumerate(indices):
            try:
                encoded = self._files.read(int(self._positions[index]))
                size = _plain_jpeg_size(encoded)
            except BadImage:
                size = None  # the decoder below finds it bad, too, and replaces it
            if size is None:
                prepared = self._decoder.prepared([(epoch, side, int(index))])
                own[row] = prepared.images[0]
                bad += prepared.bad
            else:
                data[row], sizes[row] = encoded, size
        inputs = self._windows(sizes, indices, epoch, side)
        inputs["encoded"] = [np.frombuffer(d, dtype=np.uint8) for d in data]
        return _Fed(indices, inputs, own, bad)

    def _windows(
        self,
        sizes: NDArray[np.int64],
        indices: NDArray[np.int64],
        epoch: int,
        side: int,
    ) -> dict[str, Any]:
        """Return the pipeline's inputs for images of `sizes` [n, (height, width)]."""
        if self._crops:
            draws = augmentation_draws(self.options.seed, epoch, indices)
            boxes = resized_crop_boxes(draws, *sizes.T)
            return {
                "start": np.stack([boxes.top, boxes.left], 1).astype(np.int32),
                "shape": np.stack([boxes.height, boxes.width], 1).astype(np.int32),
                "size": np.full(sizes.shape, side, dtype=np.float32),
                "flip": boxes.flip.astype(np.int32),
            }
        crop = self.options.resolution
        how = self.preparation
        if self.options.train:
            how = Preparation(resize=crop, crop=crop)
        scaled = [scaled_size(int(h), int(w), how) for h, w in sizes]
        corners = [(central(h, crop), central(w, crop)) for h, w in scaled]
        return {
            "start": np.zeros(sizes.shape, dtype=np.int32),
            "shape": sizes.astype(np.int32),
            "size": np.array(scaled, dtype=np.float32),
            "corner": np.array(corners, dtype=np.int32),
        }

    def _start(self, fed: _Fed) -> None:
        if self._pipeline is None:
            o = self.options
            self._pipeline = _pipeline(
                # A last image alone joins the batch before.
                batch_size=o.batch_size + 1,
                threads=max(1, o.worker_count),
                device=torch.device(o.device),
                crop=None if self._crops else o.resolution,
            )
        for name, values in fed.inputs.items():
            self._pipeline.feed_input(name, values)
        self._pipeline.schedule_run()

    def _decoded(self, running: deque[_Fed], epoch: int, side: int) -> torch.Tensor:
        """Take the images of the first batch out of the pipeline; uint8 [n, S, S, 3]."""
        fed = running.popleft()
        device = torch.device(self.options.device)
        cuda = device.type == "cuda"
        stream = torch.cuda.current_stream(device) if cuda else None
        try:
            (output,) = self._pipeline.share_outputs(cuda_stream=stream)
            images: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
            self._pipeline.release_outputs()
        # What DALI cannot decode after all ends its pipeline. Ours says which it is, and
        # what to do about it.
        except RuntimeError as error:
            log.debug("DALI gave up a batch: %s", error)
            requests = [(epoch, side, int(i)) for i in fed.indices]
            prepared = self._decoder.prepared(requests)
            fed.bad[:] = prepared.bad
            self._pipeline = None
            for later in running:
                self._start(later)
            return prepared.images.to(device)
        for row, image in fed.own.items():
            images[row] = image.to(device, non_blocking=True)
        return images


@dataclass
class _Fed:
    indices: NDArray[np.int64]  # positions in the image set, [n]
    inputs: dict[str, Any]  # what the pipeline is fed, by name
    own: dict[int, torch.Tensor]  # by row what DALI does not decode, uint8 [S, S, 3]
    bad: list[tuple[str, str]]  # (name, reason) of undecodable images


def declined_reason(imageset: ImageSet, options: LoaderOptions) -> str | None:
    """Return why DALI cannot serve this set with these options, or None."""
    if files_and_positions(imageset) is None:
        return f"{imageset.name}/{imageset.split} is not a set of encoded files"
    filter_ = options.preparation_of(imageset).interpolation
    if not options.train and filter_ != "bilinear":
        return (
            f"its {filter_} filter is not that of Pillow; it is used for bilinear only"
        )
    device = torch.device(options.device)
    if device.type not in ("cpu", "cuda"):
        return f"DALI does not run on {device}"
    return _probe(device)


@functools.cache
def _probe(device: torch.device) -> str | None:
    """Decode a small image: a DALI of another CUDA version imports, and fails here."""
    try:
        pipeline = _pipeline(batch_size=1, threads=1, device=device, crop=None)
        square = np.full((1, 2), _PLACEHOLDER_SIDE)
        inputs = {
            "encoded": [np.frombuffer(_placeholder(), dtype=np.uint8)],
            "start": np.zeros((1, 2), dtype=np.int32),
            "shape": square.astype(np.int32),
            "size": square.astype(np.float32),
            "flip": np.zeros(1, dtype=np.int32),
        }
        for name, values in inputs.items():
            pipeline.feed_input(name, values)
        pipeline.schedule_run()
        pipeline.share_outputs()
        pipeline.release_outputs()
    except ImportError as error:
        return (
            f"nvidia.dali does not import ({error}); pip install 'fastadv[dali-cuda130]', "
            "or with CUDA 12 'fastadv[dali-cuda120]'"
        )
    except (OSError, RuntimeError, AttributeError, TypeError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        return (
            f"this nvidia.dali does not work on {device} ({first}); install the build "
            f"for the CUDA of torch ({torch.version.cuda or 'none'}) and the driver"
        )
    return None


# Stands in the pipeline for an image that DALI does not decode.
_PLACEHOLDER_SIDE = 8


@functools.cache
def _placeholder() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (_PLACEHOLDER_SIDE, _PLACEHOLDER_SIDE)).save(out, "JPEG")
    return out.getvalue()


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) of an 8-bit YCbCr JPEG that is all there, else None."""
    # DALI fills what is missing at the end with gray, where `decode_rgb` finds it bad.
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return None
    at, size = 2, None
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:  # the picture begins
            return size
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            bits, height, width, components = struct.unpack(
                ">BHHB", data[at + 4 : at + 10]
            )
            if bits != 8 or components != 3 or not 0 < height * width <= MAX_PIXELS:
                return None
            size = (height, width)
        # Adobe's marker says whether the three components are YCbCr (1) or RGB (0).
        if marker == 0xEE and data[at + 4 : at + 9] == b"Adobe" and data[at + 15] != 1:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _pipeline(
    *, batch_size: int, threads: int, device: torch.device, crop: int | None
) -> Any:
    """Build the pipeline: decode a window, resize it, flip it (crop=None) or crop it."""
    fn = importlib.import_module("nvidia.dali.fn")
    types = importlib.import_module("nvidia.dali.types")
    cuda = device.type == "cuda"
    pipeline = importlib.import_module("nvidia.dali.pipeline").Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if cuda else None,
        # Runs are scheduled by hand; a longer queue would want as many before the first
        # result, which the last batches of an epoch do not have.
        prefetch_queue_depth=1,
        exec_dynamic=True,  # outputs stay valid as long as torch holds them
    )
    with pipeline:

        def fed(name: str) -> Any:
            return fn.external_source(name=name, device="cpu")

        images = fn.decoders.image_slice(
            fed("encoded"),
            device="mixed" if cuda else "cpu",
            start=fed("start"),
            shape=fed("shape"),
            axes=[0, 1],
            output_type=types.RGB,
            # As Pillow: neither turned as EXIF says, nor colours merely repeated.
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            **(_CUDA_MEMORY if cuda else {}),
        )
        images = fn.resize(images, size=fed("size"), interp_type=types.INTERP_LINEAR)
        if crop is None:
            images = fn.flip(images, horizontal=fed("flip"), vertical=0)
        else:
            corner = fed("corner")
            images = fn.slice(images, start=corner, shape=[crop, crop], axes=[0, 1])
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline
