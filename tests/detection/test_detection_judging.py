"""Evaluation of detectors: that of torchvision, attacked, corrupted, without a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tiny_detectors import EXHAUSTIVE, objects, tiny_detector
from torch import Tensor, nn

from fastadv.data.corruptions.corrupt import corrupt
from fastadv.detection.attack import DetectorAttack
from fastadv.detection.judging import Corruption, evaluate_detector
from fastadv.errors import ConfigError
from fastadv.threat import ThreatModel

CLASSES = ["a", "b", "c"]


@dataclass
class Batch:
    images: list[Tensor]
    targets: list[dict[str, Any]]
    indices: list[int]


def batches() -> list[Batch]:
    images, targets = objects()
    return [Batch(images[:2], targets[:2], [0, 1]), Batch(images[2:], targets[2:], [2])]


def sensitive() -> nn.Module:
    """A detector that keeps every proposal, so that no choice hangs on rounding."""
    options = EXHAUSTIVE | {
        "min_size": 32,
        "max_size": 56,
        "rpn_pre_nms_top_n_test": 10_000,
        "rpn_post_nms_top_n_test": 10_000,
        "box_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
        "box_detections_per_img": 10_000,
    }
    return tiny_detector(masks=True, **options)


def expected(images: list[Tensor], detector: nn.Module) -> list[dict[str, Tensor]]:
    detector.eval()
    with torch.no_grad():
        scaled = [image / 255 for image in images]
        # In the same batches: proposals lie in the padding, too.
        found: list[dict[str, Tensor]] = detector(scaled[:2]) + detector(scaled[2:])
    return found


def test_detections_are_those_of_the_detector_and_nothing_is_changed() -> None:
    detector = sensitive()
    images, _ = objects()
    wanted = expected(images, detector)
    detector.train()
    detector.backbone[1].eval()  # type: ignore[index]
    modes = [module.training for module in detector.modules()]
    statistics = [buffer.clone() for buffer in detector.buffers()]
    done: list[int] = []
    judged = evaluate_detector(
        detector, batches(), CLASSES, masks=True, note=done.append
    )
    arrays = judged.findings.arrays()
    assert done == [2, 3]
    assert len(arrays["boxes"]) == sum(len(each["boxes"]) for each in wanted) > 0
    for i, each in enumerate(wanted):
        mine = arrays["image"] == i
        for name, near in (("scores", 1e-5), ("boxes", 1e-2)):
            ours, theirs = (np.sort(x, 0) for x in (arrays[name][mine], each[name]))
            np.testing.assert_allclose(ours, theirs, atol=near)
    assert all(len(runs) for runs in arrays["mask_runs"])
    assert [module.training for module in detector.modules()] == modes
    for old, new in zip(statistics, detector.buffers(), strict=True):
        assert torch.equal(old, new)


def test_modes_come_back_after_an_error() -> None:
    detector = sensitive()
    detector.train()
    broken = [Batch([torch.zeros(3, 4)], [{}], [0])]  # type: ignore[list-item]
    with pytest.raises(Exception, match=r"shape|dimension|3d"):
        evaluate_detector(detector, broken, CLASSES)
    assert detector.training
    assert detector.roi_heads.training  # type: ignore[union-attr]


def test_attacked_images_are_those_of_the_attack() -> None:
    detector = sensitive()
    attack = DetectorAttack(ThreatModel("linf", "16/255"), 3, loss="classification")
    judged = evaluate_detector(detector, batches(), CLASSES, attack=attack)
    images: list[Tensor] = []
    for batch in batches():
        images += attack(
            detector, batch.images, batch.targets, offset=batch.indices[0]
        ).images
    found = expected([image * 255 for image in images], detector)
    scores = np.concatenate([each["scores"].numpy() for each in found])
    ours = judged.findings.arrays()["scores"]
    np.testing.assert_allclose(np.sort(ours), np.sort(scores), atol=1e-5)
    plain = evaluate_detector(detector, batches(), CLASSES).findings.arrays()["scores"]
    assert (
        plain.shape != ours.shape or np.abs(np.sort(plain) - np.sort(ours)).max() > 1e-4
    )
    assert judged.nonfinite == 0


def test_corrupted_images_are_those_of_the_corruption() -> None:
    detector = sensitive()
    fog = Corruption("fog", 3)
    judged = evaluate_detector(detector, batches(), CLASSES, corruption=fog, seed=4)
    images, _ = objects()
    made = [
        torch.from_numpy(
            corrupt(image.permute(1, 2, 0).numpy(), "fog", 3, seed=4, index=i)
        ).permute(2, 0, 1)
        for i, image in enumerate(images)
    ]
    assert not torch.equal(made[0], images[0])
    wanted = [each["scores"].numpy() for each in expected(made, detector)]
    ours = judged.findings.arrays()["scores"]
    theirs = np.sort(np.concatenate(wanted))
    np.testing.assert_allclose(np.sort(ours), theirs, atol=1e-5)
    plain = evaluate_detector(detector, batches(), CLASSES).findings.arrays()["scores"]
    assert np.abs(np.sort(plain) - theirs).max() > 1e-4
    with pytest.raises(ConfigError, match="corruption"):
        Corruption("mist", 3)
    with pytest.raises(ConfigError, match="severity 6"):
        Corruption("fog", 6)
