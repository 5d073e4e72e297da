"""Both loaders: order, sharding, resumption, augmentation and bad images."""

from __future__ import annotations

import json
import logging
from itertools import chain

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from fastadv.data import ArraySet, BadImage, make_loader, open_dataset
from fastadv.data.counter import uniforms
from fastadv.data.loading import make_loader as choosing
from fastadv.data.loading.geometry import DRAWS, resize_center_crop, resized_crop_boxes
from fastadv.data.loading.memory_loader import MemoryLoader
from fastadv.data.loading.torchvision_loader import TorchvisionLoader
from fastadv.errors import ConfigError, DataError
from fastadv.preparation import Preparation

BACKENDS = ("memory", "torchvision")
both = pytest.mark.parametrize("backend", BACKENDS)


def smooth_images(n=50, height=40, width=40) -> np.ndarray:
    """Images low enough in frequency that resampling hardly matters."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phase = uniforms(1, np.arange(n), 3)
    waves = [
        np.sin(3 * x + 2 * c * y + 6.28 * phase[:, c, None, None]) for c in range(3)
    ]
    return (127.5 + 120 * np.stack(waves, axis=3)).astype(np.uint8)


def toy(n=50, **shape) -> ArraySet:
    names = [f"c{i}" for i in range(5)]
    labels = np.arange(n) % 5
    return ArraySet(smooth_images(n, **shape), labels, names, name="toy", split="t")


class Damaged(ArraySet):
    """A toy set some of whose images cannot be decoded."""

    bad: frozenset[int] = frozenset()

    def load(self, index):
        if index in self.bad:
            raise BadImage(self.describe(index), "cut short")
        return super().load(index)


def damaged(*bad: int) -> Damaged:
    base = toy()
    out = Damaged(base.images, base.labels, base.classes, name="toy", split="t")
    out.bad = frozenset(bad)
    return out


def loader(imageset, backend, **options):
    base = {"batch_size": 8, "resolution": 32, "train": True, "workers": 0}
    return make_loader(imageset, backend=backend, **(base | options))


def seen(batches) -> list[int]:
    return [int(i) for b in batches for i in b.indices]


def assert_same(a, b):
    assert len(a) == len(b)
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p.indices, q.indices)
        assert torch.equal(p.labels, q.labels)
        assert torch.equal(p.images, q.images)


@both
@pytest.mark.parametrize("train", [True, False])
def test_batches_are_channels_last_bytes_with_their_labels(backend, train):
    images = toy(50, height=40, width=56)
    ld = loader(images, backend, train=train)
    batches = list(ld)
    assert len(batches) == len(ld) == 7
    for b in batches:
        assert b.images.dtype == torch.uint8
        assert b.images.shape[1:] == (3, 32, 32)
        assert b.images.is_contiguous(memory_format=torch.channels_last)
        assert b.labels.dtype == b.indices.dtype == torch.int64
        np.testing.assert_array_equal(b.labels, images.labels[b.indices])
    assert sorted(seen(batches)) == list(range(50))
    assert (seen(batches) == list(range(50))) is not train


@both
@pytest.mark.parametrize("augment", ["rrc", "crop_flip", "none"])
def test_epochs_differ_and_repeat_under_a_seed(backend, augment):
    one, two = (loader(toy(), backend, augment=augment, seed=4) for _ in range(2))
    first, second = list(one), list(one)
    assert seen(first) != seen(second)
    # Global random state has no say, and is left alone.
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert_same(first, list(two))
    assert torch.equal(state, torch.get_rng_state())
    two.set_epoch(1)
    assert_same(second, list(two))
    other = list(loader(toy(), backend, augment=augment, seed=5))
    assert seen(other) != seen(first)


@both
@pytest.mark.parametrize("stop", [0, 3, 7])
def test_resume_inside_an_epoch_is_bit_identical(backend, stop):
    ld = loader(toy(), backend, augment="rrc")
    ld.set_epoch(2)
    whole = list(ld)
    ld.set_epoch(2)
    running = iter(ld)
    for _ in range(stop):
        next(running)
    state = json.loads(json.dumps(ld.state_dict()))
    fresh = loader(toy(), backend, augment="rrc")
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    fresh.set_epoch(2)
    assert_same(whole[stop:], list(fresh))
    assert fresh.epoch == 3
    assert len(list(fresh)) == 7


def test_leaving_early_begins_the_epoch_again():
    ld = loader(toy(), "memory")
    first = next(iter(ld))
    assert ld.state_dict()["position"] == 8
    assert_same([first], [next(iter(ld))])
    assert ld.epoch == 0


def test_resume_on_another_world_size_keeps_coverage():
    old = [loader(toy(48), "memory", rank=r, world_size=2) for r in range(2)]
    before = []
    for ld in old:
        running = iter(ld)
        before += seen([next(running), next(running)])
    state = old[0].state_dict()
    assert state == old[1].state_dict()
    after = []
    for r in range(4):
        ld = loader(toy(48), "memory", rank=r, world_size=4, batch_size=3)
        ld.load_state_dict(state)
        after += seen(ld)
    assert sorted(before + after) == list(range(48))


@both
@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_partition_the_epoch(backend, world):
    def parts(train):
        return [
            seen(loader(toy(), backend, train=train, rank=r, world_size=world))
            for r in range(world)
        ]

    held = parts(train=False)
    assert sorted(chain(*held)) == list(range(50))
    shards = parts(train=True)
    assert len({len(s) for s in shards}) == 1
    counts = np.bincount(list(chain(*shards)), minlength=50)
    assert counts.min() == 1
    assert counts.sum() == -(-50 // world) * world
    alone = seen(loader(toy(), backend))
    together = list(chain(*(s[:8] for s in shards)))  # the first batch of all ranks
    assert together[:50] == alone[: 8 * world]


@both
def test_drop_last(backend):
    ld = loader(toy(), backend, drop_last=True)
    assert len(ld) == 6
    assert [len(b.labels) for b in ld] == [8] * 6
    with pytest.raises(ConfigError, match="smaller batch_size"):
        loader(toy(), backend, drop_last=True, batch_size=51)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("augment", ["rrc", "crop_flip", "none"])
def test_backends_deliver_the_same_pixels(augment, train):
    options = {"augment": augment, "train": train}
    for images in (toy(30, height=32, width=32), toy(30, height=80, width=80)):
        a, b = (list(loader(images, k, **options)) for k in BACKENDS)
        assert_same(a, b)


@pytest.mark.parametrize("side", [20, 32, 224])
def test_pixels_do_not_depend_on_the_free_memory(side, monkeypatch):
    images = toy(30, height=32, width=32)
    options = {"augment": "rrc", "train": True, "resolution": side, "batch_size": 10}
    kept = loader(images, "auto", **options)
    assert isinstance(kept, MemoryLoader)
    assert kept.held_bytes == 30 * 32 * 32 * 3  # neither enlarged nor reduced
    monkeypatch.setattr(choosing, "available_memory", lambda: 1000)
    streamed = loader(images, "auto", **options)
    assert isinstance(streamed, TorchvisionLoader)
    assert_same(list(kept), list(streamed))


class Uneven(ArraySet):
    """A toy set of which one image, which no sample shows, is larger."""

    def load(self, index):
        image = super().load(index)
        return np.pad(image, ((0, 8), (0, 8), (0, 0))) if index == 1 else image


def test_images_of_another_size_are_not_cropped_in_memory():
    base = toy(200)
    images = Uneven(base.images, base.labels, base.classes, name="toy", split="t")
    options = {"augment": "rrc", "train": True}
    assert not loader(images, "memory", **options).exact
    assert isinstance(loader(images, "auto", **options), TorchvisionLoader)
    assert isinstance(loader(base, "auto", **options), MemoryLoader)
    # Without crops of random size, each is resized in the same way everywhere.
    plain = loader(images, "auto", augment="none", train=True)
    assert isinstance(plain, MemoryLoader)
    assert_same(list(plain), list(loader(images, "torchvision", augment="none")))
    tall = toy(10, height=50, width=40)
    kept = loader(tall, "memory", resolution=64, **options)
    assert kept.held_bytes == 10 * 40 * 40 * 3
    assert not kept.exact


def test_evaluation_equals_torchvisions_transforms():
    images = toy(6, height=50, width=73)
    got = next(iter(loader(images, "memory", train=False, augment="rrc"))).images
    transform = v2.Compose([v2.Resize(37, antialias=True), v2.CenterCrop(32)])
    for i in range(6):
        chw = torch.from_numpy(images.load(i)).permute(2, 0, 1)
        assert torch.equal(got[i], transform(chw))


def test_no_augmentation_leaves_native_pixels():
    digits = open_dataset("digits").train
    ld = make_loader(digits, batch_size=64, resolution=8, train=True, workers=0)
    assert ld.augment == "none"
    b = next(iter(ld))
    for image, index in zip(b.images, b.indices, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), digits.load(int(index)))


def test_crop_flip_shifts_by_at_most_the_padding_and_flips_half():
    ramp = np.tile(np.arange(0, 128, 4, dtype=np.uint8), (32, 1))
    images = np.repeat(np.broadcast_to(ramp, (400, 32, 32))[..., None], 3, axis=3)
    s = ArraySet(images.copy(), np.zeros(400), ["a"], name="r", split="t")
    batch = next(iter(loader(s, "memory", batch_size=400, augment="crop_flip")))
    row = batch.images[:, 0, 0].int()
    centre = row[:, 16] - row[:, 15]
    flipped = centre < 0
    assert set(centre.abs().tolist()) == {4}
    assert 150 < flipped.sum() < 250
    shift = torch.where(flipped, row[:, 15], row[:, 16]) // 4 - 16
    assert sorted(set(shift.tolist())) == list(range(-4, 5))


def test_resized_crop_boxes_are_distributed_as_torchvisions():
    n, height, width = 4000, 60, 90
    u = uniforms(7, np.arange(n), DRAWS)
    boxes = resized_crop_boxes(u, np.full(n, height), np.full(n, width))
    assert (boxes.top >= 0).all()
    assert (boxes.top + boxes.height <= height).all()
    assert (boxes.left + boxes.width <= width).all()
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    transform = v2.RandomResizedCrop(8)
    drawn = [transform.make_params([image]) for _ in range(n)]
    for name in ("top", "left", "height", "width"):
        ours, theirs = getattr(boxes, name), np.array([d[name] for d in drawn])
        quantiles = np.linspace(0.05, 0.95, 10)
        gap = np.quantile(ours, quantiles) - np.quantile(theirs, quantiles)
        assert abs(gap).max() <= 3, name


def test_resized_crop_falls_back_to_the_centre_of_extreme_shapes():
    u = uniforms(7, np.arange(50), DRAWS)
    boxes = resized_crop_boxes(u, np.full(50, 10), np.full(50, 1000))
    assert (boxes.height <= 10).all()
    central = boxes.height == 10
    assert central.any()
    assert set(boxes.width[central]) <= set(range(8, 14))


def test_worker_processes_change_nothing():
    ld = loader(toy(), "torchvision", workers=2, augment="rrc")
    plain = loader(toy(), "torchvision", augment="rrc")
    for _ in range(2):
        assert_same(list(ld), list(plain))


@both
def test_bad_images_are_replaced_by_their_class_counted_and_logged_once(
    backend, caplog
):
    images = damaged(7, 12)
    options = {"train": True, "batch_size": 50, "augment": "none", "resolution": 40}
    ld = loader(images, backend, **options)
    with caplog.at_level(logging.WARNING):
        (batch,) = list(ld)
        list(ld)
    assert sorted(ld.bad_images) == [
        ("toy/t[12]", "cut short"),
        ("toy/t[7]", "cut short"),
    ]
    assert len(caplog.records) == 2
    assert "toy/t[7]" in caplog.text
    assert sorted(seen([batch])) == list(range(50))
    for shown_at, i in enumerate(batch.indices.tolist()):
        shown = batch.images[shown_at].permute(1, 2, 0).numpy()
        same = [j for j in range(50) if (shown == images.images[j]).all()]
        if i in images.bad:
            assert same
            assert same[0] != i
            assert same[0] not in images.bad
            assert images.labels[same[0]] == images.labels[i]
        else:
            assert same == [i]
    assert_same([batch], list(loader(images, backend, **options)))


@both
def test_bad_images_are_left_out_of_evaluations(backend, caplog):
    options = {"train": False, "augment": "none", "resolution": 40, "batch_size": 5}
    ld = loader(damaged(7, 12, 20, 21, 22, 23, 24), backend, **options)
    with caplog.at_level(logging.WARNING):
        batches = list(ld)
    expected = [i for i in range(50) if i not in ld.imageset.bad]
    assert seen(batches) == expected  # and a batch without any is none
    images = torch.cat([batch.images for batch in batches])
    for image, index in zip(images, expected, strict=True):
        assert (image.permute(1, 2, 0).numpy() == ld.imageset.images[index]).all()
    labels = torch.cat([batch.labels for batch in batches])
    np.testing.assert_array_equal(labels, ld.imageset.labels[expected])
    assert "toy/t[7] (cut short): left out" in caplog.text
    assert_same(batches, list(ld))


@both
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_fails_when_asked_to(backend, workers):
    with pytest.raises(BadImage, match=r"toy/t\[7\].*cut short"):
        list(loader(damaged(7), backend, on_bad_image="fail", workers=workers))


@both
def test_class_without_readable_images_is_an_error(backend):
    with pytest.raises(DataError, match="'c2'"):
        list(loader(damaged(*range(2, 50, 5)), backend))


def test_state_of_another_set_or_seed_is_refused():
    state = loader(toy(), "memory").state_dict()
    with pytest.raises(ConfigError, match="seed=0"):
        loader(toy(), "memory", seed=1).load_state_dict(state)
    with pytest.raises(DataError, match="changed"):
        loader(toy(49), "memory").load_state_dict(state)


def test_auto_backend_follows_memory(monkeypatch):
    assert isinstance(loader(toy(), "auto"), MemoryLoader)
    monkeypatch.setattr(choosing, "available_memory", lambda: 1000)
    assert isinstance(loader(toy(), "auto"), TorchvisionLoader)
    monkeypatch.undo()
    assert 1e8 < choosing.available_memory() < 1e14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"augment": "crop-flip"}, "crop_flip"),
        ({"on_bad_image": "ignore"}, "fail, skip"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        loader(toy(), "memory", **options)


def test_unknown_backend_and_empty_set_are_refused():
    with pytest.raises(ConfigError, match="perhaps you meant: memory"):
        loader(toy(), "memroy")
    with pytest.raises(DataError, match="no images"):
        loader(toy(0), "memory")


def test_resize_center_crop_never_reads_outside():
    how = Preparation(resize=37, crop=32)
    for height, width in [(1, 1), (1, 50), (33, 32), (500, 31)]:
        out = resize_center_crop(np.full((height, width, 3), 9, np.uint8), how)
        assert out.shape == (32, 32, 3)
        assert (out == 9).all()
