"""What a transfer found, as columns of the results table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fastadv.attacks import PGD
from fastadv.evaluation.accuracy import Accuracy


@dataclass(frozen=True)
class Outcome:
    """What one protocol run found.

    Attributes:
        test: accuracy on the evaluation split.
        val_value: share in [0, 1] that the choice of hyper-parameters was made on; None
            if there was no choice.
        chosen: the hyper-parameters chosen.
        robust: accuracy on the attacked evaluation split, if it was asked for.
    """

    test: Accuracy
    val_value: float | None
    chosen: dict[str, Any]
    robust: Accuracy | None = None

    def columns(self, metric: str, attack: PGD | None) -> dict[str, Any]:
        """Columns of the results table, in percent; `attack` is that of `robust`."""
        low, high = self.test.interval(metric)
        found: dict[str, Any] = {
            "value": 100 * self.test.value(metric),
            "ci_low": 100 * low,
            "ci_high": 100 * high,
            "val_value": None if self.val_value is None else 100 * self.val_value,
            "per_class_correct": self.test.correct.tolist(),
            "per_class_total": self.test.total.tolist(),
        }
        if self.robust is None or attack is None:
            names = ("robust_value", "robust_ci_low", "robust_ci_high", "attack")
            return found | dict.fromkeys(names)
        low, high = self.robust.interval(metric)
        return found | {
            "robust_value": 100 * self.robust.value(metric),
            "robust_ci_low": 100 * low,
            "robust_ci_high": 100 * high,
            "attack": json.dumps(attack.describe()),
        }
