"""How batches arrive: the loader contract, its options, and `make_loader`.

The order of an epoch, sharding by rank, exact resumption and the accounting
of bad images are here, once; `memory` and `streaming` only turn index arrays
into pixels. Every random choice is a function of (seed, epoch, image index),
so nothing depends on workers, on batches already taken, or on global random
state. Not here: normalisation, casting, adversarial anything.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.data.counter import derive_key, permutation, uniforms
from fastadv.data.geometry import DRAWS, plain_geometry
from fastadv.data.images import BadImage
from fastadv.data.sources import Augment, ImageSet
from fastadv.errors import ConfigError, DataError, unknown_name
from fastadv.machine import available_memory, usable_cores

_log = logging.getLogger(__name__)

Backend = Literal["auto", "memory", "torchvision"]
OnBadImage = Literal["skip", "fail"]
MEMORY_SHARE = 0.25  # of what is available: the model and its attack need the rest
# Stored images are this much larger than random resized crops of them, so that
# a full-size crop is still shrunk slightly, never enlarged.
RRC_STORAGE = 1.15
_PEEKED = 64  # images looked at to learn whether a set is square


@dataclass
class Batch:
    """What a loader yields.

    Attributes:
        images: uint8 [N, 3, H, W] in 0..255 on the device, channels_last: the
            memory is [N, H, W, 3].
        labels: int64 [N], class ids, on the device.
        indices: int64 [N], positions in the image set, on the device. A bad
            image's replacement keeps the position it stands in for.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How to make batches of an image set; the keywords of `make_loader`.

    Raises:
        ConfigError: A value that cannot work.
    """

    batch_size: int
    """Images per batch and rank."""
    resolution: int
    """Side of the images delivered, pixels."""
    train: bool
    """Shuffle and augment; otherwise the set's order and a centre crop."""
    seed: int = 0
    """Chooses order, crops and flips."""
    augment: Literal["auto", "none", "crop_flip", "rrc"] = "auto"
    """rrc: random resized crop and flip; crop_flip: reflect-padded crop and
    flip; auto: what suits the set. Evaluation zooms by 256/224 with rrc."""
    device: str | torch.device = "cpu"
    """Where batches are put."""
    rank: int = 0
    """This process among `world_size`."""
    world_size: int = 1
    """Number of processes sharing one epoch."""
    drop_last: bool = False
    """Leave out a last batch that is not full."""
    on_bad_image: OnBadImage = "skip"
    """skip: count, name and replace by an image of the same class; fail."""
    workers: int | None = None
    """Decoding threads (memory) or processes (torchvision; 0: none); by
    default one per core this process may use, at most 8."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("resolution", 1), ("world_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name}={getattr(self, name)}; use {name} >= {least}"
                )
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank={self.rank} is outside [0, {self.world_size}) for "
                f"world_size={self.world_size}"
            )
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers={self.workers}; use workers >= 0")
        augments = ("auto", *get_args(Augment))
        if self.augment not in augments:
            raise ConfigError(unknown_name("augment", self.augment, augments))
        if self.on_bad_image not in get_args(OnBadImage):
            raise ConfigError(
                unknown_name("on_bad_image", self.on_bad_image, get_args(OnBadImage))
            )

    @property
    def worker_count(self) -> int:
        """`workers`, or its default on this machine."""
        if self.workers is not None:
            return self.workers
        return min(8, usable_cores())


class Loader(ABC):
    """Batches of one image set, one epoch per iteration.

    Iterating to the end advances to the next epoch. Leaving an iteration
    early and starting another begins the same epoch again; only
    `load_state_dict` makes the next iteration start inside an epoch.

    Ranks take every world_size-th position of one global order. In training
    it is padded by wrapping around, so that ranks do equally many steps; in
    evaluation every image is delivered exactly once.

    Attributes:
        imageset: Where images come from.
        options: How batches are made.
        augment: The augmentation `options.augment` stands for.
        epoch: The epoch of the current or next iteration.
        bad_images: (name, reason) of every undecodable image met so far.
        backend: `"memory"` or `"torchvision"`.
    """

    backend: Backend

    def __init__(self, imageset: ImageSet, options: LoaderOptions) -> None:
        if not len(imageset):
            raise DataError(
                f"{imageset.name}/{imageset.split} has no images; add some, or choose "
                "another split"
            )
        self.imageset = imageset
        self.options = options
        self.augment: Augment = (
            imageset.augment_default if options.augment == "auto" else options.augment
        )
        self.epoch = 0
        self.bad_images: list[tuple[str, str]] = []
        self._logged = 0
        self._position = 0  # images of the epoch's order taken by all ranks
        self._resume = 0
        if not len(self) and options.train:
            raise ConfigError(
                f"batch_size={options.batch_size} with drop_last leaves no batch of "
                f"the {len(imageset)} images of {imageset.name}/{imageset.split} on "
                f"{options.world_size} rank(s); use a smaller batch_size"
            )

    @abstractmethod
    def _images(self, batches: list[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Yield uint8 [N, R, R, 3] on the device for each array of indices."""

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch on this rank."""
        return len(self._batches(0))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of `self.epoch`, then advance it."""
        start, self._resume = self._resume, 0
        batches = self._batches(start)
        self._position = start
        device = torch.device(self.options.device)
        for indices, images in zip(batches, self._images(batches), strict=True):
            # Before the yield: whoever holds a batch has consumed it.
            self._position += len(indices) * self.options.world_size
            labels = torch.from_numpy(self.imageset.labels[indices])
            yield Batch(
                images.permute(0, 3, 1, 2),
                labels.to(device, non_blocking=True),
                torch.from_numpy(indices).to(device, non_blocking=True),
            )
        self._log_bad_images()
        self.epoch += 1
        self._position = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; its start unless resumed in it."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._position = self._resume = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch yielded, JSON-able.

        The position counts images of all ranks, so that resuming with another
        batch size or world size continues with the images not yet seen.
        """
        return {
            "epoch": self.epoch,
            "position": self._position,
            "seed": self.options.seed,
            "train": self.options.train,
            "fingerprint": self.imageset.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`: the same batches, to the bit, as without a stop.

        Raises:
            ConfigError: The state is of a loader with another seed or mode.
            DataError: The image set is not the one the state was saved for.
        """
        for name in ("seed", "train"):
            if state[name] != getattr(self.options, name):
                raise ConfigError(
                    f"the saved loader state has {name}={state[name]}, this loader "
                    f"{name}={getattr(self.options, name)}; resume with the saved value"
                )
        if state["fingerprint"] != self.imageset.fingerprint:
            raise DataError(
                f"{self.imageset.name}/{self.imageset.split} changed since the state "
                "was saved (names, sizes or parameters differ); restore it, or start "
                "afresh"
            )
        self.epoch = int(state["epoch"])
        self._position = self._resume = int(state["position"])

    def _batches(self, start: int) -> list[NDArray[np.int64]]:
        """Return this rank's index arrays from global position `start` on."""
        o = self.options
        order = np.arange(len(self.imageset))
        if o.train:
            key = derive_key(o.seed, "order", self.epoch)
            order = permutation(key, len(order))
            # Wrap-around: np.resize repeats from the beginning.
            order = np.resize(order, -(-len(order) // o.world_size) * o.world_size)
        mine = order[start:][o.rank :: o.world_size]
        batches = [
            mine[i : i + o.batch_size] for i in range(0, len(mine), o.batch_size)
        ]
        if o.drop_last and batches and len(batches[-1]) < o.batch_size:
            batches.pop()
        if o.train and len(batches) > 1 and len(batches[-1]) == 1:
            # BatchNorm cannot train on one image at 1x1 resolution.
            batches[-2:] = [np.concatenate(batches[-2:])]
        return batches

    def _draws(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        return augmentation_draws(self.options.seed, self.epoch, indices)

    def _note_bad(self, bad: list[tuple[str, str]]) -> None:
        self.bad_images.extend(b for b in bad if b not in self.bad_images)

    def _log_bad_images(self) -> None:
        for name, reason in self.bad_images[self._logged :]:
            _log.warning(
                "bad image %s (%s): replaced by one of its class", name, reason
            )
        self._logged = len(self.bad_images)


def make_loader(
    imageset: ImageSet, *, backend: Backend = "auto", **options: Any
) -> Loader:
    """Make the loader of an image set.

    Args:
        imageset: Where images come from.
        backend: memory: decode once and keep; torchvision: decode in worker
            processes, every epoch; auto: see `choose_backend`.
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
    from fastadv.data.memory import MemoryLoader
    from fastadv.data.streaming import TorchvisionLoader

    if backend not in get_args(Backend):
        raise ConfigError(unknown_name("loader backend", backend, get_args(Backend)))
    chosen = LoaderOptions(**options)
    if backend == "auto":
        backend = choose_backend(imageset, chosen)
    loader = MemoryLoader if backend == "memory" else TorchvisionLoader
    return loader(imageset, chosen)


def choose_backend(imageset: ImageSet, options: LoaderOptions) -> Backend:
    """What `auto` stands for: `"memory"` or `"torchvision"`.

    Memory if the set takes at most a quarter of what is available, and if keeping
    square images loses nothing: random resized crops of images that are not square
    reach their borders only when decoded anew.
    """
    augment = imageset.augment_default if options.augment == "auto" else options.augment
    if not _fits(imageset, options, augment):
        return "torchvision"
    if not (options.train and augment == "rrc") or _looks_square(imageset):
        return "memory"
    return "torchvision"


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
    imageset: ImageSet, index: int, seed: int, on_bad_image: OnBadImage
) -> tuple[NDArray[np.uint8], list[tuple[str, str]]]:
    """Load an image, or the first readable one that may replace it.

    Returns:
        uint8 [H, W, 3], and (name, reason) of the images that failed.

    Raises:
        BadImage: It is bad and `on_bad_image` is "fail".
        DataError: No image of its class can be decoded.
    """
    try:
        return imageset.load(index), []
    except BadImage as err:
        if on_bad_image == "fail":
            raise
        bad = [(err.name, err.reason)]
    for other in replacements(imageset, index, seed):
        try:
            return imageset.load(other), bad
        except BadImage as err:
            bad.append((err.name, err.reason))
    raise no_readable_image(imageset, index, bad)


def no_readable_image(
    imageset: ImageSet, index: int, bad: list[tuple[str, str]]
) -> DataError:
    """Return the error for a class all of whose images are bad."""
    name = imageset.classes[int(imageset.labels[index])]
    return DataError(
        f"no image of class {name!r} in {imageset.name}/{imageset.split} can be "
        f"decoded ({len(bad)} tried; {bad[0][0]}: {bad[0][1]}); restore it or remove "
        "the class"
    )


def storage_side(augment: Augment, options: LoaderOptions) -> int:
    """Return the side at which decoded images are kept in memory."""
    if options.train and augment == "rrc":
        return round(RRC_STORAGE * options.resolution)
    return plain_geometry(augment, options.resolution)[1]


def _looks_square(imageset: ImageSet) -> bool:
    """Whether images spread over the set all have equal sides."""
    for index in range(0, len(imageset), max(1, len(imageset) // _PEEKED)):
        try:
            height, width = imageset.load(index).shape[:2]
        except BadImage:
            continue  # the loader will name it
        if height != width:
            return False
    return True


def _fits(imageset: ImageSet, options: LoaderOptions, augment: Augment) -> bool:
    size = len(imageset) * storage_side(augment, options) ** 2 * 3
    # Every rank on this machine keeps its own copy.
    size *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return size <= MEMORY_SHARE * available_memory()
