"""Loaders over encoded files: the three backends agree, also on odd and damaged images."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastadv.data import (
    ArraySet,
    BadImage,
    DatasetSplits,
    make_loader,
    open_dataset,
    subset,
)
from fastadv.data.counter import uniforms
from fastadv.data.loading import dali_loader as dali, make_loader as choosing
from fastadv.data.loading.colour import COLOUR_DRAWS, colour_changes
from fastadv.data.loading.dali_loader import DALILoader
from fastadv.data.loading.loader import LoaderOptions
from fastadv.errors import ConfigError, DataError
from fastadv.preparation import Preparation

needs_dali = pytest.mark.skipif(
    dali._probe(torch.device("cpu")) is not None,
    reason=str(dali._probe(torch.device("cpu"))),
)
DALI = pytest.param("dali", marks=needs_dali)
BACKENDS = [DALI, "memory", "torchvision"]
every = pytest.mark.parametrize("backend", BACKENDS)

# Decoders differ by rounding in the inverse DCT and in the conversion from YCbCr, resamplers
# in where they round: 0.16 levels in the mean of real photographs, at most 10 on edges.
MEAN_GAP, MOST_GAP = 0.5, 16


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """Waves and grain, as incompressible as a photograph."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        110 + 70 * np.sin(x / (9 + c) + seed) + 40 * np.cos(y / 13 - c)
        for c in range(3)
    ]
    grain = generator.normal(0, 6, (height, width, 1))
    return (np.stack(waves, 2) + grain).clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels).convert(mode)
    image.save(out, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return out.getvalue()


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_tables(data: bytes) -> bytes:
    """A whole header and end, but Huffman tables that no decoder can use."""
    at = data.index(b"\xff\xc4")
    return data[: at + 4] + b"\xff" * 30 + data[at + 34 :]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> DatasetSplits:
    """30 photographs of three classes and different sizes."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(30):
        for split in ("train", "val"):
            folder = root / split / "abc"[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            data = encoded(photo(i, 70 + 5 * i, 96 + 60 * (i % 4)))
            (folder / f"{i:02}.jpg").write_bytes(data)
    return open_dataset(str(root))


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> DatasetSplits:
    """Every kind of file that DALI and Pillow may see differently, two of them bad."""
    root = tmp_path_factory.mktemp("odd")
    wide = (photo(3, 80, 90).astype(np.uint16) * 257)[..., 0]
    files = {
        "a0.jpg": encoded(photo(0, 80, 90)),
        "a1.jpg": encoded(photo(1, 80, 90), "L"),
        "a2.jpg": encoded(photo(2, 80, 90), "CMYK"),
        "a3.png": encoded(photo(3, 80, 90), kind="PNG"),
        "a4.png": encoded(wide, "I;16", "PNG"),
        "a5.jpg": cut_short(encoded(photo(5, 80, 90))),
        "a6.jpg": without_tables(encoded(photo(6, 80, 90))),
        "a7.jpg": encoded(photo(7, 80, 90)),
    }
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
        for name, data in files.items():
            (root / split / "a" / name).write_bytes(data)
    return open_dataset(str(root))


def loader(images, backend, **options):
    base = {"batch_size": 8, "resolution": 48, "train": True, "augment": "rrc"}
    return make_loader(images, backend=backend, **(base | {"workers": 1} | options))


def pixels(batches) -> torch.Tensor:
    return torch.cat([b.images for b in batches]).int()


def assert_close(a, b):
    gap = (a - b).abs().float()
    assert gap.flatten(1).mean(1).max() < MEAN_GAP
    assert gap.max() <= MOST_GAP
    # Another crop, flip or colour is much further off.
    assert (a - b.flip(3)).abs().float().mean() > 10


@needs_dali
@pytest.mark.parametrize("side", [48, 32])
@pytest.mark.parametrize(
    ("augment", "train"),
    [("rrc", True), ("crop_flip", True), ("none", True), ("rrc", False)],
)
def test_dali_delivers_what_torchvision_does(plain, augment, train, side):
    options = {"augment": augment, "train": train}
    if train:
        options |= {"color_jitter": 0.2, "lighting": 0.1}
    found = []
    for backend in ("dali", "torchvision"):
        ld = loader(plain.train, backend, **options)
        if train:
            ld.set_resolution(side)
        found.append(list(ld))
        assert ld.bad_images == []
    for a, b in zip(*found, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.labels, b.labels)
        assert a.images.is_contiguous(memory_format=torch.channels_last)
    assert_close(*map(pixels, found))


def test_memory_takes_the_same_crops_of_square_images(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(8):
            y, x = np.mgrid[0:128, 0:128]
            wave = 120 + 100 * np.sin(x / 21 + i) * np.cos(y / 33)
            smooth = np.repeat(wave[..., None], 3, 2).astype(np.uint8)
            (tmp_path / split / "a" / f"{i}.jpg").write_bytes(encoded(smooth))
    images = open_dataset(str(tmp_path)).train
    a, b = (
        pixels(loader(images, k, color_jitter=0.2, lighting=0.1))
        for k in ("memory", "torchvision")
    )
    # Boxes are rounded to the pixels of different sizes: up to half a pixel.
    assert (a - b).abs().float().mean() < 4
    assert (a - b.flip(3)).abs().float().mean() > 20


@every
def test_odd_files_are_served_alike(odd, backend):
    ld = loader(odd.train, backend, train=False, on_bad_image="skip")
    got = pixels(ld)
    assert sorted(name.rsplit("/")[-1] for name, _ in ld.bad_images) == [
        "a5.jpg",
        "a6.jpg",
    ]
    reference = loader(odd.train, "torchvision", train=False)
    want = pixels(reference)
    assert sorted(ld.bad_images) == sorted(reference.bad_images)
    same = [1, 2, 3, 4]  # not decoded by DALI
    assert torch.equal(got[same], want[same])
    assert (got - want).abs().max() <= MOST_GAP
    assert torch.equal(got, pixels(loader(odd.train, backend, train=False)))


@every
def test_a_bad_file_stops_when_asked_to(odd, backend):
    with pytest.raises(BadImage, match=r"a[56]\.jpg"):
        list(loader(odd.train, backend, on_bad_image="fail"))


@every
@pytest.mark.parametrize("stop", [1, 3])
def test_resume_inside_an_epoch_is_bit_identical(plain, backend, stop):
    options = {"color_jitter": None, "lighting": None}
    ld = loader(plain.train, backend, **options)
    ld.set_epoch(2)
    ld.set_resolution(32)
    whole = list(ld)
    ld.set_epoch(2)
    running = iter(ld)
    for _ in range(stop):
        next(running)
    state = json.loads(json.dumps(ld.state_dict()))
    fresh = loader(plain.train, backend, **options)
    fresh.load_state_dict(state)
    assert fresh.resolution == 32
    rest = list(fresh)
    assert torch.equal(pixels(whole[stop:]), pixels(rest))
    assert fresh.epoch == 3
    # The one left early begins again.
    assert torch.equal(pixels(list(ld)), pixels(whole))


@every
def test_subsets_and_uneven_ranks_cover_the_set(plain, backend):
    part = subset(plain.train, 22, seed=1)
    options = {"batch_size": 4, "world_size": 3}
    shards = [list(loader(part, backend, rank=r, **options)) for r in range(3)]
    assert len({len(s) for s in shards}) == 1
    taken = torch.cat([b.indices for s in shards for b in s])
    assert len(taken) == 24
    assert sorted(set(taken.tolist())) == list(range(22))
    labels = torch.cat([b.labels for s in shards for b in s])
    np.testing.assert_array_equal(labels, part.labels[taken])


@every
def test_resolution_changes_downwards_only(plain, backend):
    ld = loader(plain.train, backend)
    assert next(iter(ld)).images.shape[2:] == (48, 48)
    ld.set_resolution(32)
    assert {b.images.shape[2:] for b in ld} == {(32, 32)}
    with pytest.raises(ConfigError, match=r"\[1, 48\]"):
        ld.set_resolution(64)
    with pytest.raises(ConfigError, match="another loader"):
        loader(plain.train, backend, train=False).set_resolution(32)


def test_a_killed_worker_is_named(plain):
    ld = loader(plain.train, "torchvision", workers=2, batch_size=1)
    running = iter(ld)
    next(running)
    victim = ld._loader._iterator._workers[0].pid
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(DataError, match=f"{victim}.*resume"):
        list(running)


# ---- colours ----


@every
def test_colours_change_by_default_as_published_and_not_in_evaluation(plain, backend):
    implied = {"color_jitter": None, "lighting": None}
    ld = loader(plain.train, backend, **implied)
    assert (ld.color_jitter, ld.lighting) == (0.1, 0.05)
    plainly = pixels(loader(plain.train, backend))
    gap = (pixels(ld) - plainly).abs().float().flatten(1).mean(1)
    assert (gap > 0.5).all()
    assert gap.mean() < 25
    cut = loader(plain.train, backend, augment="crop_flip", **implied)
    assert (cut.color_jitter, cut.lighting) == (0.0, 0.0)
    held = pixels(loader(plain.train, backend, train=False, color_jitter=0.5))
    assert torch.equal(held, pixels(loader(plain.train, backend, train=False)))
    for wrong in ({"color_jitter": 1.5}, {"lighting": -0.1}):
        with pytest.raises(ConfigError, match=r"must be in \[0, 1\]"):
            loader(plain.train, backend, **wrong)


def test_colour_changes_are_distributed_as_published():
    draws = uniforms(11, np.arange(40_000), COLOUR_DRAWS)
    own, gray, mean = colour_changes(draws, 0.1, 0.0)[:, :3].astype(np.float64).T
    brightness = own + gray + mean  # what a gray image is multiplied by
    contrast = (own + gray) / brightness
    saturation = own / (own + gray)
    for factor in (brightness, contrast, saturation):
        quantiles = np.quantile(factor, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, [0.9, 0.95, 1, 1.05, 1.1], atol=2e-3)
    table = colour_changes(draws, 0.0, 0.05)
    np.testing.assert_array_equal(table[:, :3], np.tile([1, 0, 0], (40_000, 1)))
    vectors = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140]]
    vectors = np.array([*vectors, [-0.5836, -0.6948, 0.4203]])
    spread = (255 * 0.05 * np.diag([0.2175, 0.0188, 0.0045])) ** 2
    want = vectors @ spread @ vectors.T
    got = np.cov(table[:, 3:].T)
    np.testing.assert_allclose(got, want, atol=0.03 * want.max())


# ---- DALI that is not there ----


@pytest.fixture
def fresh_probe():
    dali._probe.cache_clear()
    choosing._say_once.cache_clear()
    yield
    dali._probe.cache_clear()
    choosing._say_once.cache_clear()


def choose(images, monkeypatch, device="cuda"):
    monkeypatch.setattr(choosing, "available_memory", lambda: 1000)
    options = LoaderOptions(batch_size=8, resolution=48, train=True, device=device)
    return choosing.choose_backend(images, options)


def test_missing_dali_falls_back_and_says_so_once(
    plain, monkeypatch, caplog, fresh_probe
):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    for name in [n for n in sys.modules if n.startswith("nvidia.dali.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level(logging.WARNING):
        assert choose(plain.train, monkeypatch) == "torchvision"
        assert choose(plain.test, monkeypatch) == "torchvision"
        assert loader(plain.train, "dali").backend == "torchvision"  # chosen by name
    assert len(caplog.records) == 1
    assert "does not import" in caplog.text
    assert "fastadv[dali-cuda130]" in caplog.text


@pytest.mark.parametrize("interpolation", ["nearest", "bicubic", "lanczos"])
def test_dali_declines_filters_that_are_not_pillows(
    plain, caplog, fresh_probe, interpolation
):
    """Whether or not DALI runs here, the pixels are those of the other loaders."""
    how = Preparation(resize=20, crop=16, interpolation=interpolation)
    taken = loader(plain.test, "dali", resolution=16, train=False, preparation=how)
    assert taken.backend == "torchvision"
    assert f"its {interpolation} filter is not that of Pillow" in caplog.text
    theirs = loader(
        plain.test, "torchvision", resolution=16, train=False, preparation=how
    )
    for ours, other in zip(taken, theirs, strict=True):
        assert torch.equal(ours.images, other.images)


@needs_dali
def test_dali_takes_bilinear_images_and_all_that_are_trained_on(plain, caplog):
    bilinear = Preparation(resize=20, crop=16)
    taken = loader(plain.test, "dali", resolution=16, train=False, preparation=bilinear)
    assert taken.backend == "dali"
    # Crops in training are always bilinear, whatever images are judged by.
    bicubic = Preparation(resize=20, crop=16, interpolation="bicubic")
    drawn = loader(plain.train, "dali", resolution=16, preparation=bicubic)
    assert drawn.backend == "dali"
    assert "not that of Pillow" not in caplog.text


@needs_dali
@pytest.mark.skipif(torch.cuda.is_available(), reason="DALI works on this GPU")
def test_dali_that_finds_no_device_falls_back_and_says_why(
    plain, monkeypatch, caplog, fresh_probe
):
    with caplog.at_level(logging.WARNING):
        assert choose(plain.train, monkeypatch) == "torchvision"
    assert "does not work on cuda" in caplog.text


def test_auto_on_the_cpu_asks_for_no_dali(plain, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        assert choose(plain.train, monkeypatch, device="cpu") == "torchvision"
    assert caplog.records == []


def test_dali_needs_files(caplog, fresh_probe):
    pixels_only = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    array = ArraySet(pixels_only, [0] * 4, ["a"], name="array", split="t")
    with caplog.at_level(logging.WARNING):
        assert loader(array, "dali").backend == "torchvision"
    assert "not a set of encoded files" in caplog.text
    with pytest.raises(ConfigError, match="not a set of encoded files"):
        DALILoader(array, LoaderOptions(batch_size=2, resolution=8, train=False))
