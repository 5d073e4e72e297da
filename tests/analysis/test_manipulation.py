"""Patches in random order, and frequencies by radius: identities and what is kept."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from fastadv.analysis.manipulation import (
    band_pass,
    highest_frequency,
    shuffle_patches,
)

SIDES = st.sampled_from([8, 9, 16, 24])


def noise(side: int, n: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(side)
    return torch.rand(n, 3, side, side, generator=draw, dtype=torch.float64)


@given(SIDES, st.floats(0.5, 20))
@settings(max_examples=40, deadline=None)
def test_low_and_high_frequencies_add_up_to_the_image(side: int, radius: float) -> None:
    images = noise(side)
    low, high = band_pass(images, 0, radius), band_pass(images, radius, math.inf)
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(low + high - mean, images, rtol=0, atol=1e-12)
    for part in (low, high):
        torch.testing.assert_close(part.mean((2, 3), keepdim=True), mean)


@given(SIDES)
@settings(max_examples=10, deadline=None)
def test_bands_add_up_to_the_image(side: int) -> None:
    images = noise(side)
    ends = [0, 2, 3.5, 6, math.inf]
    bands = [band_pass(images, *pair) for pair in itertools.pairwise(ends)]
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(sum(bands) - 3 * mean, images, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [8, 9, 64])
def test_a_filter_that_takes_nothing_returns_the_image(side: int) -> None:
    images = noise(side)
    assert band_pass(images, 0, highest_frequency(side)) is images
    taken = band_pass(images, 0, highest_frequency(side) - 0.01)
    assert not torch.equal(taken, images)


@pytest.mark.parametrize(("fx", "fy"), [(3, 0), (0, 3), (3, 4), (-3, 4), (8, 8)])
def test_the_radius_counts_cycles_per_image(fx: int, fy: int) -> None:
    """A grating passes exactly where its number of cycles lies in the band."""
    axis = torch.arange(16, dtype=torch.float64) / 16
    wave = torch.cos(2 * math.pi * (fx * axis[None, :] + fy * axis[:, None]))
    image = (0.5 + 0.4 * wave)[None, None]
    radius = math.hypot(fx, fy)
    flat = torch.full_like(image, 0.5)
    for low, high, kept in (
        (0, radius, True),
        (radius - 0.1, radius + 0.1, True),
        (radius, math.inf, False),
        (0, radius - 0.1, False),
    ):
        found = band_pass(image, low, high)
        torch.testing.assert_close(found, image if kept else flat, rtol=0, atol=1e-12)


def test_radii_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="low=4 must be below high=4"):
        band_pass(noise(8), 4, 4)


def test_one_patch_is_the_image() -> None:
    images = noise(8)
    assert shuffle_patches(images, 1, np.arange(3)) is images


@given(st.sampled_from([2, 4, 8]), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_patches_are_moved_whole(grid: int, seed: int) -> None:
    images, patch = noise(16), 16 // grid
    found = shuffle_patches(images, grid, np.arange(3), seed)

    def patches(image: torch.Tensor) -> list[bytes]:
        return sorted(
            image[:, y : y + patch, x : x + patch].numpy().tobytes()
            for y in range(0, 16, patch)
            for x in range(0, 16, patch)
        )

    for before, after in zip(images, found, strict=True):
        assert patches(before) == patches(after)


def test_each_image_has_its_own_order_wherever_it_stands() -> None:
    images = noise(16, 20)
    found = shuffle_patches(images, 4, np.arange(20), seed=1)
    part = shuffle_patches(images[5:9], 4, np.arange(5, 9), seed=1)
    assert torch.equal(found[5:9], part)
    same = shuffle_patches(images[:1].expand(20, 3, 16, 16), 4, np.arange(20), seed=1)
    assert len({image.numpy().tobytes() for image in same}) == 20
    other = shuffle_patches(images, 4, np.arange(20), seed=2)
    assert not torch.equal(found, other)


def test_every_place_is_as_likely() -> None:
    """Of 4 patches, each is in each place in a quarter of 2000 images."""
    image = torch.arange(4.0).reshape(1, 1, 2, 2).expand(2000, 1, 2, 2)
    found = shuffle_patches(image, 2, np.arange(2000)).reshape(2000, 4).numpy()
    counts = np.array(
        [np.bincount(place.astype(int), minlength=4) for place in found.T]
    )
    # Each is binomial with a standard deviation of 19.4.
    assert np.abs(counts - 500).max() < 4.5 * math.sqrt(2000 * 0.25 * 0.75)


@pytest.mark.parametrize("grid", [0, 3, 32])
def test_grids_that_do_not_divide_the_side(grid: int) -> None:
    with pytest.raises(ValueError, match="use one of 1, 2, 4, 8, 16"):
        shuffle_patches(noise(16), grid, np.arange(3))
