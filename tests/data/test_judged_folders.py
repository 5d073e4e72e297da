"""Folders that are only judged on: of classes, and like ImageNet-C."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastadv.data.opening.shifted import (
    CorruptedFiles,
    chosen_conditions,
    open_judged,
)
from fastadv.data.sets.listed import ListedSet
from fastadv.errors import ConfigError, DataError


def write(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (level,) * 3).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(("n2", "n10", "n1")):
        for j in range(2):
            write(tmp_path / "imagenet-r" / name / f"{j}.png", 40 * i + j)
    return tmp_path / "imagenet-r"


@pytest.mark.parametrize("packed", [False, True])
def test_classes_without_a_training_split(folder, tmp_path, packed: bool) -> None:
    path = folder
    if packed:
        path = Path(
            shutil.make_archive(str(tmp_path / "r"), "zip", folder.parent, folder.name)
        )
    images = open_judged(str(path))
    assert isinstance(images, ListedSet)
    assert images.classes == ("n1", "n10", "n2")
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    levels = [int(images.load(i)[0, 0, 0]) for i in range(6)]
    assert levels == [80, 81, 40, 41, 0, 1]
    again = open_judged(str(path))
    assert again.fingerprint == images.fingerprint
    write(folder / "n3" / "0.png", 9)
    assert open_judged(str(folder)).fingerprint != images.fingerprint


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    for group, kind in (("noise", "gaussian_noise"), ("blur", "fog")):
        for severity in (1, 3):
            for name in ("n1", "n2"):
                for j in range(2):
                    place = tmp_path / "c" / group / kind / str(severity) / name
                    write(place / f"{j}.png", 10 * severity + j)
    return tmp_path / "c"


def test_a_folder_like_imagenet_c(corrupted: Path) -> None:
    found = open_judged(str(corrupted))
    assert isinstance(found, CorruptedFiles)
    assert list(found.conditions) == [
        (kind, severity) for kind in ("fog", "gaussian_noise") for severity in (1, 3)
    ]
    for (_, severity), images in found.conditions.items():
        assert images.labels.tolist() == [0, 0, 1, 1]
        levels = [int(images.load(i)[0, 0, 0]) for i in range(4)]
        assert levels == [10 * severity, 10 * severity + 1] * 2
    chosen = chosen_conditions(found, ["gaussian_noise"], [3, 1])
    assert list(chosen) == [("gaussian_noise", 3), ("gaussian_noise", 1)]
    with pytest.raises(ConfigError, match="gaussian_noise"):
        chosen_conditions(found, ["gausian_noise"], None)
    with pytest.raises(ConfigError, match="no severity 5; it has 1, 3"):
        chosen_conditions(found, None, [5])


def test_missing_images_are_named(corrupted: Path) -> None:
    (corrupted / "blur" / "fog" / "3" / "n2" / "1.png").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 4 images under fog 3: 'n2/1.png'"):
        open_judged(str(corrupted))


def test_other_data_are_opened_as_ever(folder: Path, tmp_path: Path) -> None:
    assert open_judged("digits").split == "test"
    for name in ("train", "val"):
        shutil.copytree(folder, tmp_path / "set" / name)
    images = open_judged(str(tmp_path / "set"))
    assert (images.split, len(images)) == ("val", 6)
    write(folder / "loose.png", 3)
    with pytest.raises(DataError, match=r"class folder: 'loose\.png'"):
        open_judged(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data set at"):
        open_judged(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no train/ folder|neither a folder"):
        open_judged(str(tmp_path / "empty"))
    assert np.all(images.labels == [0, 0, 1, 1, 2, 2])
