"""Images of a target are prepared as the source expects, or as a protocol publishes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastadv.data import ArraySet, DatasetSplits
from fastadv.errors import ConfigError
from fastadv.models import create_model, save_model
from fastadv.models.source import Source
from fastadv.preparation import Preparation
from fastadv.transfer import TransferConfig, transfer
from fastadv.transfer.identity import row_identity
from fastadv.transfer.procedure import make_procedure
from fastadv.transfer.target import target_preparation

EXPECTED = Preparation(resize=40, crop=32, interpolation="bicubic")
SOURCE = Source(
    name="n",
    given="s",
    file=Path("x"),
    file_digest="ab" * 32,
    arch="resnet18",
    resolution=32,
    augment="auto",
    num_classes=2,
    classes=(),
)


def _images(augment: Any = "rrc", name: str = "x") -> ArraySet:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 24, 30, 3), dtype=np.uint8)
    labels = np.arange(8) % 2
    return ArraySet(
        pixels, labels, ["a", "b"], name=name, split="t", augment_default=augment
    )


def _config(**choices: Any) -> TransferConfig:
    return TransferConfig(source="s", dataset="x", **choices)


def _prepared(source: Source, images: ArraySet, **choices: Any) -> Preparation:
    config = _config(**choices)
    procedure = make_procedure(config, "x", 8, 32)
    found = target_preparation(config, source, images, 32, procedure.augment)
    return found.how


@pytest.mark.parametrize(
    ("expected", "augment", "choices", "size", "interpolation"),
    [
        (None, "rrc", {}, 37, "bilinear"),
        (EXPECTED, "rrc", {}, 40, "bicubic"),
        (EXPECTED, "crop_flip", {}, 32, "bicubic"),  # CIFAR and its like stay whole
        (None, "crop_flip", {}, 32, "bilinear"),
        (EXPECTED, "rrc", {"augment": "none"}, 32, "bicubic"),
        (EXPECTED, "rrc", {"protocol": "salman2020"}, 37, "bilinear"),
        (EXPECTED, "none", {"protocol": "salman2020"}, 37, "bilinear"),
        (EXPECTED, "rrc", {"protocol": "utrera2021"}, 32, "bilinear"),
        (EXPECTED, "rrc", {"resize": 50}, 50, "bicubic"),
        (
            EXPECTED,
            "rrc",
            {"protocol": "salman2020", "resize": 50, "interpolation": "bicubic"},
            50,
            "bicubic",
        ),
    ],
)
def test_who_decides(
    expected: Preparation | None,
    augment: str,
    choices: dict[str, Any],
    size: int,
    interpolation: str,
) -> None:
    source = replace(SOURCE, preparation=expected)
    how = _prepared(source, _images(augment), **choices)
    assert how == Preparation(resize=size, crop=32, interpolation=interpolation)


def test_a_crop_beyond_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="`crop=32` is larger"):
        _prepared(SOURCE, _images(), resize=31)


def test_flags_depart_from_a_published_protocol() -> None:
    config = _config(protocol="salman2020", resize=50, interpolation="bilinear")
    departures = make_procedure(config, "x", 8, 224).departures
    (found,) = [d for d in departures if d.name in ("resize", "interpolation")]
    assert (found.name, found.ours, found.published) == ("resize", "50", "256")


def _identity(source: Source, augment: str = "rrc", name: str = "x", **how: Any) -> str:
    images = _images(augment, name)
    splits = DatasetSplits(name, images, images)
    return row_identity(_config(**how), 0, source, splits, 32)


def test_the_identity_knows_what_is_unusual() -> None:
    usual = _identity(SOURCE)
    told = replace(SOURCE, preparation=Preparation(resize=37, crop=32))
    assert _identity(told) == usual  # as it would have been prepared before
    other = replace(SOURCE, preparation=EXPECTED)
    assert _identity(other) != usual
    assert _identity(SOURCE, resize=50) not in (usual, _identity(other))
    protocol = {"protocol": "salman2020"}
    assert _identity(other, **protocol) == _identity(SOURCE, **protocol)
    crops = replace(SOURCE, trained_here=True, augment="crop_flip")
    assert _identity(crops) != usual
    assert _identity(crops, "crop_flip") == _identity(SOURCE, "crop_flip")


def test_top1_of_a_name_that_once_meant_the_mean_per_class_is_another_number() -> None:
    def identity(metric: Any, name: str) -> str:
        images = _images(name=name)
        splits = DatasetSplits(name, images, images, metric)
        return row_identity(_config(), 0, SOURCE, splits, 32)

    assert identity("top1", "petstore") != identity("mean_per_class", "petstore")
    assert identity("top1", "store") == identity("mean_per_class", "store")


def test_rows_of_a_transfer_say_how_images_were_prepared(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    stated = {"resize": 20, "crop": 16, "interpolation": "bicubic", "squash": False}
    about = {"resolution": 16, "preparation": stated}
    save_model(create_model("resnet8_cifar", 3, seed=0), file, about)
    config = TransferConfig(
        source=str(file),
        dataset="digits",
        num_train=60,
        results=str(tmp_path / "results"),
        feature_cache="off",
        device="cpu",
        workers=0,
    )
    (row,) = transfer(config)
    whole = Preparation(resize=16, crop=16, interpolation="bicubic")
    assert (row.setting.preparation, row.setting.chose_preparation) == (whole, False)
    (other,) = transfer(replace(config, resize=24, interpolation="bilinear"))
    assert other.setting.preparation == Preparation(resize=24, crop=16)
    assert other.setting.chose_preparation
    assert other.setting_key != row.setting_key
    assert other.identity != row.identity
