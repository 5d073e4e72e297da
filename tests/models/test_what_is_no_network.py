"""What users say of a file: layers to ignore, statistics that decide, heads with a bias."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from source_files import MEAN, STD, refused
from torch import Tensor, nn

from fastadv.models import (
    NormalizedModel,
    create_model,
    load_model,
    register_arch,
    save_model,
    state_hash,
)
from fastadv.models.source import open_source

GIVEN = ",mean=0.1,0.2,0.3,std=0.4,0.5,0.6"


@pytest.fixture(scope="module")
def model() -> NormalizedModel:
    torch.set_num_threads(1)
    return create_model("resnet8_cifar", 10, mean=MEAN, std=STD, seed=0).eval()


# ---- layers that are no part of the network ----

FOREIGN: dict[str, tuple[dict[str, Tensor], str]] = {
    "one": ({"adapter.w": torch.ones(3, 3)}, "adapter"),
    "two": (
        {"adapter.w": torch.ones(3, 3), "extra.0.bias": torch.ones(7)},
        "adapter+extra.0",
    ),
    "inside": ({"layer1.0.lora.weight": torch.ones(3, 3)}, "layer1.0.lora"),
    "many of one": (
        {f"side.{i}.weight": torch.ones(3, 3) for i in range(6)},
        "side",
    ),
    "a bare tensor": ({"bank": torch.ones(9, 9)}, "bank"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("arch", ["", ",arch=resnet8_cifar"])
def test_foreign_layers_are_named_with_the_option_that_ignores_them(
    model: NormalizedModel, tmp_path: Path, kind: str, arch: str
) -> None:
    more, option = FOREIGN[kind]
    torch.save(model.net.state_dict() | more, tmp_path / "w.pt")
    source = f"{tmp_path / 'w.pt'}{arch}{GIVEN}"
    assert f"write ,ignore={option} after its name" in refused(source)
    found = open_source(f"{source},ignore={option}")
    assert state_hash(found.load()) == state_hash(model)


def test_what_is_ignored_must_be_there(model: NormalizedModel, tmp_path: Path) -> None:
    torch.save({"net": model.net.state_dict()}, tmp_path / "w.pt")
    message = refused(f"{tmp_path / 'w.pt'},ignore=adaptor")
    assert "holds nothing called 'adaptor'" in message
    assert "its tensors begin with net" in message
    assert "missing" in refused(f"{tmp_path / 'w.pt'},arch=resnet8_cifar,ignore=layer1")


def test_one_of_two_networks_is_ignored(model: NormalizedModel, tmp_path: Path) -> None:
    other = create_model("resnet8_cifar", 10, mean=MEAN, std=STD, seed=1)
    both = {"natural": other.net.state_dict(), "robust": model.net.state_dict()}
    torch.save(both, tmp_path / "w.pt")
    source = f"{tmp_path / 'w.pt'}{GIVEN}"
    assert "two different models" in refused(source)
    assert state_hash(load_model(f"{source},ignore=natural")) == state_hash(model)
    assert state_hash(load_model(f"{source},ignore=robust")) == state_hash(other)


# ---- statistics that a file states badly ----

LONE = {"normalize.mean": torch.tensor(MEAN).view(1, 3, 1, 1)}
TWO = {
    "normalize.mean": torch.tensor([0.5] * 3),
    "normalize.std": torch.tensor([0.5] * 3),
    "new_mean": torch.tensor(MEAN),
    "new_std": torch.tensor(STD),
}


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (LONE, "holds only one of 'normalize.mean' and its partner"),
        ({"pixel_std": torch.tensor(STD)}, "holds only one of 'pixel_std'"),
        (TWO, "states two normalisations"),
        (
            {"normalizer.mu": torch.tensor(MEAN), "normalizer.sigma": torch.tensor(STD)}
            | {"pixel_mean": torch.tensor([0.4] * 3), "pixel_std": torch.tensor(STD)},
            "states two normalisations",
        ),
    ],
)
def test_statistics_that_are_given_decide(
    model: NormalizedModel, tmp_path: Path, more: dict[str, Tensor], complaint: str
) -> None:
    torch.save(model.net.state_dict() | more, tmp_path / "w.pt")
    message = refused(str(tmp_path / "w.pt"))
    assert complaint in message
    assert "write ,mean=R,G,B,std=R,G,B after its name" in message
    assert state_hash(load_model(f"{tmp_path / 'w.pt'}{GIVEN}")) == state_hash(model)


def test_networks_of_timm_get_the_statistics_of_timm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    timm: Any = pytest.importorskip("timm")
    for name in ("test_vit", "test_resnet"):
        net = timm.create_model(name, num_classes=3)
        torch.save(net.state_dict(), tmp_path / "w.pt")
        with caplog.at_level(logging.WARNING):
            found = load_model(f"{tmp_path / 'w.pt'},arch=timm/{name}")
        assert found.mean.tolist() == pytest.approx(net.default_cfg["mean"])
        usual = net.default_cfg["mean"][0] != 0.5
        whose = "ImageNet's" if usual else f"timm's ({name})"
        assert f"assumed are {whose} mean and std" in caplog.text
        caplog.clear()


# ---- classifiers that gained a bias ----


class Biasless(nn.Module):
    """Its last layer has no bias, as that of torchvision's MaxViT."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(4, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.conv(x).relu().mean((2, 3)))
        return logits


def test_a_fitted_head_keeps_its_bias(tmp_path: Path) -> None:
    register_arch("biasless", Biasless)
    model = create_model("biasless", 4, seed=0).eval()
    x = torch.rand(2, 3, 16, 16)
    save_model(model, tmp_path / "plain.safetensors")
    assert load_model(tmp_path / "plain.safetensors").head.bias is None
    model.set_head(torch.randn(4, 4), torch.arange(4.0))
    save_model(model, tmp_path / "fitted.safetensors")
    back = load_model(tmp_path / "fitted.safetensors")
    assert back.head.bias is not None
    assert torch.equal(back(x), model(x))
