"""Calibration: closed forms, scikit-learn, and what an interval covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from fastadv.statistics.calibration import (
    calibration_error,
    decisions,
    equal_mass,
    equal_width,
    error_by_chance,
    error_interval,
    fit_temperature,
    reliability,
)


def drawn(n: int = 400, k: int = 5, scale: float = 2.0, seed: int = 0):
    draw = np.random.default_rng(seed)
    logits = scale * draw.normal(size=(n, k))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([draw.choice(k, p=p) for p in shares])
    return logits, labels, shares


def test_likelihood_and_brier_equal_scikit_learn() -> None:
    logits, labels, shares = drawn()
    found = decisions(logits, labels)
    np.testing.assert_allclose(found.nll.mean(), log_loss(labels, shares), rtol=1e-12)
    hot = np.eye(5)[labels]
    np.testing.assert_allclose(found.brier, ((shares - hot) ** 2).sum(1), rtol=1e-10)
    np.testing.assert_allclose(found.confidence, shares.max(1), rtol=1e-12)
    np.testing.assert_array_equal(found.right, shares.argmax(1) == labels)


def test_extreme_logits_do_not_overflow() -> None:
    logits = np.array([[1e5, 0.0], [0.0, 1e5], [-1e5, -1e5]], np.float32)
    found = decisions(logits, np.array([0, 0, 1]))
    np.testing.assert_allclose(found.nll, [0, 1e5, math.log(2)])
    np.testing.assert_allclose(found.brier, [0, 2, 0.5])
    np.testing.assert_allclose(found.confidence, [1, 1, 0.5])


def test_the_error_of_a_hand_made_case() -> None:
    """Two bins: 4 images at 0.9, half right; 6 at 0.3, all wrong."""
    confidence = np.array([0.9] * 4 + [0.3] * 6)
    right = np.array([True, True, False, False] + [False] * 6)
    which = equal_width(confidence, 15)
    expected = 0.4 * abs(0.5 - 0.9) + 0.6 * 0.3
    assert calibration_error(confidence, right, which) == pytest.approx(expected)
    # Opposite errors within one bin cancel out.
    cancel = np.array([0.62, 0.64])
    both = np.array([True, False])
    error = calibration_error(cancel, both, equal_width(cancel, 10))
    assert error == pytest.approx(abs(0.5 - 0.63))
    # Weights count images several times.
    weights = np.array([2] * 4 + [1] * 6)
    expected = (8 * 0.4 + 6 * 0.3) / 14
    found = calibration_error(confidence, right, which, weights)
    assert found == pytest.approx(expected)


def test_bins() -> None:
    assert equal_width(np.array([0.0, 0.1, 0.10001, 1.0]), 10).tolist() == [0, 0, 1, 9]
    confidence = np.random.default_rng(0).random(90)
    assert np.bincount(equal_mass(confidence, 15)).tolist() == [6] * 15
    # Ties stay together, whatever the order.
    ties = np.array([0.5] * 50 + [0.6, 0.7])
    assert len(set(equal_mass(ties, 15)[:50])) == 1
    found = reliability(np.array([0.05, 0.95, 0.97]), np.array([True, True, False]), 10)
    assert found.count.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found.accuracy[[0, 9]].tolist() == [1, 0.5]
    assert found.confidence[9] == pytest.approx(0.96)
    assert np.isnan(found.accuracy[4])


def test_adaptive_error_does_not_depend_on_the_order() -> None:
    logits, labels, _ = drawn()
    found = decisions(logits.round(1), labels)
    order = np.random.default_rng(1).permutation(400)
    errors = [
        calibration_error(c, r, equal_mass(c))
        for c, r in (
            (found.confidence, found.right),
            (found.confidence[order], found.right[order]),
        )
    ]
    assert errors[0] == pytest.approx(errors[1], abs=1e-12)


def test_a_calibrated_network_has_the_error_by_chance() -> None:
    """Over many draws of labels from the probabilities themselves."""
    errors, chance = [], []
    for seed in range(30):
        logits, labels, _ = drawn(300, seed=seed)
        found = decisions(logits, labels)
        which = equal_width(found.confidence)
        errors.append(calibration_error(found.confidence, found.right, which))
        chance.append(error_by_chance(found.confidence, which))
    assert np.mean(errors) == pytest.approx(np.mean(chance), rel=0.1)
    # And one that is too sure has more.
    logits, labels, _ = drawn(300)
    sure = decisions(3 * logits, labels)
    which = equal_width(sure.confidence)
    error = calibration_error(sure.confidence, sure.right, which)
    assert error > 3 * error_by_chance(sure.confidence, which)


def test_the_interval_covers_the_error_of_other_draws() -> None:
    """Of a network that is too sure by far, where the bias of the error is small."""
    logits, labels, _ = drawn(60000, seed=3)
    all_of_them = decisions(4 * logits, labels)
    which = equal_width(all_of_them.confidence)
    truth = calibration_error(all_of_them.confidence, all_of_them.right, which)
    covered = 0
    for part in np.array_split(np.arange(60000)[:40000], 40):
        confidence, right = all_of_them.confidence[part], all_of_them.right[part]
        low, high = error_interval(confidence, right, which[part])
        covered += low <= truth <= high
    assert covered >= 34  # of 40; 38 are expected


def test_the_temperature_undoes_a_scale() -> None:
    logits, labels, _ = drawn(5000, seed=2)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(1, abs=0.05)
    assert fit_temperature(2.5 * logits, labels) == pytest.approx(
        2.5 * fitted, rel=1e-3
    )
    # The derivative of the likelihood vanishes there: mean logit = mean expected logit.
    shares = np.exp(logits / fitted)
    shares /= shares.sum(1, keepdims=True)
    gap = logits[np.arange(5000), labels] - (shares * logits).sum(1)
    assert gap.mean() == pytest.approx(0, abs=1e-4)


def test_no_temperature_where_all_is_right() -> None:
    logits = 3 * np.eye(4)
    assert fit_temperature(logits, np.arange(4)) is None
    # Worse than guessing: the hotter, the better.
    assert fit_temperature(logits, (np.arange(4) + 1) % 4) is None


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, np.nan], [1, 2]], [0, 1], "logits of 1 of 2 images are not finite"),
        ([[0.0, np.inf]], [0], "not finite"),
        ([[0.0, 1.0]], [2], "2 classes"),
        ([[0.0, 1.0]], [0, 1], "do not fit"),
        (np.zeros((0, 3)), [], "n >= 1"),
    ],
)
def test_bad_logits(logits, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decisions(np.array(logits, np.float64), np.array(labels, int))
