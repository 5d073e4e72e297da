"""What was measured after each epoch of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastadv.results.row import EpochRecord
from fastadv.transfer.protocols import Rates


@dataclass(eq=False)
class History:
    """One training, epoch by epoch; NaN where nothing was measured.

    Attributes:
        rates: Its initial learning rates.
        epochs: Its number of epochs, E.
        refit: Whether it trained on the validation images, too.
        loss: Mean training loss, float64 [E].
        val: Value in [0, 1] that the epoch was chosen by, float64 [E].
        test: Accuracy on the test images in [0, 1], float64 [E].
    """

    rates: Rates
    epochs: int
    refit: bool = False
    loss: NDArray[np.float64] = field(init=False)
    val: NDArray[np.float64] = field(init=False)
    test: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.loss, self.val, self.test = (
            np.full(self.epochs, np.nan) for _ in range(3)
        )

    def records(self) -> tuple[EpochRecord, ...]:
        """Return the accuracies on the test images, percent, by epoch from 1."""
        measured = np.flatnonzero(np.isfinite(self.test)).tolist()
        return tuple(
            EpochRecord(epoch=epoch + 1, value=100 * float(self.test[epoch]))
            for epoch in measured
        )


def history_arrays(histories: Sequence[History]) -> dict[str, NDArray[np.generic]]:
    """Return the histories of R trainings as arrays of a row.

    Returns:
        `history_lr` and `history_refit` [R], `history_lr_head` [R] where heads have
        learning rates of their own, and `history_loss`, `history_val` and
        `history_test` [R, E]; nothing without a training.
    """
    if not histories:
        return {}
    arrays = {
        f"history_{name}": np.stack([getattr(each, name) for each in histories])
        for name in ("loss", "val", "test")
    }
    arrays["history_lr"] = np.array([each.rates.lr for each in histories])
    heads = [each.rates.head for each in histories]
    if None not in heads:
        arrays["history_lr_head"] = np.array(heads, np.float64)
    arrays["history_refit"] = np.array([each.refit for each in histories])
    return arrays
