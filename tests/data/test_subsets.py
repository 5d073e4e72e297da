"""Subsets are stratified, seeded and complete, for any class sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fastadv.data import ArraySet, subset, train_val_split
from fastadv.data.counter import derive_key, permutation, uniforms
from fastadv.data.sets.subsets import Subset, random_subset
from fastadv.errors import ConfigError

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=8)


def of_sizes(counts: list[int]) -> ArraySet:
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = labels[permutation(1, len(labels))]
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(images, (len(labels), 2, 2, 3)).copy()
    return ArraySet(
        images, labels, list("abcdefgh")[: len(counts)], name="s", split="t"
    )


@settings(derandomize=True, max_examples=150, deadline=None)
@given(sizes, st.data())
def test_subset_is_proportional_and_has_every_class(counts, data):
    full = of_sizes(counts)
    n = data.draw(st.integers(len(counts), len(full)))
    seed = data.draw(st.integers(0, 5))
    part = subset(full, n, seed)
    assert len(part) == n
    assert len(np.unique(part.indices)) == n
    np.testing.assert_array_equal(part.labels, full.labels[part.indices])
    taken = np.bincount(part.labels, minlength=len(counts))
    assert taken.min() >= 1
    ideal = n * np.array(counts) / len(full)
    # Within one image of its share, unless the floor of one image took some.
    assert (taken >= np.minimum(np.floor(ideal), 1)).all()
    assert (taken <= np.ceil(np.maximum(ideal, 1))).all()
    if (ideal >= 1).all():
        assert (abs(taken - ideal) < 1).all()
    np.testing.assert_array_equal(part.indices, subset(full, n, seed).indices)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_split_is_a_stratified_partition(counts, fraction):
    full = of_sizes(counts)
    train, val = train_val_split(full, fraction, seed=0)
    together = np.sort(np.concatenate([train.indices, val.indices]))
    np.testing.assert_array_equal(together, np.arange(len(full)))
    for part in (train, val):
        assert np.bincount(part.labels, minlength=len(counts)).min() >= 1
    bounded = np.clip(fraction * len(full), len(counts), len(full) - len(counts))
    assert abs(len(val) - bounded) <= 0.5


def test_single_image_classes_stay_in_training():
    train, val = train_val_split(of_sizes([1, 10]), 0.5, seed=0)
    assert (train.labels == 0).sum() == 1
    assert (val.labels == 0).sum() == 0


def test_subset_loads_and_names_the_right_images():
    full = of_sizes([20, 20])
    part = subset(full, 10, seed=3)
    for i in range(10):
        np.testing.assert_array_equal(part.load(i), full.load(int(part.indices[i])))
        assert part.describe(i) == full.describe(int(part.indices[i]))
    assert subset(full, None, seed=3) is full
    keys = {full.fingerprint, part.fingerprint, subset(full, 10, seed=4).fingerprint}
    assert len(keys) == 3


def test_larger_subset_extends_a_smaller_one():
    full = of_sizes([30, 30, 30])
    small, large = subset(full, 15, 0), subset(full, 45, 0)
    assert set(small.indices) < set(large.indices)


@pytest.mark.parametrize(("n", "hint"), [(41, "n <= 40"), (1, "n >= 2"), (0, "n >= 2")])
def test_impossible_subsets_are_refused(n, hint):
    with pytest.raises(ConfigError, match=hint):
        subset(of_sizes([20, 20]), n, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ConfigError, match="fraction"):
        train_val_split(of_sizes([20, 20]), fraction, seed=0)
    with pytest.raises(ConfigError, match="two images"):
        train_val_split(of_sizes([1, 1]), 0.5, seed=0)


def test_counter_numbers_are_uniform_and_fixed():
    u = uniforms(derive_key(0, "test"), np.arange(20000), 3)
    assert 0 <= u.min() < u.max() < 1
    assert abs(u.mean(axis=0) - 0.5).max() < 4 * np.sqrt(1 / 12 / 20000)
    assert abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.03
    np.testing.assert_array_equal(uniforms(derive_key(0, "test"), [7], 2)[0], u[7, :2])
    assert sorted(permutation(3, 50)) == list(range(50))


# ---- random subsets ----


def _skewed(counts: list[int]) -> ArraySet:
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(labels), 2, 2, 3), np.uint8)
    classes = [str(c) for c in range(len(counts))]
    return ArraySet(pixels, labels, classes, name="x", split="train")


@pytest.mark.parametrize("n", [5, 6, 30, 60])
def test_a_random_subset_has_every_class_and_no_image_twice(n: int) -> None:
    images = _skewed([50, 4, 1, 2, 3])
    seen = set()
    for seed in range(20):
        part = random_subset(images, n, seed)
        assert isinstance(part, Subset)
        assert len(part) == n == len(set(part.indices.tolist()))
        assert set(part.labels.tolist()) == set(range(5))
        assert (np.diff(part.indices) > 0).all()
        assert np.array_equal(part.indices, random_subset(images, n, seed).indices)  # type: ignore[attr-defined]
        seen.add(tuple(part.indices.tolist()))
    assert len(seen) == 1 if n == 60 else len(seen) > 1


def test_random_subsets_vary_in_their_classes_as_chance_has_it() -> None:
    """Of 100 of 1,000 images in two halves: hypergeometric, variance 25 * 900 / 999."""
    images = _skewed([500, 500])
    counts = np.array([
        np.bincount(random_subset(images, 100, seed).labels)[0] for seed in range(400)
    ])  # fmt: skip
    variance = 25 * 900 / 999
    assert abs(counts.mean() - 50) < 4 * (variance / 400) ** 0.5
    # The variance of a sample variance of 400: 2 sigma^4 / 399, four deviations.
    assert abs(counts.var(ddof=1) - variance) < 4 * variance * (2 / 399) ** 0.5
    even = [np.bincount(subset(images, 100, seed).labels)[0] for seed in range(20)]
    assert set(even) == {50}


def test_random_subsets_that_cannot_be() -> None:
    images = _skewed([5, 0, 5])
    assert random_subset(images, None, 0) is images
    assert set(random_subset(images, 2, 0).labels.tolist()) == {0, 2}  # no class 1
    with pytest.raises(ConfigError, match=r"n=1 images cannot contain all 2 classes"):
        random_subset(images, 1, 0)
    with pytest.raises(ConfigError, match="larger than x/train, which has 10"):
        random_subset(images, 11, 0)
