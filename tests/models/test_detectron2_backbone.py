"""Backbones written for Detectron2: its ResNet gives what torchvision's does, by stage."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2_resnet import ResNet
from torch import nn

from fastadv.models import NormalizedModel, create_model
from fastadv.models.dialects import DETECTRON2_CONFIGS, to_detectron2
from fastadv.models.export import export_model

MEAN, STD = (0.48, 0.46, 0.41), (0.23, 0.22, 0.24)
STAGES = {
    "stem": "maxpool",
    "res2": "layer1",
    "res3": "layer2",
    "res4": "layer3",
    "res5": "layer4",
}


def trained(arch: str) -> NormalizedModel:
    """A network whose BatchNorm layers differ from one another."""
    model = create_model(arch, 4, mean=MEAN, std=STD, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def exported(model: NormalizedModel, folder: Path) -> tuple[ResNet, dict[str, Any]]:
    """The backbone as Detectron2 would build and fill it, and its configuration."""
    export_model(model, folder / "backbone.pkl", "detectron2")
    config = yaml.safe_load((folder / "backbone.yaml").read_text())
    assert config["INPUT"]["FORMAT"] == "RGB"
    with torch.device("meta"):
        net = ResNet(config["MODEL"]["RESNETS"])
    weights = pickle.loads((folder / "backbone.pkl").read_bytes())["model"]
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    net.load_state_dict(state, strict=True, assign=True)
    return net, config["MODEL"]


@pytest.mark.parametrize(
    "arch",
    ["resnet18", "resnet50", pytest.param("wide_resnet50_4", marks=pytest.mark.slow)],
)
@torch.no_grad()
def test_every_stage_is_that_of_torchvision(arch: str, tmp_path: Path) -> None:
    model = trained(arch)
    if arch == "wide_resnet50_4":  # a file of 0.9 GB would say nothing more
        with torch.device("meta"):
            net = ResNet(DETECTRON2_CONFIGS[arch] | {"STRIDE_IN_1X1": False})
        state = to_detectron2(model.net.state_dict())
        net.load_state_dict(state, strict=True, assign=True)
        config = {
            "PIXEL_MEAN": [255 * x for x in MEAN],
            "PIXEL_STD": [255 * x for x in STD],
        }
    else:
        net, config = exported(model, tmp_path)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    theirs = model.activations(model.normalize(image), list(STAGES.values()))
    # Detectron2 takes pixels in 0..255, in the order that INPUT.FORMAT states.
    mean, std = (
        torch.tensor(config[f"PIXEL_{x}"]).view(3, 1, 1) for x in ("MEAN", "STD")
    )
    found = net((255 * image - mean) / std)
    assert list(found) == list(STAGES)
    for name, layer in STAGES.items():
        largest = float(theirs[layer].abs().max())
        torch.testing.assert_close(
            found[name], theirs[layer], rtol=0, atol=2e-5 * largest
        )
        assert theirs[layer].std() > 0.01 * largest


@torch.no_grad()
def test_another_order_of_channels_or_place_of_the_stride_is_another_network(
    tmp_path: Path,
) -> None:
    """What the check above would miss, were it blind to the choices of the .yaml file."""
    model = trained("resnet50")
    net, config = exported(model, tmp_path)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    right = net(model.normalize(image))["res5"]
    assert (net(model.normalize(image.flip(1)))["res5"] - right).abs().max() > 0.01
    with torch.device("meta"):
        strided = ResNet(config["RESNETS"] | {"STRIDE_IN_1X1": True})
    strided.load_state_dict(net.state_dict(), strict=True, assign=True)
    assert (strided(model.normalize(image))["res5"] - right).abs().max() > 0.01


def test_the_configuration_says_what_stays_frozen(tmp_path: Path) -> None:
    exported(trained("resnet18"), tmp_path)
    remarks = [
        line
        for line in (tmp_path / "backbone.yaml").read_text().splitlines()
        if line.startswith("#")
    ]
    assert "FREEZE_AT" in " ".join(remarks)
    assert "stem and res2" in " ".join(remarks)
