"""Images with the spectrum of others: identity, what stays, and what is exchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import image_folder
from PIL import Image

from fastadv.data import make_loader, open_dataset
from fastadv.data.sets.exchanged import TextureExchanged, with_texture
from fastadv.data.sets.subsets import Subset
from fastadv.errors import ConfigError, DataError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", [(16, 16), (15, 17), (1, 5)])
def test_an_exchange_with_itself_is_the_image(size: tuple[int, int]) -> None:
    image = noise(*size)
    np.testing.assert_array_equal(with_texture(image, image), image)


def test_flat_images() -> None:
    flat = np.full((8, 8, 3), 77, np.uint8)
    np.testing.assert_array_equal(with_texture(flat, flat), flat)
    black = np.zeros((8, 8, 3), np.uint8)
    np.testing.assert_array_equal(with_texture(noise(8, 8), black), black)


def test_amplitudes_come_from_one_and_phases_from_the_other() -> None:
    # Low contrast, so that nothing is clipped.
    image, texture = (np.uint8(100 + noise(32, 32, seed=s) // 8) for s in (1, 2))
    found = with_texture(image, texture)
    spectra = [
        np.fft.fft2(x.astype(float), axes=(0, 1)) for x in (image, texture, found)
    ]
    large = np.abs(spectra[1]) > 100  # rounding to integers adds noise of about 10
    assert large.sum() > 200
    ratio = np.abs(spectra[2])[large] / np.abs(spectra[1])[large]
    assert np.abs(ratio - 1).max() < 0.4
    turn = np.angle(spectra[2] / spectra[0])[large]
    assert np.abs(turn).max() < 0.4
    assert found.mean((0, 1)) == pytest.approx(texture.mean((0, 1)), abs=0.5)


def test_a_texture_of_another_size_is_resized() -> None:
    texture = np.repeat(np.repeat(noise(8, 8), 4, 0), 4, 1)
    found = with_texture(noise(16, 24, seed=1), texture)
    assert found.shape == (16, 24, 3)
    assert found.mean((0, 1)) == pytest.approx(texture.mean((0, 1)), abs=3)


def test_textures_are_as_frequent_as_before_and_say_nothing_about_the_class() -> None:
    splits = open_dataset("digits", texture="exchange")
    plain = open_dataset("digits")
    for view, base in ((splits.train, plain.train), (splits.test, plain.test)):
        assert isinstance(view, TextureExchanged)
        assert view.classes == base.classes
        np.testing.assert_array_equal(view.labels, base.labels)
        assert sorted(view.partners) == list(range(len(base)))
        assert (view.partners != np.arange(len(base))).all()
        assert view.texture_labels is not None
        table = np.zeros((10, 10))
        np.add.at(table, (view.labels, view.texture_labels), 1)
        expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
        chi_square = ((table - expected) ** 2 / expected).sum()
        assert chi_square < 81 + 4 * np.sqrt(2 * 81)


def test_the_seed_and_the_split_choose_the_partners() -> None:
    one, two = (
        open_dataset("digits", texture="exchange", texture_seed=seed) for seed in (0, 1)
    )
    assert isinstance(one.test, TextureExchanged)
    assert isinstance(two.test, TextureExchanged)
    assert (one.test.partners != two.test.partners).mean() > 0.9
    plain = open_dataset("digits").test
    found = {images.fingerprint for images in (one.test, two.test, plain, one.train)}
    assert len(found) == 4
    hashes = {images.content_hash() for images in (one.test, two.test, plain)}
    assert len(hashes) == 3
    parts = [Subset(one.test, rows).content_hash() for rows in ([0, 1], [0, 2])]
    assert len({*parts, *hashes}) == 5
    again = open_dataset("digits", texture="exchange").test
    assert again.content_hash() == one.test.content_hash()


def test_textures_of_a_folder(tmp_path: Path) -> None:
    paintings = tmp_path / "paintings" / "van-gogh"
    paintings.mkdir(parents=True)
    for i, level in enumerate((10, 240)):
        Image.fromarray(np.full((9, 7, 3), level, np.uint8)).save(
            paintings / f"{i}.png"
        )
    data = image_folder(tmp_path / "set")
    plain = open_dataset(data)
    for where in (paintings, str(paintings.parent)):
        splits = open_dataset(data, texture=str(where))
        seen = [int(splits.train.load(i).mean()) for i in range(len(splits.train))]
        assert set(seen) == {10, 240}
    assert splits.train.fingerprint != plain.train.fingerprint
    assert splits.train.texture_labels is None
    loader = make_loader(splits.test, batch_size=4, resolution=16, train=False)
    assert {int(batch.images.float().mean((1, 2, 3))[0]) for batch in loader} <= {
        10,
        240,
    }


def test_an_unreadable_texture_is_a_bad_image(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "set")
    broken = data / "val" / "above" / "00.jpg"
    broken.write_bytes(b"not a picture")
    view = open_dataset(data, texture="exchange").test
    assert isinstance(view, TextureExchanged)
    index = view.base.members.index("val/above/00.jpg")
    loader = make_loader(view, batch_size=4, resolution=16, train=False)
    seen = sorted(int(i) for batch in loader for i in batch.indices)
    victim = int(np.flatnonzero(view.partners == index)[0])
    assert seen == sorted(set(range(len(view))) - {index, victim})
    reasons = dict(loader.bad_images)
    assert "its texture" in reasons[view.describe(victim)]


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        open_dataset("digits", texture=str(tmp_path))
    with pytest.raises(ConfigError, match="texture_seed"):
        open_dataset("digits", texture="exchange", texture_seed="many")
    with pytest.raises(ConfigError, match="perhaps you meant: texture"):
        open_dataset("digits", textures="exchange")
    with pytest.raises(ConfigError, match="needs two"):
        TextureExchanged(Subset(open_dataset("digits").test, [3]))
