"""What `auto` augments by, how a run judges, and that its checkpoints say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_runs import tiny

from fastadv.errors import ConfigError
from fastadv.models import read_metadata
from fastadv.models.source import open_source
from fastadv.preparation import Preparation
from fastadv.results.table import ResultsTable
from fastadv.training import Trainer, train


def _folder(root: Path, height: int, width: int) -> str:
    """Ten images of each of two classes to train on, and as many to test."""
    for split in ("train", "val"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for i in range(10):
                rng = np.random.default_rng(100 * ord(label) + i)
                pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return str(root)


def _trainer(data: str, out: Path, **changes: Any) -> Trainer:
    choices = {"num_train": None, "val_size": 4, "epochs": 1, "batch_size": 8}
    config = tiny(out, data=data, **({"resolution": None} | choices | changes))
    return Trainer(config, dry_run=True)


@pytest.mark.parametrize(
    ("shape", "changes", "augment", "resize"),
    [
        ((32, 32), {}, "crop_flip", 32),
        ((64, 64), {}, "crop_flip", 64),
        ((65, 65), {}, "rrc", 74),
        ((32, 40), {}, "rrc", 37),
        ((32, 32), {"augment": "rrc"}, "rrc", 37),
        ((32, 32), {"arch": "resnet18"}, "rrc", 37),
        ((32, 32), {"resize": 36, "interpolation": "bicubic"}, "crop_flip", 36),
    ],
)
def test_auto_pads_small_squares_for_a_cifar_network(
    shape: tuple[int, int],
    changes: dict[str, Any],
    augment: str,
    resize: int,
    tmp_path: Path,
) -> None:
    trainer = _trainer(_folder(tmp_path / "data", *shape), tmp_path / "run", **changes)
    assert trainer.loader.augment == augment
    judge = trainer.images.eval_loader(trainer.val_set)
    filters = changes.get("interpolation", "bilinear")
    how = Preparation(resize=resize, crop=shape[0], interpolation=filters)
    assert judge.preparation == how
    # Colours vary with random resized crops alone, as published.
    assert (trainer.loader.color_jitter > 0) == (augment == "rrc")


def test_a_crop_beyond_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`crop=32` is larger"):
        _trainer(_folder(tmp_path / "data", 32, 32), tmp_path / "run", resize=31)


def test_a_run_is_a_source_that_says_how_it_was_judged(tmp_path: Path) -> None:
    data = _folder(tmp_path / "data", 16, 16)
    choices = {"num_train": None, "val_size": 4, "epochs": 1, "batch_size": 8}
    config = tiny(tmp_path / "run", data=data, **choices)
    train(config)
    about = read_metadata(tmp_path / "run")["user"]
    assert about["augment"] == "crop_flip"
    source = open_source(str(tmp_path / "run"))
    how = Preparation(resize=16, crop=16)
    assert (source.preparation, source.trained_here) == (how, True)
    for row in ResultsTable(tmp_path / "run" / "results").rows():
        assert row.setting.preparation == how  # a folder was zoomed before
        assert not row.setting.chose_preparation


def test_an_older_run_goes_on_as_it_began(tmp_path: Path) -> None:
    trainer = _trainer(_folder(tmp_path / "data", 16, 16), tmp_path / "run")
    images = trainer.images
    assert images.augment_as(None)
    assert (images.augment, images.prepared.how.resize) == ("rrc", 18)
    assert not images.augment_as("rrc")
