"""A small set and a source that detectors are trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from detection_files import write_masks

from fastadv.models import create_model, save_model


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of 96 x 80 pixels with masks: seven to train on, three to test on."""
    return write_masks(tmp_path_factory.mktemp("rectangles") / "set", images=10)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a small classifier."""
    path = tmp_path_factory.mktemp("classifier") / "small.safetensors"
    save_model(create_model("resnet8_cifar", 5, seed=0), path)
    return path
