"""Average precision against pycocotools, and its intervals against resampled images."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import encode

from fastadv.detection.metrics import DetectionMetrics, Findings, detection_metrics

SIDE = 160
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
Images = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def disk(box: np.ndarray) -> np.ndarray:
    """An ellipse in a box, as a mask."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    (cx, cy), (rx, ry) = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    inside: np.ndarray = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
    return inside.astype(np.uint8)


def random_images(seed: int, n: int = 14, classes: int = 3) -> Images:
    """Objects, some of them crowds, and detections near them; ids of images have gaps."""
    draw = np.random.default_rng(seed)
    found, true = [], []
    for i in range(n):
        objects = 0 if i % 7 == 3 else int(draw.integers(0, 6))
        many = 0 if i % 5 == 4 else int(draw.integers(0, 12))
        corner = draw.uniform(0, SIDE - 12, (objects, 2))
        boxes = np.concatenate([corner, corner + draw.uniform(8, 110, (objects, 2))], 1)
        boxes = boxes.clip(0, SIDE)
        labels = draw.integers(1, classes + 1, objects)
        copied = draw.integers(0, max(objects, 1), many)
        near = boxes[copied] if objects else np.tile([20.0, 20, 60, 60], (many, 1))
        near = near + draw.normal(0, 4, (many, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
        guessed = labels[copied] if objects else draw.integers(1, classes + 1, many)
        blank = np.zeros((0, SIDE, SIDE), np.uint8)
        true.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.tensor(labels),
                "iscrowd": torch.tensor(draw.random(objects) < 0.2).to(torch.uint8),
                "area": torch.tensor(draw.uniform(50, 12000, objects)).float(),
                "masks": torch.tensor(np.stack([blank[:0], *map(disk, boxes)][1:]))
                if objects
                else torch.tensor(blank),
                "image_id": 3 + 11 * i,
            }
        )
        found.append(
            {
                "boxes": torch.tensor(near, dtype=torch.float32),
                "labels": torch.tensor(guessed),
                # Few values, so that many are equal.
                "scores": torch.tensor(draw.random(many).round(1)),
                "masks": torch.tensor(np.stack([*map(disk, near)]))[:, None].float()
                if many
                else torch.zeros(0, 1, SIDE, SIDE),
            }
        )
    return found, true


def judged_by_pycocotools(images: Images, classes: int, kind: str) -> dict[str, float]:
    found, true = images
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for detected, target in zip(found, true, strict=True):
        for name, each, into in (("t", target, annotations), ("d", detected, results)):
            for i, box in enumerate(each["boxes"].double().tolist()):
                x1, y1, x2, y2 = box
                entry: dict[str, Any] = {
                    "image_id": target["image_id"],
                    "category_id": int(each["labels"][i]),
                }
                if kind == "box":
                    entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
                else:
                    mask = each["masks"][i].numpy().reshape(SIDE, SIDE)
                    entry["segmentation"] = encode(np.asfortranarray(mask.astype("u1")))
                if name == "d":
                    entry["score"] = float(each["scores"][i])
                else:
                    entry |= {
                        "id": len(annotations) + 1,
                        "iscrowd": int(each["iscrowd"][i]),
                        "area": float(each["area"][i]),
                    }
                into.append(entry)
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": each["image_id"], "height": SIDE, "width": SIDE} for each in true
        ],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(classes)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(
            truth, truth.loadRes(results), {"box": "bbox"}.get(kind, "segm")
        )
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    values = {f"{kind}_{name}": judge.stats[i] for i, name in enumerate(NAMES)}
    per_class = judge.eval["precision"][:, :, :, 0, -1]
    for k in range(classes):
        values[f"{kind}_ap:class {k}"] = per_class[:, :, k].mean()
    return {name: float(value) for name, value in values.items() if value >= 0}


def judge(images: Images, classes: int = 3, **options: Any) -> DetectionMetrics:
    return detection_metrics(*images, [f"class {k}" for k in range(classes)], **options)


@pytest.mark.parametrize("seed", range(2))
def test_values_are_those_of_pycocotools(seed: int) -> None:
    images = random_images(seed)
    ours = judge(images, resamples=0).values
    theirs = judged_by_pycocotools(images, 3, "box")
    theirs |= judged_by_pycocotools(images, 3, "mask")
    assert set(ours) == set(theirs)
    assert 0.05 < ours["box_ap"].value < 0.95
    for name, value in theirs.items():
        assert ours[name].value == pytest.approx(value, abs=1e-6), name
        assert ours[name].low is None


def test_a_class_without_objects_is_left_out_as_pycocotools_does() -> None:
    images = random_images(5, classes=2)
    ours, theirs = judge(images, 4, resamples=0, masks=False).values, {}
    theirs = judged_by_pycocotools(images, 4, "box")
    assert "box_ap:class 3" not in ours
    assert {n: pytest.approx(e.value, abs=1e-6) for n, e in ours.items()} == theirs


def test_more_than_a_hundred_detections_of_an_image_do_not_count() -> None:
    draw = np.random.default_rng(0)
    found, true = random_images(1, n=4)
    for each in found:
        boxes = torch.tensor(draw.uniform(0, 60, (150, 2)), dtype=torch.float32)
        each["boxes"] = torch.cat([boxes, boxes + 40])[:150].repeat(1, 2)
        each["boxes"][:, 2:] += 50
        each["labels"], each["scores"] = torch.ones(150, dtype=int), torch.rand(150)
    ours = judge((found, true), masks=False, resamples=0).values
    theirs = judged_by_pycocotools((found, true), 3, "box")
    assert ours["box_ap"].value == pytest.approx(theirs["box_ap"], abs=1e-6)


def test_no_detections_are_worth_nothing_and_no_objects_give_no_value() -> None:
    found, true = random_images(0)
    nothing = [
        {
            "boxes": torch.zeros(0, 4),
            "labels": each["labels"][:0],
            "scores": torch.zeros(0),
        }
        for each in found
    ]
    values = judge((nothing, true), masks=False, resamples=20).values
    assert values["box_ap"].value == values["box_ap"].high == 0.0
    empty = [each | {k: each[k][:0] for k in ("boxes", "labels")} for each in true]
    for each in empty:
        del each["iscrowd"], each["area"]
    found_nothing_true = judge((found, empty), masks=False, resamples=20)
    assert found_nothing_true.values == {}
    assert (found_nothing_true.num_images, found_nothing_true.num_objects) == (14, 0)
    assert judge(([], [])).values == {}


def test_perfect_detections_are_worth_everything_in_every_sample() -> None:
    _, true = random_images(2)
    for each in true:
        del each["area"]
        each["iscrowd"] = torch.zeros_like(each["iscrowd"])
    found = [each | {"scores": torch.rand(len(each["labels"]))} for each in true]
    values = judge((found, true), resamples=50).values
    assert {e.value for e in values.values()} == {1.0}
    assert {e.low for e in values.values()} == {1.0}


def test_a_sample_counts_images_as_often_as_they_were_drawn() -> None:
    """Oracle: the evaluation of a set that holds copies of the images that were drawn."""
    from fastadv.detection import metrics

    images = random_images(4, n=10)
    for each in images[0]:  # Copies of equal scores would be in another order.
        each["scores"] = torch.rand(len(each["scores"]))
    counts = np.array([[2, 0, 1, 3, 0, 1, 1, 0, 1, 1], [1] * 10])
    findings = Findings([f"class {k}" for k in range(3)], masks=True)
    for found, true in zip(*images, strict=True):
        findings.add(found, true)
    coco = metrics.coco_eval()
    for what in ("box", "mask"):
        truth, detected = findings._as_coco(what, coco)
        evaluated = coco.COCOeval_faster(truth, detected, metrics._TYPES[what])
        evaluated.evaluate()
        sampled = findings._resampled(truth, detected, evaluated.ious, counts)
        named = metrics._named(sampled, what, findings.classes)
        drawn: Images = ([], [])
        for i, times in enumerate(counts[0]):
            for _ in range(times):
                drawn[0].append(images[0][i])
                drawn[1].append(images[1][i] | {"image_id": len(drawn[1])})
        for sample, copies in ((0, drawn), (1, images)):
            for name, value in judged_by_pycocotools(copies, 3, what).items():
                assert named[name][sample] == pytest.approx(value, abs=1e-9), name


def test_intervals_hold_the_value_and_shrink_with_images() -> None:
    few, many = (
        judge(random_images(3, n), masks=False, resamples=200).values for n in (10, 60)
    )
    widths = []
    for values in (few, many):
        found = values["box_ap"]
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < 0.75 * widths[0]  # 0.41, if it were a mean


def test_arrays_hold_what_was_found() -> None:
    found, true = random_images(6)
    findings = Findings(["a", "b", "c"], masks=True)
    for each in zip(found, true, strict=True):
        findings.add(*each)
    arrays = findings.arrays()
    assert arrays["image_ids"].tolist() == [each["image_id"] for each in true]
    for i, each in enumerate(found):
        mine = arrays["image"] == i
        np.testing.assert_array_equal(arrays["boxes"][mine], each["boxes"].numpy())
        np.testing.assert_array_equal(arrays["labels"][mine], each["labels"].numpy())
    from pycocotools.mask import decode

    mine = np.flatnonzero(arrays["image"] == 1)
    for d, mask in zip(mine, found[1]["masks"], strict=True):
        runs = {
            "counts": bytes(arrays["mask_runs"][d]),
            "size": arrays["mask_sizes"][d],
        }
        np.testing.assert_array_equal(decode(runs), mask[0].numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0])}, "0 is the background"),
        ({"labels": torch.tensor([4])}, "expected 1 to 3"),
        ({"labels": torch.tensor([1, 2])}, r"boxes have shape \[1, 4\]"),
        ({"scores": torch.tensor([float("nan")])}, "finite"),
        ({"scores": torch.tensor([0.1, 0.2])}, "as many finite numbers"),
        ({"masks": torch.zeros(2, 1, 8, 8)}, r"masks of 1 objects"),
    ],
)
def test_bad_detections_are_refused(change: dict[str, Any], message: str) -> None:
    true = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=int),
        "image_id": 1,
    }
    true["masks"] = torch.zeros(0, 8, 8)
    one = {
        "boxes": torch.tensor([[0.0, 0, 5, 5]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.5]),
        "masks": torch.zeros(1, 1, 8, 8),
    }
    with pytest.raises(ValueError, match=message):
        judge(([one | change], [true]))


def test_images_count_once_and_come_in_pairs() -> None:
    found, true = random_images(0, n=2)
    with pytest.raises(ValueError, match="image_id=3 comes twice"):
        judge(([found[0]] * 2, [true[0]] * 2))
    with pytest.raises(ValueError, match="predictions of 1 images"):
        judge((found[:1], true))
    with pytest.raises(ValueError, match="resamples=-1"):
        judge((found, true), resamples=-1)
    del true[0]["masks"]
    with pytest.raises(ValueError, match="the true objects have none"):
        judge((found, true), masks=True)
