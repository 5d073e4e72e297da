"""Linear heads on fixed features, by an exact solver or by SGD.

SGD follows the published schedule, for many learning rates and seeds at once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.data.counter import derive_key, permutation
from fastadv.errors import DataError
from fastadv.evaluation.accuracy import Accuracy, Evaluation, ImageVerdicts
from fastadv.models.normalized import seeded_init
from fastadv.progress import Progress
from fastadv.transfer.features import Features
from fastadv.transfer.protocols import Procedure

log = logging.getLogger(__name__)

# Inverse regularisation strengths, from almost no fit to almost no regularisation. The
# largest is chosen now and then (30 of 252 times in docs/studies); ten and a hundred times
# as much raised the accuracy on validation images in none of nine such cases.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# In a network, instead of -inf, for a class without training images: the gradient of that
# would not be finite.
LEAST_BIAS = -1e4
# The one that is used where there are no images to choose on: the best on average over two
# networks and three targets with 1, 2, 5 and all images per class (docs/transfer.md).
MIDDLE_STRENGTH = 1e-2
# Rows of the weights are padded to a multiple of 16 numbers: 64 bytes, a cache line.
_ALIGNED = 16


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier: logits are `features @ weight.T + bias`.

    Attributes:
        weight: Weights, float [C, D].
        bias: Biases, float [C]; -inf for a class without training images.
    """

    weight: NDArray[np.floating]
    bias: NDArray[np.floating]

    @property
    def finite(self) -> bool:
        """Whether weights and bias are finite, so that fitting did not diverge."""
        return not np.isnan(self.bias).any() and bool(np.isfinite(self.weight).all())

    def evaluate(self, features: Features) -> Evaluation:
        """Return the accuracy on clean images, given their features."""
        labels, classes = torch.from_numpy(features.labels), len(self.bias)
        # In the precision of the network that the head becomes a part of.
        weight = self.weight.astype(np.float32)
        bias = np.maximum(self.bias, LEAST_BIAS).astype(np.float32)
        logits = torch.from_numpy(features.values @ weight.T + bias)
        right = logits.argmax(1) == labels
        correct = labels[right].bincount(minlength=classes)
        clean = Accuracy(correct, labels.bincount(minlength=classes))
        return Evaluation(clean, images=ImageVerdicts(labels, right.long() - 1, logits))


def choose_head(
    heads: Mapping[float, LinearHead], val: Features, metric: str
) -> tuple[LinearHead, float, float]:
    """Return the head that is best on `val`; among equals, the first.

    Args:
        heads: Heads by the hyper-parameter that they were fitted with.
        val: Features of the validation images.
        metric: `top1`, `mean_per_class`, or the name of one of your own.

    Returns:
        The head, its hyper-parameter, and its `metric` on `val` in [0, 1].
    """
    values = {key: head.evaluate(val).value(metric) for key, head in heads.items()}
    best = max(values, key=values.__getitem__)
    return heads[best], best, values[best]


def fit_exact(
    train: Features,
    classes: int,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
) -> dict[float, LinearHead]:
    """Return logistic regressions on the features as they are, by C in `strengths`.

    L-BFGS minimises the regularised loss of standardised features.

    Args:
        train: Features of the training images.
        classes: Number of classes.
        seed: Seed of the solver.
        strengths: Inverse regularisation strengths C.

    Raises:
        DataError: All training images are of one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    seen = len(np.unique(train.labels))
    if seen < 2:
        raise DataError(
            f"the training images are of {seen} class; a head needs two. Use more images"
        )
    scaler = StandardScaler().fit(train.values)
    scaled = scaler.transform(train.values)
    heads = {}
    for strength in strengths:
        solver = LogisticRegression(C=strength, max_iter=1000, random_state=seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            solver.fit(scaled, train.labels)
        if any(issubclass(each.category, ConvergenceWarning) for each in caught):
            log.warning("logistic regression with C=%g did not converge", strength)
        heads[strength] = _unscaled(solver, scaler, classes)
    return heads


def _unscaled(solver: Any, scaler: Any, classes: int) -> LinearHead:
    """Return the head of a fitted solver, with the standardisation folded in."""
    coef = np.asarray(solver.coef_, np.float64)
    intercept = np.asarray(solver.intercept_, np.float64)
    if len(coef) == 1:  # with two classes, only the second has a logit
        coef, intercept = np.stack([0 * coef[0], coef[0]]), np.append(0, intercept)
    coef = coef / scaler.scale_
    weight, bias = np.zeros((classes, coef.shape[1])), np.full(classes, -np.inf)
    weight[solver.classes_] = coef
    bias[solver.classes_] = intercept - coef @ scaler.mean_
    return LinearHead(weight, bias)


def fit_sgd(
    features: Features,
    rows: NDArray[np.int64],
    classes: int,
    seeds: Sequence[int],
    procedure: Procedure,
    *,
    device: torch.device | str = "cpu",
) -> list[list[LinearHead]]:
    """Fit a head for every seed and learning rate, all in the same matrix products.

    Each head is the one that `torch.optim.SGD` on an `nn.Linear` arrives at with the
    batches of a training `Loader` of that seed (to rounding). A step is one product of
    [S, C * L, D] weights with [S, B, D] features and one back, and the softmax between
    them runs over a dimension that is not the last: with the ten classes innermost it
    took longer than either product (0.35 ms against 0.28; as it is, 0.03). Weights and
    bias are one tensor, updated in place.

    Args:
        features: Features of the whole set.
        rows: int64 [S, n], the images that each of the S seeds trains on, in the order
            of its subset.
        classes: Number C of classes.
        seeds: Seeds of the initial weights and of the order of the images.
        procedure: The L learning rates, and the settings that all heads share.
        device: Where to compute; the features of the rows must fit there.

    Returns:
        Heads [S][L].
    """
    n, depth = features.values.shape
    width = -(-(depth + 1) // _ALIGNED) * _ALIGNED
    data = torch.zeros(n, width)
    data[:, :depth] = torch.from_numpy(np.array(features.values))
    data[:, depth] = 1
    weights = torch.zeros(len(seeds), classes, 1, width)
    for of_seed, seed in zip(weights[:, :, 0], seeds, strict=True):
        with seeded_init(seed):  # as `NormalizedModel.replace_head` draws them
            fresh = torch.nn.Linear(depth, classes)
        of_seed[:, :depth] = fresh.weight.detach()
        of_seed[:, depth] = fresh.bias.detach()
    data, weights = data.to(device), weights.to(device)
    labels = torch.from_numpy(features.labels).to(device)
    before = torch.get_num_threads()
    threads = before if data.device.type == "cpu" else 1
    shares = np.array_split(procedure.lrs, min(threads, len(procedure.lrs)))
    parts = [replace(procedure, lrs=tuple(share.tolist())) for share in shares]
    if len(parts) > 1:
        # Matrix products are so small (0.3 ms) that two threads within each gain nothing:
        # sixty heads of ten classes and 512 features took 38 s that way, and 22 s with
        # half of the learning rates on each thread (10,000 images, 150 epochs).
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            fit = partial(_fit, data, labels, weights, rows, seeds)
            title = f"{len(seeds) * len(procedure.lrs)} heads"
            titles = [title, *[""] * (len(parts) - 1)]
            fitted = np.concatenate(list(pool.map(fit, parts, titles)), axis=2)
    finally:
        torch.set_num_threads(before)
    return [
        [
            LinearHead(of_seed[:, i, :depth].copy(), of_seed[:, i, depth].copy())
            for i in range(len(procedure.lrs))
        ]
        for of_seed in fitted
    ]


def _fit(
    data: Tensor,
    labels: Tensor,
    first: Tensor,
    rows: NDArray[np.int64],
    seeds: Sequence[int],
    procedure: Procedure,
    title: str,
) -> NDArray[np.float32]:
    """Return the weights of `fit_sgd`, [S, C, L, W], the bias in the column of ones.

    Progress is shown under `title`, unless that is empty.
    """
    count, (seed_count, n), device = len(procedure.lrs), rows.shape, data.device
    classes = first.shape[1]
    weights = first.repeat(1, 1, count, 1).view(seed_count, classes * count, -1)
    velocity = torch.zeros_like(weights)
    rates = torch.tensor(procedure.lrs, dtype=torch.float32, device=device)
    rates = rates.repeat(classes)[None, :, None]
    starts = list(range(0, n, procedure.batch_size))
    if len(starts) > 1 and n - starts[-1] == 1:
        del starts[-1]  # as in a training loader, it joins the batch before
    progress = Progress(procedure.epochs * len(starts))
    minus_one = torch.full((1, 1, 1, 1), -1.0, device=device)
    for epoch in range(procedure.epochs):
        order = np.stack([
            part[permutation(derive_key(seed, "order", epoch), n)]
            for seed, part in zip(seeds, rows, strict=True)
        ])  # fmt: skip
        chosen = torch.from_numpy(order).to(device)
        for step, (start, stop) in enumerate(pairwise([*starts, n])):
            index, size = chosen[:, start:stop], stop - start
            x = data.index_select(0, index.reshape(-1)).view(seed_count, size, -1)
            logits = torch.bmm(weights, x.transpose(1, 2))
            error = logits.view(seed_count, classes, count, size).softmax(1)
            true = labels[index][:, None, None, :].expand(-1, 1, count, -1)
            error.scatter_add_(1, true, minus_one.expand(true.shape))
            error = error.view(seed_count, -1, size)
            velocity.baddbmm_(error, x, beta=procedure.momentum, alpha=1 / size)
            velocity.add_(weights, alpha=procedure.weight_decay)
            factor = procedure.rate(1.0, epoch + step / len(starts))
            weights.addcmul_(velocity, rates, value=-factor)
            if title and step % 50 == 0:
                progress.update(epoch * len(starts) + step + 1, title)
    fitted = weights.view(seed_count, classes, count, -1).cpu().numpy()
    return fitted
