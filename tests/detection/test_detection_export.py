"""Detectors as ONNX files: the same detections from another runtime, at other sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_detectors import EXHAUSTIVE, objects, tiny_detector

from fastadv.detection.export import export_detector


@pytest.mark.parametrize("masks", [False, True])
def test_another_runtime_finds_the_same(masks: bool, tmp_path: Path) -> None:
    options = EXHAUSTIVE | {
        "min_size": 32,
        "max_size": 56,
        "rpn_pre_nms_top_n_test": 10_000,
        "rpn_post_nms_top_n_test": 10_000,
        "box_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
        "box_detections_per_img": 10_000,
    }
    detector = tiny_detector(masks=masks, **options)
    detector.train()
    path = export_detector(detector, tmp_path / "detector.onnx", (60, 80))
    assert detector.training
    detector.eval()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    assert names == ["boxes", "labels", "scores", "masks"][: 4 if masks else 3]
    for image in objects()[0]:
        image = image / 255
        found = dict(
            zip(names, session.run(None, {"image": image.numpy()}), strict=True)
        )
        with torch.no_grad():
            (wanted,) = detector([image])
        assert len(wanted["scores"]) > 100
        for name, near in (("scores", 1e-5), ("boxes", 1e-2)):
            ours, theirs = (np.sort(x, 0) for x in (found[name], wanted[name]))
            np.testing.assert_allclose(ours, theirs, atol=near)
        if masks:
            assert found["masks"].shape == wanted["masks"].shape
            mean = wanted["masks"].mean().item()
            assert found["masks"].mean() == pytest.approx(mean, rel=1e-3)
