"""What a data set is: labelled images by index, in named splits.

The contract and its two forms: an array in memory, and encoded images (`FileSet`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastadv.data.decoding import BadImage, decode_rgb
from fastadv.errors import DataError
from fastadv.files import refuse_large

Augment = Literal["none", "crop_flip", "rrc", "utrera"]
log = logging.getLogger(__name__)
NO_IMAGES = "no images of"  # how the problem begins that classes are empty
_opening = threading.Lock()


class ImageSet(ABC):
    """One split of a labelled image data set.

    `load` may be called from several threads and, after pickling or a fork,
    from several processes at once.

    Attributes:
        name: The data set, e.g. "shapetex".
        split: The split's own name, e.g. "train" or "val".
        classes: Class names; position is the class id.
        labels: Class ids, int64 [n].
        augment_default: The augmentation that `augment="auto"` stands for.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    augment_default: Augment = "rrc"

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def load(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 [H, W, 3] RGB in 0..255.

        Raises:
            BadImage: The image cannot be decoded.
            IndexError: `index` is outside [0, n).
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A cheap key of the content, hex; equal sets have equal keys."""

    def content_hash(self) -> str:
        """Hash the images themselves, their order and labels: 64 hexadecimal digits.

        Encoded images are read, not decoded; `fingerprint` trusts their names and sizes.
        """
        return self.part_hash(self, np.arange(len(self)))

    def part_hash(self, part: ImageSet, positions: NDArray[np.int64]) -> str:
        """Return the `content_hash` of `part`, the images at `positions` of this set."""
        # In memory or drawn: the fingerprint covers all pixels, or all parameters.
        return hashlib.sha256(part.fingerprint.encode()).hexdigest()

    def describe(self, index: int) -> str:
        """Return the name of image `index` in messages."""
        return f"{self.name}/{self.split}[{index}]"

    def augment_as(self, wanted: str) -> Augment:
        """Return an augmentation; `"auto"` stands for the set's own."""
        return self.augment_default if wanted == "auto" else wanted  # type: ignore[return-value]

    def prepare(self) -> None:  # noqa: B027 - most sets have nothing to prepare
        """Do shared one-time work now, before worker processes are started."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name}/{self.split}: {len(self)} images, "
            f"{len(self.classes)} classes)"
        )


class ArraySet(ImageSet):
    """Images already in memory.

    Args:
        images: RGB pixels in 0..255, uint8 [n, H, W, 3].
        labels: Integers [n], class ids in [0, len(classes)).
        classes: Class names.
        name: The data set.
        split: The split.
        augment_default: The augmentation that `augment="auto"` stands for.

    Raises:
        DataError: Shapes, dtype or labels do not fit together.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: Sequence[int] | NDArray[np.int64],
        classes: Sequence[str],
        *,
        name: str,
        split: str,
        augment_default: Augment = "crop_flip",
    ) -> None:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise DataError(
                f"{name}/{split}: images are {images.dtype} {list(images.shape)}; "
                "expected uint8 [n, H, W, 3]"
            )
        self.images = images
        self.labels = checked_labels(labels, len(images), classes, f"{name}/{split}")
        self.classes = tuple(classes)
        self.name, self.split = name, split
        self.augment_default = augment_default

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 [H, W, 3] RGB in 0..255."""
        image: NDArray[np.uint8] = self.images[checked_index(index, len(self))]
        return image

    @cached_property
    def fingerprint(self) -> str:
        """Key of pixels, labels and class names, hex."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.tobytes())
        return digest.hexdigest()[:32]


class FileSet(ImageSet):
    """One split whose images are encoded files: `read` gives the bytes of one.

    Args:
        name: The data set.
        split: The split.
        classes: Class names; position is the class id.
        members: Name of each image: its path below the root, '/'-separated.
        labels: Integers [n], class ids.

    Attributes:
        bits: Number of bits that images of 16-bit files fill.
    """

    bits: int = 16

    def __init__(
        self,
        name: str,
        split: str,
        classes: Sequence[str],
        members: Sequence[str],
        labels: Sequence[int] | NDArray[np.int64],
    ) -> None:
        self.name, self.split = name, split
        self.classes = tuple(classes)
        self.members = list(members)
        self.labels = checked_labels(labels, len(members), classes, f"{name}/{split}")

    def load(self, index: int) -> NDArray[np.uint8]:
        """Decode image `index` to uint8 [H, W, 3] RGB in 0..255."""
        data = self.read(checked_index(index, len(self)))
        return decode_rgb(data, self.describe(index), self.bits)

    def describe(self, index: int) -> str:
        """Return the path of the image, below the root of the data set."""
        return f"{self.name}:{self.members[index]}"

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image `index`.

        Raises:
            BadImage: They cannot be read.
        """
        try:
            return self._encoded(index)
        except (OSError, ValueError, OverflowError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BadImage(self.describe(index), reason) from error

    @abstractmethod
    def _encoded(self, index: int) -> bytes:
        """Return the encoded bytes of image `index`; errors may be of any usual kind."""

    def part_hash(self, part: ImageSet, positions: NDArray[np.int64]) -> str:
        """Return the `content_hash` of `part`, the images at `positions` of this set."""
        digest = hashlib.sha256()
        for index in positions.tolist():
            try:
                data = self.read(index)
            except BadImage as error:
                data = f"bad: {error.reason}".encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        digest.update(part.labels.tobytes() + self._bits_key())
        return digest.hexdigest()

    def _bits_key(self) -> bytes:
        """Return what a hash of the images is told of their depth; nothing as usual."""
        return b"" if self.bits == 16 else b"bits %d" % self.bits

    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """Return the size of every encoded image in bytes."""

    @cached_property
    def fingerprint(self) -> str:
        """Key of paths, sizes and labels, hex; pixels are not read."""
        digest = hashlib.sha256(repr((self.split, self.classes)).encode())
        for path, size in zip(self.members, self.sizes(), strict=True):
            digest.update(os.fsencode(path) + b"\0%d\n" % size)
        digest.update(self.labels.tobytes() + self._bits_key())
        return digest.hexdigest()[:32]


class SharedFile:
    """A file read at offsets by threads, forked workers and pickled copies.

    `pread` moves no position, so nothing that moves is shared; a pickled copy opens
    its own file.

    Args:
        path: The file.
        keep_open: Keep it open after the first read; otherwise open it every time.
    """

    def __init__(self, path: Path, *, keep_open: bool = True) -> None:
        self.path = path.absolute()
        self.keep_open = keep_open
        self._file: FileIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def read(self, size: int, offset: int) -> bytes:
        """Return exactly `size` bytes at `offset`.

        Raises:
            OSError: The file cannot be read, or ends before.
        """
        if not self.keep_open:
            with FileIO(self.path) as file:
                return self._read(file, size, offset)
        if self._file is None:
            # Two threads that both opened it would leave one with a closed file.
            with _opening:
                if self._file is None:
                    self._file = FileIO(self.path)
        return self._read(self._file, size, offset)

    def _read(self, file: FileIO, size: int, offset: int) -> bytes:
        refuse_large(size)
        data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise OSError(f"{self.path.name} ends inside the member")
        return data


# (file or image, what is wrong with it)
Damage = list[tuple[str, str]]


@dataclass(frozen=True)
class DatasetSplits:
    """A data set as training and evaluation need it.

    Attributes:
        name: The data set.
        train: The split to learn from; select on a part of it.
        test: The evaluation split, whatever its folder is called.
        metric: The accuracy to report: the one of its literature, or the name of a metric
            of your own; see `fastadv.data.metric`.
    """

    name: str
    train: ImageSet
    test: ImageSet
    metric: str = "top1"


def option_hint(option: str, value: str) -> str:
    """Return the text that tells how to give an option, by command and in Python."""
    return (
        f"the option {option}={value} (commands: --dataset-option {option}={value}; "
        f"Python: open_dataset(..., {option}=...))"
    )


def check_classes(
    train: ImageSet,
    held: ImageSet | None,
    *,
    strict: bool = True,
    damage: Damage | None = None,
    hint: str = "",
) -> None:
    """Refuse splits in which a class has no images.

    Args:
        train: The training split; every class must be there.
        held: The evaluation split, if the data have one.
        strict: Refuse classes without evaluation images, too, instead of warning.
        damage: List to which problems are added instead of being raised.
        hint: Other advice where classes have no evaluation images.

    Raises:
        DataError: A class has no images; the message names it.
    """
    for part in (train, held) if held is not None else (train,):
        counts = np.bincount(part.labels, minlength=len(part.classes))
        empty = [part.classes[i] for i in np.flatnonzero(counts == 0)]
        if not empty:
            continue
        listed = ", ".join(map(repr, empty[:8])) + ", ..." * (len(empty) > 8)
        what = (
            f"{NO_IMAGES} {len(empty)} of {len(part.classes)} classes in "
            f"{part.split}: {listed}"
        )
        if part is held and not strict:
            log.warning("%s: %s", part.name, what)
        elif damage is not None:
            damage.append((f"{part.name}/{part.split}", what))
        else:
            also = f", or {hint}" if hint and part is held else ""
            raise DataError(
                f"{part.name}: {what}; add images of them, remove the classes from every "
                f"split{also}"
            )


def sampled_sizes(images: ImageSet, count: int) -> Iterator[tuple[int, int]]:
    """Yield (height, width) in pixels of about `count` images spread over a set.

    Images that cannot be decoded are left out; the loader will name them.
    """
    for index in range(0, len(images), max(1, len(images) // count)):
        try:
            height, width = images.load(index).shape[:2]
        except BadImage:
            continue
        yield height, width


def checked_index(index: int, n: int) -> int:
    """Return `index`; IndexError outside [0, n), negative ones included."""
    if not 0 <= index < n:
        raise IndexError(f"image index {index} is outside [0, {n})")
    return index


def checked_labels(
    labels: Sequence[int] | NDArray[np.int64], n: int, classes: Sequence[str], what: str
) -> NDArray[np.int64]:
    """Return labels as int64 [n]; DataError when they cannot be class ids."""
    ids = np.asarray(labels, dtype=np.int64)
    if ids.shape != (n,):
        raise DataError(f"{what}: labels are {list(ids.shape)} for {n} images")
    if n and (ids.min() < 0 or ids.max() >= len(classes)):
        raise DataError(
            f"{what}: labels span [{ids.min()}, {ids.max()}] with "
            f"{len(classes)} classes; expected [0, {len(classes) - 1}]"
        )
    return ids
