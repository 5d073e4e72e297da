"""Linear heads on fixed features, by an exact solver or by SGD.

SGD follows the published schedule, for many learning rates and seeds at once.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.data.counter import derive_key, permutation
from fastadv.errors import DataError
from fastadv.evaluation.accuracy import Accuracy
from fastadv.models.normalized import seeded_init
from fastadv.training.optimizer_config import scheduled
from fastadv.transfer.features import Features

log = logging.getLogger(__name__)

# Inverse regularisation strengths, from almost no fit to almost no regularisation. The
# largest is chosen now and then (30 of 252 times in docs/studies); ten and a hundred times
# as much raised the accuracy on validation images in none of nine such cases.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
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

    def right(self, features: Features) -> NDArray[np.bool_]:
        """Return which images are classified correctly, bool [n]."""
        logits = features.values @ self.weight.T + self.bias
        right: NDArray[np.bool_] = logits.argmax(1) == features.labels
        return right

    def accuracy(self, features: Features) -> Accuracy:
        """Count the images of each class that are classified correctly."""
        right = self.right(features)
        classes = len(self.bias)
        return Accuracy(
            torch.from_numpy(np.bincount(features.labels[right], minlength=classes)),
            torch.from_numpy(np.bincount(features.labels, minlength=classes)),
        )


def fit_exact(
    train: Features, val: Features, classes: int, metric: str, seed: int
) -> tuple[LinearHead, float, float]:
    """Fit logistic regressions along `STRENGTHS` and keep the best on `val`.

    L-BFGS minimises the regularised loss of standardised features.

    Args:
        train: Features of the training images.
        val: Features of the validation images.
        classes: Number of classes.
        metric: `top1` or `mean_per_class`.
        seed: Seed of the solver.

    Returns:
        The head on the features as they are, the chosen C, and its `metric` on `val` in
        [0, 1].

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
    best: tuple[LinearHead, float, float] | None = None
    for strength in STRENGTHS:
        solver = LogisticRegression(C=strength, max_iter=1000, random_state=seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            solver.fit(scaled, train.labels)
        if any(issubclass(each.category, ConvergenceWarning) for each in caught):
            log.warning("logistic regression with C=%g did not converge", strength)
        head = _unscaled(solver, scaler, classes)
        value = head.accuracy(val).value(metric)
        if best is None or value > best[2]:
            best = head, strength, value
    if best is None:
        raise AssertionError("STRENGTHS is not empty")
    return best


def _unscaled(solver: object, scaler: object, classes: int) -> LinearHead:
    """Return the head of a fitted solver, with the standardisation folded in."""
    coef = np.asarray(solver.coef_, np.float64)  # type: ignore[attr-defined]
    intercept = np.asarray(solver.intercept_, np.float64)  # type: ignore[attr-defined]
    if len(coef) == 1:  # with two classes, only the second has a logit
        coef, intercept = np.stack([0 * coef[0], coef[0]]), np.append(0, intercept)
    coef = coef / scaler.scale_  # type: ignore[attr-defined]
    intercept = intercept - coef @ scaler.mean_  # type: ignore[attr-defined]
    weight = np.zeros((classes, coef.shape[1]))
    bias = np.full(classes, -np.inf)
    ids = solver.classes_  # type: ignore[attr-defined]
    weight[ids], bias[ids] = coef, intercept
    return LinearHead(weight, bias)


@dataclass(frozen=True, kw_only=True)
class SGDGrid:
    """Heads that SGD fits, one for every seed and learning rate.

    SGD is that of `torch.optim.SGD`; the learning rate falls by ten after each third of
    the epochs.

    Attributes:
        seeds: Seeds of the initial weights and of the order of the images.
        lrs: Initial learning rates.
        epochs: Passes over the images.
        batch_size: Images per step and seed.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: Weight decay of SGD.
    """

    seeds: tuple[int, ...]
    lrs: tuple[float, ...]
    epochs: int
    batch_size: int
    momentum: float
    weight_decay: float


def fit_sgd(
    features: Features,
    rows: NDArray[np.int64],
    classes: int,
    grid: SGDGrid,
    *,
    device: torch.device | str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
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
        grid: Seeds, L learning rates and the settings that all heads share.
        device: Where to compute; the features of the rows must fit there.
        report: Called now and then with (steps done, steps in all).

    Returns:
        Heads [S][L].
    """
    depth = features.values.shape[1]
    data = _with_bias(features.values).to(device)
    labels = torch.from_numpy(features.labels).to(device)
    # Not in the threads: drawing them uses the global generator.
    first = _initial(grid.seeds, classes, depth, data.shape[1]).to(device)
    threads = torch.get_num_threads() if data.device.type == "cpu" else 1
    parts = [
        replace(grid, lrs=tuple(lrs.tolist()))
        for lrs in np.array_split(np.array(grid.lrs), min(threads, len(grid.lrs)))
    ]

    def fit(number: int) -> NDArray[np.float32]:
        notify = report if number == 0 else (lambda done, total: None)
        return _fit(data, labels, first, rows, classes, parts[number], notify)

    with _one_thread_each(len(parts)), ThreadPoolExecutor(len(parts)) as pool:
        fitted = np.concatenate(list(pool.map(fit, range(len(parts)))), axis=2)
    return [
        [
            LinearHead(of_seed[:, i, :depth].copy(), of_seed[:, i, depth].copy())
            for i in range(len(grid.lrs))
        ]
        for of_seed in fitted
    ]


@contextlib.contextmanager
def _one_thread_each(count: int) -> Iterator[None]:
    """Compute each matrix product on one thread if `count` threads compute products.

    The products are so small (0.3 ms) that two threads within each of them gain nothing:
    sixty heads of ten classes and 512 features took 38 s that way, and 22 s with half of
    the learning rates on each thread (10,000 images, 150 epochs).
    """
    before = torch.get_num_threads()
    if count > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(
    data: Tensor,
    labels: Tensor,
    first: Tensor,
    rows: NDArray[np.int64],
    classes: int,
    grid: SGDGrid,
    report: Callable[[int, int], None],
) -> NDArray[np.float32]:
    """Return the weights of `fit_sgd`, [S, C, L, W], the bias in the column of ones."""
    count, (seed_count, n), device = len(grid.lrs), rows.shape, data.device
    weights = first.repeat(1, 1, count, 1).view(seed_count, classes * count, -1)
    velocity = torch.zeros_like(weights)
    rates = torch.tensor(grid.lrs, dtype=torch.float32, device=device)
    rates = rates.repeat(classes)[None, :, None]
    bounds = _batch_bounds(n, grid.batch_size)
    total = grid.epochs * len(bounds)
    minus_one = torch.full((1, 1, 1, 1), -1.0, device=device)
    for epoch in range(grid.epochs):
        factor = scheduled(1.0, "step", epoch, grid.epochs)
        order = np.stack([
            part[permutation(derive_key(seed, "order", epoch), n)]
            for seed, part in zip(grid.seeds, rows, strict=True)
        ])  # fmt: skip
        chosen = torch.from_numpy(order).to(device)
        for step, (start, stop) in enumerate(bounds):
            index, size = chosen[:, start:stop], stop - start
            x = data.index_select(0, index.reshape(-1)).view(seed_count, size, -1)
            logits = torch.bmm(weights, x.transpose(1, 2))
            error = logits.view(seed_count, classes, count, size).softmax(1)
            true = labels[index][:, None, None, :].expand(-1, 1, count, -1)
            error.scatter_add_(1, true, minus_one.expand(true.shape))
            error = error.view(seed_count, -1, size)
            velocity.baddbmm_(error, x, beta=grid.momentum, alpha=1 / size)
            velocity.add_(weights, alpha=grid.weight_decay)
            weights.addcmul_(velocity, rates, value=-factor)
            if step % 50 == 0:
                report(epoch * len(bounds) + step + 1, total)
    fitted: NDArray[np.float32] = (
        weights.view(seed_count, classes, count, -1).cpu().numpy()
    )
    return fitted


def _with_bias(values: NDArray[np.float32]) -> Tensor:
    """Append a column of ones to [n, D], then zeros up to a multiple of `_ALIGNED`."""
    n, depth = values.shape
    held = torch.zeros(n, -(-(depth + 1) // _ALIGNED) * _ALIGNED)
    held[:, :depth] = torch.from_numpy(np.array(values))
    held[:, depth] = 1
    return held


def _initial(seeds: Sequence[int], classes: int, depth: int, width: int) -> Tensor:
    """Return what `NormalizedModel.replace_head` draws for each seed, [S, C, 1, width]."""
    weights = torch.zeros(len(seeds), classes, 1, width)
    for of_seed, seed in zip(weights[:, :, 0], seeds, strict=True):
        with seeded_init(seed):
            fresh = torch.nn.Linear(depth, classes)
        of_seed[:, :depth] = fresh.weight.detach()
        of_seed[:, depth] = fresh.bias.detach()
    return weights


def _batch_bounds(n: int, size: int) -> list[tuple[int, int]]:
    """Cut an epoch as a training loader does: a last batch of one joins the one before."""
    bounds = [(i, min(i + size, n)) for i in range(0, n, size)]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:
        bounds[-2:] = [(bounds[-2][0], n)]
    return bounds
