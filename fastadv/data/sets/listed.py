"""Images of another set under other labels: files of a folder, or classes of a network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fastadv.data.sets.image_set import ImageSet
from fastadv.data.sets.subsets import Subset


class ListedSet(Subset):
    """Some images of another set, with labels and classes of their own.

    Args:
        base: The other set.
        indices: Positions of those that belong to the set.
        labels: Class id of each.
        classes: Names of the classes.
        name: Name of the set.
        split: Name of the split.
    """

    def __init__(
        self,
        base: ImageSet,
        indices: Sequence[int] | NDArray[np.int64],
        labels: Sequence[int] | NDArray[np.int64],
        classes: Sequence[str],
        name: str,
        *,
        split: str = "test",
    ) -> None:
        super().__init__(base, indices, split=split)
        self.name, self.classes = name, tuple(classes)
        self.labels = np.asarray(labels, np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Key of the other set, the classes and the positions taken, hex."""
        digest = hashlib.sha256(super().fingerprint.encode())
        digest.update(repr(self.classes).encode() + self.labels.tobytes())
        return digest.hexdigest()[:32]
