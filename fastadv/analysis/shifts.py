"""Decisions on corrupted images: batches of them, and what is kept of each decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.data.corruptions.corrupt import corrupt
from fastadv.statistics import wilson

Condition = tuple[str, int]
"""A kind of corruption and its severity."""

FIELDS = ("right", "confidence", "nll", "brier")


def corrupted_batches(
    images: NDArray[np.uint8],
    positions: NDArray[np.int64],
    conditions: Sequence[Condition],
    *,
    seed: int,
    pool: ThreadPoolExecutor,
) -> Iterator[NDArray[np.uint8]]:
    """Yield a batch of images under each condition, in turn.

    The next condition is made while the caller works on one.

    Args:
        images: Images as the network sees them, uint8 [n, H, W, 3].
        positions: Positions of the images in their data set, which seed their draws.
        conditions: Corruptions and severities.
        seed: Seed of what is drawn.
        pool: Threads to work in.

    Yields:
        uint8 [n, H, W, 3].
    """

    def begin(condition: Condition) -> list[Future[NDArray[np.uint8]]]:
        kind, severity = condition
        return [
            pool.submit(corrupt, image, kind, severity, seed=seed, index=int(position))
            for image, position in zip(images, positions, strict=True)
        ]

    waiting = begin(conditions[0])
    for after in (*conditions[1:], None):
        made = [each.result() for each in waiting]
        if after is not None:
            waiting = begin(after)
        yield np.stack(made)


def decided(scores: Tensor, labels: Tensor) -> dict[str, NDArray[np.generic]]:
    """Return what is kept of decisions: `FIELDS` by name, each [n].

    `right` is bool; confidence, negative log-likelihood (nats) and Brier score (0 to 2)
    are float32.
    """
    shares = scores.double().softmax(1)
    confidence, decision = shares.max(1)
    true = shares.gather(1, labels[:, None])[:, 0]
    found = {
        "right": decision == labels,
        "confidence": confidence.float(),
        "nll": torch.nn.functional.cross_entropy(
            scores.double(), labels, reduction="none"
        ).float(),
        "brier": (shares.square().sum(1) - 2 * true + 1).float(),
    }
    return {name: value.cpu().numpy() for name, value in found.items()}


def mean_share(per_image: NDArray[np.floating]) -> tuple[float, float, float]:
    """Return the mean of shares of images and its 95 % interval, all in percent.

    Each image has one share, that of its corrupted copies that are right, so that the
    interval is over the draw of images.

    Args:
        per_image: Shares in [0, 1], float [n].
    """
    n, mean = len(per_image), float(per_image.mean())
    spread = float(per_image.std(ddof=1)) / np.sqrt(n) if n > 1 else 0.0
    if not spread:  # All or none are right.
        low, high = wilson(mean * n, n)
    else:
        low, high = max(0.0, mean - 1.96 * spread), min(1.0, mean + 1.96 * spread)
    return 100 * mean, 100 * low, 100 * high


def per_condition(
    found: Sequence[Mapping[str, NDArray[np.generic]]], kinds: int, severities: int
) -> dict[str, NDArray[np.generic]]:
    """Return the fields of decisions under all conditions as [kinds, severities, n]."""
    return {
        name: np.stack([each[name] for each in found]).reshape(kinds, severities, -1)
        for name in FIELDS
    }
