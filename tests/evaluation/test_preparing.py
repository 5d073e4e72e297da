"""Images are prepared as the network expects: as its library does, and the row says how."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shared_data import shared
from torch import Tensor
from torchvision import models as torchvision_models

from fastadv.data import ArraySet, make_loader
from fastadv.data.config import ImagesConfig
from fastadv.errors import ConfigError
from fastadv.evaluation.config import EvaluationConfig
from fastadv.evaluation.preparing import preparation_for
from fastadv.evaluation.source import evaluate_checkpoint, evaluate_source
from fastadv.models import create_model, load_model, save_model, timm_models
from fastadv.models.source import Source, open_source
from fastadv.models.weights import _images_of_torchvision, find_weights
from fastadv.preparation import Preparation
from fastadv.results.table import ResultsTable

SHAPES = [(40, 40), (375, 500), (640, 301), (224, 224), (97, 353)]  # height, width


def _pictures() -> list[np.ndarray[Any, Any]]:
    """Blurred noise of several shapes, uint8 [H, W, 3]; the last one is gray."""
    out = []
    for number, (height, width) in enumerate(SHAPES):
        rng = np.random.default_rng(number)
        low = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        smooth = np.array(Image.fromarray(low).resize((width, height), Image.BICUBIC))
        noisy = smooth.astype(int) + rng.integers(-8, 9, smooth.shape)
        out.append(noisy.clip(0, 255).astype(np.uint8))
    out[-1] = np.repeat(out[-1].mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    return out


def _ours(picture: np.ndarray[Any, Any], how: Preparation, backend: Any) -> Tensor:
    """The picture as a loader delivers it, uint8 [3, crop, crop]."""
    images = ArraySet(picture[None], [0], ["a"], name="p", split="test")
    loader = make_loader(
        images,
        backend=backend,
        batch_size=1,
        resolution=how.crop,
        train=False,
        preparation=how,
        workers=0,
    )
    return next(iter(loader)).images[0]


def _off(ours: Tensor, theirs: Tensor, mean: Any, std: Any) -> Tensor:
    """Differences in 255ths from an image that a library normalised."""
    statistics = (torch.tensor(values).view(3, 1, 1) for values in (std, mean))
    scale, shift = statistics
    return (255 * (theirs * scale + shift) - ours).abs()


@pytest.mark.parametrize(
    ("arch", "member", "expected"),
    [
        ("resnet18", "IMAGENET1K_V1", (256, 224, "bilinear")),
        ("resnet50", "IMAGENET1K_V2", (232, 224, "bilinear")),
        ("inception_v3", "IMAGENET1K_V1", (342, 299, "bilinear")),
        ("efficientnet_b3", "IMAGENET1K_V1", (320, 300, "bicubic")),
        ("swin_t", "IMAGENET1K_V1", (232, 224, "bicubic")),
        ("efficientnet_v2_s", "IMAGENET1K_V1", (384, 384, "bilinear")),
    ],
)
def test_torchvisions_weights_get_their_own_transforms(
    arch: str, member: str, expected: tuple[Any, ...]
) -> None:
    weights = torchvision_models.get_model_weights(arch)[member]
    how = _images_of_torchvision(weights)["preparation"]
    assert (how.resize, how.crop, how.interpolation) == expected
    transform = weights.transforms()
    for picture in _pictures():
        statistics = transform.mean, transform.std
        ours = _ours(picture, how, "memory")
        off = _off(ours, transform(Image.fromarray(picture)), *statistics)
        # Pillow rounds its bilinear weights otherwise than torchvision's tensors.
        assert off.max() < (1.01 if how.interpolation == "bilinear" else 1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18.a1_in1k", (235, 224, "bicubic", False)),
        ("tf_efficientnet_lite0.in1k", (256, 224, "bicubic", False)),
        ("inception_v3.tv_in1k", (341, 299, "bicubic", False)),
        ("coat_lite_medium_384.in1k", (384, 384, "bicubic", True)),
    ],
)
def test_timms_networks_get_its_own_transforms(
    name: str, expected: tuple[Any, ...]
) -> None:
    timm = pytest.importorskip("timm")
    config = timm_models.pretrained_config(name)
    how = timm_models.preparation(config, config["input_size"][-1])
    assert how is not None
    theirs = timm.data.resolve_data_config({}, pretrained_cfg=config)
    assert (how.resize, how.crop, how.interpolation, how.squash) == expected
    transform = timm.data.create_transform(**theirs)
    for picture in _pictures():
        ours = _ours(picture, how, "memory")
        theirs_of = transform(Image.fromarray(picture))
        off = _off(ours, theirs_of, theirs["mean"], theirs["std"])
        assert off.max() < (1.01 if how.interpolation == "bilinear" else 1e-3)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_every_backend_and_filter_gives_the_same_pixels(interpolation: str) -> None:
    how = Preparation(resize=72, crop=64, interpolation=interpolation, squash=True)
    resample = getattr(Image.Resampling, interpolation.upper())
    for picture in _pictures():
        memory, streamed = (_ours(picture, how, k) for k in ("memory", "torchvision"))
        assert torch.equal(memory, streamed)
        pillow = Image.fromarray(picture).resize((72, 72), resample)
        cut = np.array(pillow)[4:68, 4:68].transpose(2, 0, 1)
        assert (memory.int() - torch.from_numpy(cut).int()).abs().max() <= 1


def test_a_timm_mode_that_is_not_built_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert timm_models.preparation({"crop_mode": "border"}, 224) is None
    assert "'border'" in caplog.text


@pytest.mark.parametrize("side", [*range(8, 400, 7), 224, 299])
def test_timm_finds_the_size_that_we_write_for_it(side: int) -> None:
    for resize in (side, side + 1, round(side * 256 / 224)):
        how = Preparation(resize=resize, crop=side, interpolation="bicubic")
        stated = timm_models.preparation_config(how)
        assert math.floor(side / stated["crop_pct"]) == resize
        assert timm_models.preparation(stated, side) == how


# ---- which preparation a network gets ----


def _source(**known: Any) -> Source:
    source = Source(
        name="n",
        given="s",
        file=Path("x"),
        file_digest="ab" * 32,
        arch="resnet18",
        norm=None,
        eps=None,
        kind=None,
        resolution=32,
        augment="auto",
        num_classes=2,
        classes=(),
    )
    return replace(source, **known)


def _images(height: int = 32, width: int = 32, **options: Any) -> ArraySet:
    pixels = np.zeros((4, height, width, 3), np.uint8)
    options = {"augment_default": "rrc"} | options
    return ArraySet(pixels, [0, 1, 0, 1], ["a", "b"], name="x", split="t", **options)


STATED = Preparation(resize=232, crop=224, interpolation="bicubic")


@pytest.mark.parametrize(
    ("known", "images", "side", "expected", "why"),
    [
        ({}, _images(), 32, (32, 32, "bilinear"), "already have that size"),
        ({}, _images(32, 33), 32, (37, 32, "bilinear"), "unknown training"),
        ({}, _images(), 224, (256, 224, "bilinear"), "unknown training"),
        ({}, _images(augment_default="none"), 64, (64, 64, "bilinear"), "whole"),
        ({"trained_here": True}, _images(), 32, (37, 32, "bilinear"), "training"),
        (
            {"trained_here": True, "augment": "crop_flip"},
            _images(),
            32,
            (32, 32, "bilinear"),
            "training",
        ),
        ({"preparation": STATED}, _images(), 224, (232, 224, "bicubic"), "expects"),
        ({"preparation": STATED}, _images(), 112, (116, 112, "bicubic"), "expects"),
        (
            {"preparation": Preparation(resize=342, crop=299)},
            _images(300, 400),
            299,
            (342, 299, "bilinear"),
            "expects",
        ),
    ],
)
def test_the_source_decides(
    known: dict[str, Any], images: ArraySet, side: int, expected: Any, why: str
) -> None:
    found = preparation_for(_source(**known), images, side)
    how = found.how
    assert (how.resize, how.crop, how.interpolation) == expected
    assert why in str(found)
    assert not found.chosen


def test_flags_overrule_the_source() -> None:
    config = ImagesConfig(resize=240, interpolation="lanczos")
    found = preparation_for(_source(preparation=STATED), _images(), 224, config)
    assert found.how == Preparation(resize=240, crop=224, interpolation="lanczos")
    assert found.chosen
    with pytest.raises(ConfigError, match=r"`crop=224` is larger .* `resize=200`"):
        preparation_for(_source(), _images(), 224, ImagesConfig(resize=200))
    with pytest.raises(ConfigError, match="interpolation"):
        ImagesConfig(interpolation="cubic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="resize"):
        ImagesConfig(resize=0)
    with pytest.raises(ConfigError, match="unknown `interpolation` 'cubic'"):
        Preparation(resize=8, crop=8, interpolation="cubic").check()


def test_a_loader_refuses_the_crop_of_another_side() -> None:
    with pytest.raises(ConfigError, match="`preparation` crops 224 px"):
        make_loader(
            _images(), batch_size=1, resolution=64, train=False, preparation=STATED
        )


def test_published_files_are_known_by_their_names(tmp_path: Path) -> None:
    model = create_model("resnet18", 3, seed=0)
    name = torchvision_models.get_model_weights("resnet18")["IMAGENET1K_V1"].url
    for file, expected in (
        ("resnet18_l2_eps3.pt", Preparation(resize=256, crop=224)),
        (name.rpartition("/")[2], Preparation(resize=256, crop=224)),
        ("resnet18-00000000.pth", None),
    ):
        torch.save(model.net.state_dict(), tmp_path / file)
        assert find_weights(tmp_path / file).preparation == expected


def test_files_of_ours_state_their_preparation(tmp_path: Path) -> None:
    model = create_model("resnet8_cifar", 3, seed=0)
    stated = {"resize": 40, "crop": 32, "interpolation": "bicubic", "squash": False}
    about = {"resolution": 32, "preparation": stated, "config": {"augment": "none"}}
    file = tmp_path / "resnet8_l2_eps3.safetensors"
    save_model(model, file, about)
    assert open_source(str(file)).preparation == Preparation(**stated)
    save_model(model, file, {"resolution": 32, "config": {"augment": "none"}})
    older = open_source(str(file))
    assert (older.preparation, older.trained_here) == (None, True)


# ---- evaluations ----


def _ten_lines() -> int:
    """How many of the test images a plain script classifies correctly, as they are."""
    net = load_model(shared("weights/resnet20-12fca82f.th"), "resnet20_cifar").net
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    right = 0
    with zipfile.ZipFile(shared("cifar10-jpeg-12k.zip")) as archive:
        names = [n for n in archive.namelist() if "test/" in n and n[-1] != "/"]
        classes = sorted({name.split("/")[-2] for name in names})
        for label, each in enumerate(classes):
            files = [archive.read(n) for n in names if n.split("/")[-2] == each]
            pixels = [np.array(Image.open(io.BytesIO(f)).convert("RGB")) for f in files]
            x = (torch.from_numpy(np.stack(pixels)).float() / 255 - mean) / std
            with torch.no_grad():
                right += int((net(x.permute(0, 3, 1, 2)).argmax(1) == label).sum())
    return right


def test_images_of_the_networks_size_are_judged_as_they_are(tmp_path: Path) -> None:
    config = EvaluationConfig(
        checkpoint=str(shared("weights/resnet20-12fca82f.th")),
        arch="resnet20_cifar",
        data=str(shared("cifar10-jpeg-12k.zip")),
        eps=0.0,
        results=str(tmp_path),
        device="cpu",
        workers=0,
    )
    evaluated = evaluate_checkpoint(config)
    (row,) = ResultsTable(tmp_path).rows()
    assert sum(row.per_class_correct) == _ten_lines() == 1627
    assert row.value == pytest.approx(81.35)
    how = Preparation(resize=32, crop=32)
    assert (row.setting.preparation, row.setting.chose_preparation) == (how, False)
    assert "already have that size" in evaluated.result["prepared"]


def test_the_preparation_is_in_the_row_and_its_identity(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    save_model(create_model("resnet8_cifar", 2, seed=3), file)
    source, images = open_source(str(file)), _images(20, 30)
    options = {"batch_size": 4, "resolution": 16, "train": False, "workers": 0}

    def row(how: Preparation | None) -> Any:
        loader = make_loader(images, preparation=how, **options)
        return evaluate_source(source, loader).rows[0]

    plain = row(None)
    assert plain.setting.preparation is None
    assert row(Preparation(resize=18, crop=16)).identity == plain.identity  # the usual
    other = row(Preparation(resize=17, crop=16))
    assert other.setting.preparation == Preparation(resize=17, crop=16)
    assert other.identity != plain.identity
    # Networks that expect different things are compared, choices of flags are not.
    assert other.setting_key == plain.setting_key
    chosen = replace(other.setting, chose_preparation=True)
    assert chosen.key() != plain.setting.key()
