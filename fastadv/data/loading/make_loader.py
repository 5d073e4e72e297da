"""The choice of a loader for an image set: `make_loader`.

`auto` looks at free memory, at whether the images are files, and at the device.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, get_args

import torch

from fastadv.data.config import Backend
from fastadv.data.loading.dali_loader import DALILoader, declined_reason
from fastadv.data.loading.loader import (
    MEMORY_SHARE,
    Loader,
    LoaderOptions,
    common_side,
    storage_side,
)
from fastadv.data.loading.memory_loader import MemoryLoader
from fastadv.data.loading.torchvision_loader import TorchvisionLoader
from fastadv.data.sets.image_set import ImageSet
from fastadv.errors import ConfigError, unknown_name
from fastadv.machine import available_memory, ranks_on_this_machine

log = logging.getLogger(__name__)

_LOADERS: dict[str, type[Loader]] = {
    "memory": MemoryLoader,
    "dali": DALILoader,
    "torchvision": TorchvisionLoader,
}


def make_loader(
    imageset: ImageSet, *, backend: Backend = "auto", **options: Any
) -> Loader:
    """Make the loader of an image set.

    Args:
        imageset: Where images come from.
        backend: One of four. memory: decode once and keep; torchvision: decode in worker
            processes, every epoch; dali: decode by NVIDIA DALI, every epoch, or where
            that cannot run, which is logged once, as torchvision does; auto: see
            `choose_backend`.
        **options: The fields of `LoaderOptions`; `batch_size`, `resolution`
            and `train` are required.

    Raises:
        ConfigError: An option that cannot work.
        DataError: The set has no images.
        BadImage: With `on_bad_image="fail"` in memory, the first bad image.

    Example:
        >>> from fastadv.data import ShapeTex, make_loader
        >>> images = ShapeTex(64, resolution=32, cache=False)
        >>> loader = make_loader(images, batch_size=16, resolution=32, train=True)
        >>> len(loader), next(iter(loader)).images.dtype
        (4, torch.uint8)
    """
    if backend not in get_args(Backend):
        raise ConfigError(unknown_name("loader backend", backend, get_args(Backend)))
    chosen = LoaderOptions(**options)
    streamed = chosen.train and chosen.augment == "utrera"  # of single images
    if streamed and backend not in ("auto", "torchvision"):
        raise ConfigError(
            f"the {backend} loader cannot augment as utrera; use torchvision, or auto"
        )
    if backend == "auto":
        backend = choose_backend(imageset, chosen)
        if backend == "memory":
            loader = MemoryLoader(imageset, chosen)
            if loader.exact:
                return loader
            backend = _streaming(imageset, chosen)  # an image was of another size
    elif backend == "dali":
        # A run may go on where DALI is not: on another node, after an update of CUDA.
        backend = _dali_or_not(imageset, chosen)
    return _LOADERS[backend](imageset, chosen)


def choose_backend(imageset: ImageSet, options: LoaderOptions) -> Backend:
    """Choose the backend that `auto` stands for: `"memory"`, `"dali"` or `"torchvision"`.

    It is memory if the set takes at most a quarter of what is available, and if that
    changes no pixel: random resized crops are cut from images in memory only where these
    are squares of one size. Otherwise DALI on CUDA, where it decodes on the device, if it
    can run; its absence is logged once. Training images augmented as by Utrera et al. are
    always decoded by torchvision.
    """
    if options.train and options.augment == "utrera":
        return "torchvision"
    cropped = options.train and options.augment_of(imageset) == "rrc"
    same = not cropped or common_side(imageset) is not None
    if same and _fits(imageset, options):
        return "memory"
    return _streaming(imageset, options)


def _streaming(imageset: ImageSet, options: LoaderOptions) -> Backend:
    """Return the backend for images that are decoded anew in every epoch."""
    if torch.device(options.device).type == "cuda":
        return _dali_or_not(imageset, options)
    return "torchvision"


def _dali_or_not(imageset: ImageSet, options: LoaderOptions) -> Backend:
    reason = declined_reason(imageset, options)
    if reason is None:
        return "dali"
    _say_once(reason)
    return "torchvision"


@functools.cache
def _say_once(reason: str) -> None:
    log.warning("images are decoded by torchvision, not by DALI: %s", reason)


def _fits(imageset: ImageSet, options: LoaderOptions) -> bool:
    size = len(imageset) * storage_side(imageset, options) ** 2 * 3
    # Every rank on this machine keeps its own copy.
    size *= ranks_on_this_machine()
    return size <= MEMORY_SHARE * available_memory()
