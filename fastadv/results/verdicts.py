"""The verdict on every test image that a row was computed from, and pairs of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastadv.errors import DataError
from fastadv.results.row import Row
from fastadv.results.table import Arrays


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Which test images a row counts as classified correctly.

    Attributes:
        right: Whether each image is, bool [N]; under the attack of the row if it has one.
        labels: Class of each image, int64 [N].
        indices: Position of each image in its data set, int64 [N], ascending.
        image_set: Hash of that data set.
    """

    right: NDArray[np.bool_]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    image_set: str


def read_verdicts(arrays: Arrays, row: Row) -> Verdicts:
    """Return the verdicts that a row was computed from, in the order of the data set.

    Args:
        arrays: Reads the arrays of the row: `ResultsTable.arrays` of its table.
        row: The row.

    Raises:
        DataError: No verdicts were kept, or they do not say which images they are on, or
            the file is missing or damaged.
    """
    found = arrays(row)
    if "fell_to" not in found:
        reason = row.not_kept or "`keep=none`, or a table of an older version"
        raise DataError(
            f"the row {str(row.identity)[:8]} has no verdicts on single images "
            f"({reason}); compute it again"
        )
    if "indices" not in found:
        raise DataError(
            f"the verdicts of the row {str(row.identity)[:8]} do not say which images "
            "they are on, since an older version wrote them; compute it again"
        )
    # -1 was misclassified without an attack, the number of attacks withstood them all.
    least = 0 if row.attack is None else len(found["attacks"])
    order = np.argsort(found["indices"], kind="stable")
    return Verdicts(
        right=found["fell_to"][order] >= least,
        labels=found["labels"][order].astype(np.int64),
        indices=found["indices"][order].astype(np.int64),
        image_set=str(found["image_set"]),
    )


def check_paired(first: Verdicts, second: Verdicts) -> None:
    """Check that two sets of verdicts are on the same images, so that they pair.

    Raises:
        DataError: They are on images of other data sets, on other images, or disagree
            about a label.
    """
    reason = None
    if first.image_set != second.image_set:
        reason = "they are on images of different data sets"
    elif not np.array_equal(first.indices, second.indices):
        common = len(np.intersect1d(first.indices, second.indices))
        reason = (
            f"they are on {len(first.indices)} and {len(second.indices)} images, of "
            f"which {common} are the same"
        )
    elif not np.array_equal(first.labels, second.labels):
        reason = "they disagree about the labels of images"
    if reason is not None:
        raise DataError(f"two rows cannot be paired image by image: {reason}")
