"""Augmentation of boxes with masks, and batches of a detection set."""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_files import edit_coco, write_coco, write_masks

from fastadv.data.decoding import BadImage
from fastadv.detection.augment import augment
from fastadv.detection.batches import (
    DetectionLoader,
    DetectionLoaderOptions,
    aspect_groups,
)
from fastadv.detection.opening import open_detection
from fastadv.detection.sets import DetectionSet
from fastadv.errors import DataError


def loader(images: DetectionSet, **options: Any) -> DetectionLoader:
    values = {"batch_size": 2, "train": True, "seed": 3, "workers": 0} | options
    return DetectionLoader(images, DetectionLoaderOptions(**values))


@pytest.fixture
def train(rectangles: Path) -> DetectionSet:
    return open_detection(rectangles).train


@pytest.mark.parametrize("name", ["flip", "ssd"])
def test_boxes_move_with_their_masks(train: DetectionSet, name: str) -> None:
    moved = 0
    for index in range(len(train)):
        for epoch in range(4):
            image, target = train[index]
            # Only whole objects have a box that is theirs after others cover them.
            target = {k: v[-1:] if k != "image_id" else v for k, v in target.items()}
            changed, found = augment(image, target, name, 0, epoch, index)
            assert changed.dtype == torch.uint8
            assert found["masks"].shape[1:] == changed.shape[1:]
            moved += not torch.equal(changed, image)
            if name == "flip" and not torch.equal(changed, image):
                assert torch.equal(changed.flip(2), image)
            for box, mask in zip(found["boxes"], found["masks"], strict=True):
                ys, xs = mask.nonzero(as_tuple=True)
                drawn = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                assert (box - torch.tensor(drawn)).abs().max() <= 1.5
    assert moved >= len(train)


def test_augmentation_is_a_function_of_seed_epoch_and_image(
    train: DetectionSet,
) -> None:
    image, target = train[0]
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    found = [
        augment(image, target, "ssd", *key)[0]
        for key in ((0, 1, 2), (0, 1, 2), (0, 2, 2), (1, 1, 2), (0, 1, 3))
    ]
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.equal(found[0], found[1])
    for other in found[2:]:
        same = other.shape == found[0].shape and torch.equal(other, found[0])
        assert not same


def test_epochs_hold_every_image_once_and_go_on_where_they_stopped(
    train: DetectionSet,
) -> None:
    whole = loader(train, augment="ssd")
    epochs = [[*whole] for _ in range(2)]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch.indices) == [*range(7)]
    assert [b.indices for b in epochs[0]] != [b.indices for b in epochs[1]]
    first = loader(train, augment="ssd")
    taken = iter(first)
    next(taken)
    again = loader(train, augment="ssd")
    again.load_state_dict(first.state_dict())
    for one, other in zip(again, epochs[0][1:], strict=True):
        assert one.indices == other.indices
        for mine, theirs in zip(one.images, other.images, strict=True):
            assert torch.equal(mine, theirs)


def test_worker_processes_change_nothing(train: DetectionSet) -> None:
    for one, other in zip(
        loader(train, augment="ssd"),
        loader(train, augment="ssd", workers=1),
        strict=True,
    ):
        assert one.indices == other.indices
        for mine, theirs in zip(one.targets, other.targets, strict=True):
            assert torch.equal(mine["boxes"], theirs["boxes"])
            assert torch.equal(mine["masks"], theirs["masks"])


def test_crowds_are_judged_and_do_not_train(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set", images=2)
    known = edit_coco(root)
    for each in known["annotations"][1:]:
        each["iscrowd"] = 1
    edit_coco(root, annotations=known["annotations"])
    images = open_detection(root).train.subset([0])
    [batch] = loader(images, batch_size=1)
    assert len(batch.targets[0]["boxes"]) == 1
    [batch] = loader(images, batch_size=1, train=False)
    total = sum(each["image_id"] == 100 for each in known["annotations"])
    assert batch.targets[0]["iscrowd"].tolist() == [0] + [1] * (total - 1)


def test_bad_images_are_replaced_in_training_and_left_out_of_tests(
    tmp_path: Path,
) -> None:
    root = write_coco(tmp_path / "set", images=3)
    bad = root / "train2017" / "000000000001.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    images = open_detection(root).train
    training = loader(images)
    batches = [*training]
    assert sum(len(batch.images) for batch in batches) == 3
    [(name, reason)] = training.bad_images
    assert name.endswith(bad.name)
    assert reason
    judging = loader(images, train=False)
    assert sorted(i for batch in judging for i in batch.indices) == [0, 2]
    with pytest.raises(BadImage, match=bad.name):
        [*loader(images, on_bad_image="fail")]
    for file in (root / "train2017").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no image of set/train can be read"):
        [*loader(open_detection(root).train)]


def test_groups_of_shapes_are_those_of_the_reference(tmp_path: Path) -> None:
    """`create_aspect_ratio_groups` of torchvision's reference takes `bisect_right`."""
    sizes = [(96, 84), (84, 168), (83, 168), (168, 84), (169, 84), (90, 90), (84, 200)]
    for number, size in enumerate(sizes):
        write_masks(tmp_path / f"{number}", images=2, size=size, seed=number)
        for folder, end in (("images", "jpg"), ("masks", "png")):
            place = tmp_path / "set" / folder
            place.mkdir(parents=True, exist_ok=True)
            for each in range(2):
                file = tmp_path / f"{number}" / folder / f"{each}.{end}"
                file.rename(place / f"{number}-{each}.{end}")
    images = open_detection(tmp_path / "set").train
    for factor in (0, 1, 3):
        count = 2 * factor + 1
        bounds = (
            [2 ** (2 * k / (count - 1) - 1) for k in range(count)] if factor else [1]
        )
        expected = [
            bisect.bisect_right(bounds, each.width / each.height)
            for each in images.annotated
        ]
        assert aspect_groups(images, factor).tolist() == expected
    tall = aspect_groups(images, 0)
    assert 2 < tall.sum() < len(images) - 2
    whole = loader(images, aspect_factor=0)
    epochs = [[batch.indices for batch in whole] for _ in range(2)]
    assert epochs[0] != epochs[1]
    for batches in epochs:
        assert sorted(i for batch in batches for i in batch) == [*range(len(images))]
        mixed = [len(set(tall[batch].tolist())) > 1 for batch in batches]
        assert sum(mixed) <= 1
        assert not any(mixed[:-1])
    first = loader(images, aspect_factor=0)
    taken = iter(first)
    next(taken)
    again = loader(images, aspect_factor=0)
    again.load_state_dict(first.state_dict())
    assert [batch.indices for batch in again] == epochs[0][1:]
