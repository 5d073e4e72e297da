"""The procedural set is what it claims: known, independent, reproducible."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fastadv.data import ShapeTex, open_dataset
from fastadv.data.counter import uniforms
from fastadv.data.sets.shapetex_fields import SHAPES, TEXTURES
from fastadv.data.sets.shapetex_render import BACKGROUNDS, COLORS, DRAWS, render
from fastadv.errors import ConfigError
from fastadv.files import fastadv_cache_dir

PAIRS = len(SHAPES) * len(TEXTURES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))


def made(n=300, **options) -> ShapeTex:
    return ShapeTex(n, **({"resolution": 32, "cache": False} | options))


def contingency(s: ShapeTex, a: str, b: str) -> np.ndarray:
    table = np.zeros((s.attributes[a].max() + 1, s.attributes[b].max() + 1))
    np.add.at(table, (s.attributes[a], s.attributes[b]), 1)
    return table


def chi_square(table: np.ndarray) -> float:
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def test_image_does_not_depend_on_n():
    few, many = made(40), made(300)
    np.testing.assert_array_equal(few.images, many.images[:40])
    np.testing.assert_array_equal(few.attributes, many.attributes[:40])


def test_seed_and_split_choose_different_images():
    base = made(150)
    for other in (made(150, seed=1), made(150, split="test")):
        distance = abs(base.images.astype(int) - other.images).mean(axis=(1, 2, 3))
        assert distance.min() > 5
        assert (base.attributes["shape"] != other.attributes["shape"]).mean() > 0.8


def test_shape_and_texture_are_exactly_independent_per_block():
    s = made(2 * PAIRS)
    assert (contingency(s, "shape", "texture") == 2).all()


def test_colour_and_background_are_independent_of_the_labels():
    s = made(6000)
    for a in ("shape", "texture"):
        for b, names in (("color", COLORS), ("background", BACKGROUNDS)):
            freedom = (len(SHAPES) - 1) * (len(names) - 1)
            bound = freedom + 4 * np.sqrt(2 * freedom)
            assert chi_square(contingency(s, a, b)) < bound


def test_correlation_is_the_probability_of_equal_ids():
    for correlation in (0.0, 0.5, 1.0):
        s = made(6000, correlation=correlation)
        equal = (s.attributes["shape"] == s.attributes["texture"]).mean()
        chance = correlation + (1 - correlation) / len(TEXTURES)
        assert abs(equal - chance) < 0.03
        assert np.ptp(np.bincount(s.attributes["shape"])) <= len(TEXTURES)


def test_labels_follow_the_attribute_asked_for():
    shape, texture = made(label="shape"), made(label="texture")
    np.testing.assert_array_equal(shape.labels, shape.attributes["shape"])
    np.testing.assert_array_equal(texture.labels, texture.attributes["texture"])
    assert (shape.classes, texture.classes) == (tuple(SHAPES), tuple(TEXTURES))
    np.testing.assert_array_equal(shape.images, texture.images)
    assert shape.fingerprint != texture.fingerprint


def rendered(shape: int, texture: int, resolution: int, rows=20) -> np.ndarray:
    u = uniforms(5, np.arange(rows), DRAWS)
    ids = np.full(rows, shape), np.full(rows, texture), np.zeros(rows, dtype=int)
    return render(*ids, u, resolution).astype(float)


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=list(SHAPES))
def test_edges_are_antialiased(shape):
    # Drawn at 96 and averaged down by 3 is the coverage drawn at 32 aims at.
    fine = rendered(shape, 0, 96).reshape(20, 32, 3, 32, 3, 3).mean(axis=(2, 4))
    drawn = rendered(shape, 0, 32)
    hard = rendered(shape, 0, 96)[:, 1::3, 1::3]  # a point sample per pixel
    assert abs(drawn - fine).mean() < 0.5 * abs(hard - fine).mean()


def test_every_shape_and_texture_differs_from_every_other():
    # Same draws: only the attribute varies. Pixels that change, of 32 x 32.
    for count, image in (
        (len(SHAPES), lambda k: rendered(k, 2, 32)),
        (len(TEXTURES), lambda k: rendered(1, k, 32)),
    ):
        drawn = [image(k) for k in range(count)]
        for a in range(count):
            for b in range(a):
                changed = abs(drawn[a] - drawn[b]).max(axis=3) > 40
                assert changed.mean() > 0.02, (a, b)


def test_the_outline_is_visible_against_the_background():
    s = made(600, resolution=48)
    luma = s.images @ np.array([0.299, 0.587, 0.114])
    border = np.concatenate([luma[:, 0], luma[:, -1]], axis=1).mean(axis=1)
    away = abs(luma - border[:, None, None]) > 40
    assert np.quantile(away.mean(axis=(1, 2)), 0.02) > 0.05


def test_bold_shapes_stand_out_and_their_textures_do_not():
    """The same shapes at the same places, but figure and ground differ far more."""
    luma = np.array([0.299, 0.587, 0.114]) / 255

    def contrasts(s: ShapeTex) -> tuple[float, float]:
        found = []
        for pixels in s.images[np.isin(s.labels, full)]:
            grey = pixels @ luma
            corner, centre = grey[:3, :3], grey[12:20, 12:20]
            found.append((abs(np.median(corner) - np.median(centre)), np.ptp(centre)))
        return tuple(np.median(found, axis=0))

    full = [list(SHAPES).index(name) for name in ("circle", "square", "hexagon")]
    plain, bold = made(300), made(300, bold=True)
    np.testing.assert_array_equal(plain.attributes, bold.attributes)
    assert (plain.name, bold.name) == ("shapetex", "shapetex_bold")
    assert plain.fingerprint != bold.fingerprint
    (figure, texture), (bold_figure, bold_texture) = contrasts(plain), contrasts(bold)
    assert bold_figure > 0.65 > 1.2 * figure
    assert bold_texture < 0.3 < texture
    # Neither the brightness of the ground nor that of the figure tells the shape.
    dark = np.array([(image[:3, :3] @ luma).mean() < 0.5 for image in bold.images])
    assert 0.35 < dark.mean() < 0.65
    opened = open_dataset("shapetex_bold", resolution=32, n_train=24, n_test=12)
    assert (opened.name, len(opened.train.classes)) == ("shapetex_bold", 12)


def test_cache_file_is_reused(monkeypatch):
    first = made(cache=True).images
    (path,) = (fastadv_cache_dir() / "shapetex").iterdir()
    monkeypatch.setattr(ShapeTex, "_draw", lambda self: pytest.fail("drawn again"))
    np.testing.assert_array_equal(made(cache=True).images, first)
    np.testing.assert_array_equal(made(cache=True, label="texture").images, first)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_cache_file_is_made_again(damage, caplog):
    first = made(cache=True).images
    (path,) = (fastadv_cache_dir() / "shapetex").iterdir()
    good = path.read_bytes()
    flipped = good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
    path.write_bytes({"flip": flipped, "truncate": good[:-100], "empty": b""}[damage])
    np.testing.assert_array_equal(made(cache=True).images, first)
    assert "damaged" in caplog.text
    assert path.read_bytes() == good


def test_unwritable_cache_costs_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "file"))
    assert len(made(20, cache=True).images) == 20
    assert "FASTADV_CACHE" in caplog.text


def test_pickled_copy_is_equal():
    s = made(20)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(s)).images, s.images)


def test_open_dataset_passes_options_on():
    splits = open_dataset(
        "shapetex_texture", resolution=40, n_train=24, n_test=12, correlation=1.0
    )
    assert (len(splits.train), len(splits.test)) == (24, 12)
    assert splits.train.load(0).shape == (40, 40, 3)
    assert (splits.train.labels == splits.train.attributes["shape"]).all()
    assert not (splits.test.labels == splits.test.attributes["shape"]).all()


@pytest.mark.parametrize(
    "options", [{"n": 0}, {"resolution": 16}, {"label": "hue"}, {"correlation": 1.5}]
)
def test_bad_parameters_are_refused(options):
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        made(**options)
