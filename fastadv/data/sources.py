"""What a data set is: labelled images by index, in named splits.

The contract (`ImageSet`, `DatasetSplits`) and its simplest form, an array in
memory. Files are in `folders`, the procedural set in `shapetex`, names in
`registry`, batches in `loaders`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastadv.errors import DataError

Augment = Literal["none", "crop_flip", "rrc"]
Metric = Literal["top1", "mean_per_class"]


class ImageSet(ABC):
    """One split of a labelled image data set.

    `load` may be called from several threads and, after pickling or a fork,
    from several processes at once.

    Attributes:
        name: The data set, e.g. "shapetex".
        split: The split's own name, e.g. "train" or "val".
        classes: Class names; position is the class id.
        labels: int64 [n], class ids.
        augment_default: What `augment="auto"` means for training on this set.
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

    def describe(self, index: int) -> str:
        """Return what to call image `index` in a message."""
        return f"{self.name}/{self.split}[{index}]"

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
        images: uint8 [n, H, W, 3] RGB in 0..255.
        labels: Integers [n], class ids in [0, len(classes)).
        classes: Class names.
        name: The data set.
        split: The split.
        augment_default: What `augment="auto"` means for it.

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
        self.name = name
        self.split = split
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


@dataclass(frozen=True)
class DatasetSplits:
    """A data set as training and evaluation need it.

    Attributes:
        name: The data set.
        train: The split to learn from; select on a part of it.
        test: The evaluation split, whatever its folder is called.
        metric: The accuracy its literature reports.
    """

    name: str
    train: ImageSet
    test: ImageSet
    metric: Metric = "top1"


def checked_index(index: int, n: int) -> int:
    """Return `index`; IndexError outside [0, n), negative ones included."""
    if not 0 <= index < n:
        raise IndexError(f"image index {index} is outside [0, {n})")
    return index


def checked_labels(
    labels: Sequence[int] | NDArray[np.int64],
    n: int,
    classes: Sequence[str],
    what: str,
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
