"""Features of a frozen network, computed once, and the linear head fitted on them."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.data import ImageSet, Loader
from fastadv.data.subsets import Subset
from fastadv.evaluation import Accuracy
from fastadv.kernels import normalize
from fastadv.models import NormalizedModel
from fastadv.models.view import AttackView
from fastadv.training.progress import Progress

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

log = logging.getLogger(__name__)

# From almost no regularisation to almost no fit, a factor of ten apart; on standardised
# features the best value has been inside this range on every set tried.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Features:
    """Embeddings of an image set.

    Attributes:
        values: float32 [n, D].
        labels: int64 [n].
    """

    values: NDArray[np.float32]
    labels: NDArray[np.int64]

    def of(self, part: ImageSet) -> Features:
        """The rows of `part`, a (nested) subset of the set these were computed on."""
        indices = np.arange(len(self.labels))
        for chosen in _chain(part):
            indices = indices[chosen]
        return Features(self.values[indices], self.labels[indices])


def _chain(part: ImageSet) -> list[NDArray[np.int64]]:
    """Index arrays from the outermost set inwards."""
    steps = []
    while isinstance(part, Subset):
        steps.append(part.indices)
        part = part.base
    return steps[::-1]


@torch.no_grad()
def extract(
    model: NormalizedModel, loader: Loader, progress: Progress, what: str
) -> Features:
    """Embed every image of an evaluation loader with the frozen network.

    Eval mode throughout: BatchNorm statistics are the source's, and stay so.
    """
    model.eval()
    # The folded view gives the same features with less work; a head that is no linear
    # function of them (SqueezeNet) has its own definition of the embedding.
    embed = AttackView(model).features
    values, labels = [], []
    began = time.monotonic()
    for done, batch in enumerate(loader, start=1):
        z = normalize(batch.images, mean=model.mean, std=model.std)
        values.append(embed(z).float().cpu())
        labels.append(batch.labels.cpu())
        rate = done * len(batch.labels) / (time.monotonic() - began)
        progress.update(done, f"{what}  {rate:.1f} images/s")
    return Features(torch.cat(values).numpy(), torch.cat(labels).numpy())


def fit_head(
    train: Features, val: Features, metric: str, seed: int
) -> tuple[Pipeline, float, float]:
    """Fit logistic regressions along `STRENGTHS` and keep the best on `val`.

    Returns:
        (fitted pipeline, chosen C, its value of `metric` on `val` in [0, 1]).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = int(max(train.labels.max(), val.labels.max())) + 1
    best: tuple[Pipeline, float, float] | None = None
    for strength in STRENGTHS:
        head = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=strength, max_iter=1000, random_state=seed),
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            head.fit(train.values, train.labels)
        if any(issubclass(each.category, ConvergenceWarning) for each in caught):
            log.warning("logistic regression with C=%g did not converge", strength)
        value = head_accuracy(head, val, classes).value(metric)
        if best is None or value > best[2]:
            best = (head, strength, value)
    if best is None:
        raise AssertionError("STRENGTHS is not empty")
    return best


def head_accuracy(head: Pipeline, features: Features, classes: int) -> Accuracy:
    """Accuracy of a fitted head, per class."""
    right = head.predict(features.values) == features.labels
    return Accuracy(
        torch.from_numpy(np.bincount(features.labels[right], minlength=classes)),
        torch.from_numpy(np.bincount(features.labels, minlength=classes)),
    )
