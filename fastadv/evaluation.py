"""Clean and robust accuracy of a model over batches, with confidence intervals."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks import PGD
from fastadv.data import Batch
from fastadv.kernels import normalize
from fastadv.models import NormalizedModel
from fastadv.models.view import AttackView
from fastadv.statistics import wilson

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """How many images of each class were classified correctly.

    Attributes:
        correct: int64 [K].
        total: int64 [K].
    """

    correct: Tensor
    total: Tensor

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.total.sum())

    @property
    def top1(self) -> float:
        """Share of all images, in [0, 1]."""
        return float(self.correct.sum()) / max(self.n, 1)

    @property
    def mean_per_class(self) -> float:
        """Mean over the classes that have images, in [0, 1]."""
        present = self.total > 0
        return float((self.correct[present] / self.total[present]).mean())

    def value(self, metric: str) -> float:
        """`top1` or `mean_per_class`, in [0, 1]."""
        return self.mean_per_class if metric == "mean_per_class" else self.top1

    def interval(self, metric: str) -> tuple[float, float]:
        """95 % confidence interval of `metric` over the draw of test images.

        Wilson's interval for top-1; for the mean per class, the normal interval from
        the per-class binomial variances.
        """
        if metric == "top1":
            return wilson(int(self.correct.sum()), self.n)
        present = self.total > 0
        total = self.total[present].double()
        # One added success and failure keep classes that are all right from
        # claiming zero variance (Agresti and Coull 1998).
        share = (self.correct[present].double() + 1) / (total + 2)
        spread = math.sqrt(float((share * (1 - share) / total).sum())) / len(total)
        middle = self.mean_per_class
        return max(0.0, middle - 1.96 * spread), min(1.0, middle + 1.96 * spread)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on clean images and, if there was an attack, on attacked ones.

    An image counts as robust when it is classified correctly and stays so.
    """

    clean: Accuracy
    robust: Accuracy | None = None


def evaluate(
    model: NormalizedModel, batches: Iterable[Batch], attack: PGD | None = None
) -> Evaluation:
    """Classify every batch in eval mode, and attack it when `attack` is given.

    The model's mode comes back as it was; nothing else of it changes.

    Args:
        model: classifier of [0, 1] images.
        batches: of a loader in evaluation mode.
        attack: judged per image; random starts are numbered through the whole set.
    """
    view = AttackView(model)
    attacked: AttackView = view
    if attack is not None and (attack.bn_mode, attack.dtype) != ("eval", None):
        attacked = AttackView(model, mode=attack.bn_mode, dtype=attack.dtype)
    classes = model.num_classes
    device = model.mean.device
    total = torch.zeros(classes, dtype=torch.int64, device=device)
    clean, robust = torch.zeros_like(total), torch.zeros_like(total)
    nonfinite = torch.zeros(1, dtype=torch.int64, device=device)
    seen = 0
    for batch in batches:
        with torch.no_grad():
            z = normalize(batch.images, mean=model.mean, std=model.std)
            right = view(z).argmax(1) == batch.labels
        total += batch.labels.bincount(minlength=classes)
        clean += batch.labels[right].bincount(minlength=classes)
        if attack is not None:
            found = attack(attacked, batch.images, batch.labels, offset=seen)
            nonfinite += found.nonfinite
            held = right & ~found.success
            robust += batch.labels[held].bincount(minlength=classes)
        seen += len(batch.labels)
    if nonfinite.item():
        log.warning(
            "%d gradient elements were not finite and moved nothing: the attack is "
            "weaker than it looks",
            nonfinite.item(),
        )
    total, clean, robust = total.cpu(), clean.cpu(), robust.cpu()
    return Evaluation(
        Accuracy(clean, total), Accuracy(robust, total) if attack is not None else None
    )
