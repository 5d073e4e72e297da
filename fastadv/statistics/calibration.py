"""Calibration: whether confidence is the share of decisions that are right.

All functions take logits or what was derived from them; no network runs. Source of the
measures: Naeini et al. 2015 and Guo et al. 2017 (expected calibration error, temperature),
Nguyen and O'Connor 2015 (bins of equal mass), Brier 1950.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BINS = 15  # As in Guo et al. 2017.
_DRAWS = 500
_COLDEST, _HOTTEST = 1e-2, 1e2  # Range of temperatures.


@dataclass(frozen=True)
class Decisions:
    """What a network decided on n images, and how sure it was.

    Attributes:
        confidence: Probability of the class that was decided for, float64 [n].
        right: Whether that class is the true one, bool [n].
        nll: Negative log-likelihood of the true class in nats, float64 [n].
        brier: Sum over classes of the squared error of the probabilities, from 0 to 2,
            float64 [n].
    """

    confidence: Array
    right: NDArray[np.bool_]
    nll: Array
    brier: Array


def decisions(
    logits: NDArray[np.floating],
    labels: NDArray[np.integer],
    temperature: float | Array = 1.0,
) -> Decisions:
    """Return decisions and their confidence.

    Args:
        logits: Finite logits [n, K].
        labels: True classes [n], in [0, K).
        temperature: Positive number, or one for each image [n], that logits are divided
            by.

    Raises:
        ValueError: Logits are not finite, shapes do not fit, there are no images, or a
            label is no class.
    """
    values = np.asarray(logits, np.float64)
    labels = np.asarray(labels, np.int64)
    if values.ndim != 2 or labels.shape != values.shape[:1] or not len(labels):
        raise ValueError(
            f"logits {list(values.shape)} and labels {list(labels.shape)} do not fit "
            "together; expected [n, K] and [n] with n >= 1"
        )
    if bad := int((~np.isfinite(values)).any(1).sum()):
        raise ValueError(f"logits of {bad} of {len(values)} images are not finite")
    if labels.min() < 0 or labels.max() >= values.shape[1]:
        raise ValueError(
            f"labels span [{labels.min()}, {labels.max()}]; the logits have "
            f"{values.shape[1]} classes"
        )
    scaled = values / np.reshape(np.asarray(temperature, np.float64), (-1, 1))
    scaled -= scaled.max(1, keepdims=True)
    total = np.exp(scaled).sum(1, keepdims=True)
    shares = np.exp(scaled) / total
    rows = np.arange(len(labels))
    return Decisions(
        confidence=shares.max(1),
        right=values.argmax(1) == labels,
        nll=np.log(total[:, 0]) - scaled[rows, labels],
        brier=(shares**2).sum(1) - 2 * shares[rows, labels] + 1,
    )


def equal_width(confidence: Array, bins: int = BINS) -> NDArray[np.int64]:
    """Return the bin of each confidence, of `bins` equally wide ones from 0 to 1.

    A confidence on the border of two bins belongs to the lower one.
    """
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def equal_mass(confidence: Array, bins: int = BINS) -> NDArray[np.int64]:
    """Return the bin of each confidence, of bins with equally many images.

    Images of one confidence share a bin, so that their order does not count; bins may then
    differ in size, and be fewer.
    """
    ranks = np.searchsorted(np.sort(confidence), confidence)
    return np.asarray(ranks * bins // len(confidence), np.int64)


@dataclass(frozen=True)
class Reliability:
    """The images of each bin: how many, how sure, and how often right.

    Attributes:
        count: Number of images, int64 [bins].
        confidence: Mean confidence, float64 [bins]; NaN in empty bins.
        accuracy: Share that is right, float64 [bins]; NaN in empty bins.
    """

    count: NDArray[np.int64]
    confidence: Array
    accuracy: Array


def reliability(
    confidence: Array, right: NDArray[np.bool_], bins: int = BINS
) -> Reliability:
    """Return the contents of equally wide bins, for a reliability diagram."""
    which = equal_width(confidence, bins)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [
            np.bincount(which, weights=values, minlength=bins) / count
            for values in (confidence, right)
        ]
    return Reliability(count, *means)


def calibration_error(
    confidence: Array,
    right: NDArray[np.bool_],
    which: NDArray[np.int64],
    weights: NDArray[np.integer] | None = None,
) -> float:
    """Return the expected calibration error, in [0, 1].

    It is the distance between confidence and accuracy in each bin, weighted by the number
    of its images.

    Args:
        confidence: Confidences [n].
        right: Whether each decision is right, [n].
        which: Bin of each image, as of `equal_width` or `equal_mass`.
        weights: How often each image counts; None: once.
    """
    gap = right - confidence
    if weights is None:
        return float(np.abs(np.bincount(which, weights=gap)).sum() / len(gap))
    gaps = np.bincount(which, weights=weights * gap)
    return float(np.abs(gaps).sum() / weights.sum())


def error_interval(
    confidence: Array, right: NDArray[np.bool_], which: NDArray[np.int64], seed: int = 0
) -> tuple[float, float]:
    """Return the ends of a 95 % interval of the calibration error over the draw of images.

    It is the error plus and minus 1.96 standard deviations over resampled images, which
    has no regard to the bias of the error; see `error_by_chance`.
    """
    draw = np.random.default_rng(seed)
    n = len(confidence)
    middle = calibration_error(confidence, right, which)
    drawn = [
        calibration_error(
            confidence, right, which, np.bincount(draw.integers(0, n, n), minlength=n)
        )
        for _ in range(_DRAWS)
    ]
    half = 1.96 * float(np.std(drawn, ddof=1))
    return max(0.0, middle - half), min(1.0, middle + half)


def error_by_chance(
    confidence: Array, which: NDArray[np.int64], seed: int = 0
) -> float:
    """Return the mean calibration error of a calibrated network with these confidences.

    It is above 0 since bins hold finitely many images: an error of about this size is no
    evidence against calibration.
    """
    draw = np.random.default_rng(seed)
    return float(
        np.mean(
            [
                calibration_error(
                    confidence, draw.random(len(confidence)) < confidence, which
                )
                for _ in range(_DRAWS)
            ]
        )
    )


def fit_temperature(
    logits: NDArray[np.floating], labels: NDArray[np.integer]
) -> float | None:
    """Return the temperature of the least negative log-likelihood.

    Args:
        logits: Finite logits [n, K].
        labels: True classes [n].

    Returns:
        The temperature, from 0.01 to 100; None where the likelihood has no maximum in
        between, as where every decision is right.
    """
    from scipy import optimize

    def mean_nll(log_temperature: float) -> float:
        return float(decisions(logits, labels, math.exp(log_temperature)).nll.mean())

    if decisions(logits, labels).right.all():
        return None
    ends = math.log(_COLDEST), math.log(_HOTTEST)
    found = optimize.minimize_scalar(
        mean_nll, bounds=ends, method="bounded", options={"xatol": 1e-6}
    )
    inside = ends[0] + 1e-3 < found.x < ends[1] - 1e-3
    return math.exp(found.x) if inside else None
