"""Models written for other programs, read as those read them, equal to the bit."""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
import yaml
from torch import Tensor, nn

from fastadv.errors import ConfigError, OutputError
from fastadv.files import file_sha256
from fastadv.models import (
    NormalizedModel,
    create_model,
    load_model,
    read_metadata,
    state_hash,
)
from fastadv.models.architecture_names import EXPORT_FORMATS
from fastadv.models.dialects import DETECTRON2_CONFIGS, TIMM_TWINS
from fastadv.models.export import export_model, plain_module
from fastadv.models.source import open_source
from fastadv.preparation import Preparation

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def trained(arch: str, num_classes: int = 7) -> NormalizedModel:
    """A network whose BatchNorm statistics and affine values are not the initial ones."""
    model = create_model(arch, num_classes, mean=MEAN, std=STD, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def images(side: int = 64, n: int = 2) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(2))


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- safetensors and the card ----


def test_safetensors_and_card(tmp_path: Path) -> None:
    model = trained("resnet8_cifar")
    path = tmp_path / "m.safetensors"
    about = {"config": {"norm": "l2", "eps": 0.5}, "classes": ["a", "b"]}
    written = export_model(model, path, "safetensors", resolution=32, about=about)
    assert written == [path, tmp_path / "m.safetensors.json"]
    assert state_hash(load_model(path)) == state_hash(model)
    card = json.loads((tmp_path / "m.safetensors.json").read_text())
    assert card["about"] == about | {"resolution": 32} == read_metadata(path)["user"]
    assert card["files"] == {"m.safetensors": file_sha256(path)}
    assert (card["arch"], card["num_classes"]) == ("resnet8_cifar", 7)
    assert (tuple(card["mean"]), tuple(card["std"])) == (MEAN, STD)
    assert card["state_hash"] == state_hash(model)
    assert card["parameters"] == sum(p.numel() for p in model.parameters())


# ---- torchvision ----


@torch.no_grad()
def test_torchvision_loads_its_state_dict_strictly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained("shufflenet_v2_x1_0")
    path = tmp_path / "shufflenet_v2_x1_0-00000000.pth"
    with caplog.at_level(logging.WARNING):
        export_model(model, path, "torchvision")
    assert "no place for normalisation" in caplog.text
    net = torchvision.models.shufflenet_v2_x1_0(num_classes=7).eval()
    net.load_state_dict(torch.load(path, weights_only=True))
    z = (images() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(net(z), model(images()))
    back = load_model(path, mean=MEAN, std=STD)
    assert state_hash(back) == state_hash(model)


# ---- timm ----


@torch.no_grad()
@pytest.mark.parametrize("arch", ["resnet18", "timm/mobilenetv3_small_050"])
def test_timm_loads_the_folder(arch: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = trained(arch)
    how = Preparation(resize=110, crop=96)
    about = {"preparation": asdict(how)}
    written = export_model(model, tmp_path / "f", "timm", resolution=96, about=about)
    names = ["config.json", "model.safetensors", "card.json"]
    assert [path.name for path in written] == names
    theirs = timm.create_model(f"local-dir:{tmp_path / 'f'}", pretrained=True).eval()
    assert same_state(theirs.state_dict(), model.net.state_dict())
    stated = timm.data.resolve_data_config({}, pretrained_cfg=theirs.pretrained_cfg)
    assert math.floor(96 / stated["crop_pct"]) == 110
    assert (stated["interpolation"], stated["crop_mode"]) == ("bilinear", "center")
    card = json.loads((tmp_path / "f" / "card.json").read_text())
    assert card["preparation"] == str(how)
    assert open_source(str(tmp_path / "f")).preparation == how
    assert tuple(theirs.pretrained_cfg["mean"]) == MEAN
    assert list(theirs.pretrained_cfg["input_size"]) == [3, 96, 96]
    x = images()
    assert torch.equal(theirs(model.normalize(x)), model(x))
    back = load_model(tmp_path / "f")
    assert (back.arch, state_hash(back)) == (arch, state_hash(model))


@torch.no_grad()
@pytest.mark.parametrize("arch", TIMM_TWINS)
def test_timms_namesakes_are_the_same_networks(arch: str) -> None:
    timm = pytest.importorskip("timm")
    small = arch in ("resnet18", "densenet121")  # the others by structure: 9 s less
    with torch.device("cpu" if small else "meta"):
        ours, theirs = create_model(arch, 5).eval().net, timm.create_model(arch).eval()
        theirs.reset_classifier(5)
    shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in (ours, theirs)]
    assert shapes[0] == shapes[1]
    if small:
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(theirs(images()), ours(images()), rtol=0, atol=0)


# ---- Detectron2 ----


def d2_backbone(weights: dict[str, Tensor], x: Tensor, blocks: list[int]) -> Tensor:
    """Detectron2's ResNet-50 (`modeling/backbone/resnet.py`) by the names of its layers.

    STRIDE_IN_1X1 is False; a shortcut convolution in the first block of every stage.
    """

    def conv(key: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = weights.pop(f"{key}.weight")
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)
        norm = [weights.pop(f"{key}.norm.{k}") for k in D2_NORM]
        return F.batch_norm(x, *norm)

    x = F.max_pool2d(F.relu(conv("stem.conv1", x, 2)), 3, 2, 1)
    for stage, count in enumerate(blocks):
        for block in range(count):
            key = f"res{stage + 2}.{block}"
            stride = 2 if stage and not block else 1
            y = F.relu(conv(f"{key}.conv1", x))
            y = F.relu(conv(f"{key}.conv2", y, stride))
            y = conv(f"{key}.conv3", y)
            x = F.relu(y + (x if block else conv(f"{key}.shortcut", x, stride)))
    return x


D2_NORM = ("running_mean", "running_var", "weight", "bias")


@torch.no_grad()
def test_detectron2_backbone(tmp_path: Path) -> None:
    model = trained("resnet50")
    path = tmp_path / "R-50.pkl"
    written = export_model(model, path, "detectron2")
    assert [file.name for file in written] == ["R-50.pkl", "R-50.yaml", "R-50.pkl.json"]
    content = pickle.loads(path.read_bytes())
    assert set(content) == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    config = yaml.safe_load((tmp_path / "R-50.yaml").read_text())
    assert config["INPUT"]["FORMAT"] == "RGB"
    assert "BGR" in (tmp_path / "R-50.yaml").read_text().splitlines()[0]
    assert config["MODEL"]["RESNETS"] == {"DEPTH": 50, "STRIDE_IN_1X1": False}
    assert "BGR" in json.loads((tmp_path / "R-50.pkl.json").read_text())["input"]
    weights = {key: torch.from_numpy(value) for key, value in content["model"].items()}
    conv1 = model.net.layer2[0].conv1.weight
    assert torch.equal(weights["res3.0.conv1.weight"], conv1)
    # Detectron2 takes 0..255 images and normalises with these.
    mean, std = (
        torch.tensor(config["MODEL"][key]).view(3, 1, 1)
        for key in ("PIXEL_MEAN", "PIXEL_STD")
    )
    found = d2_backbone(weights, (255 * images() - mean) / std, [3, 4, 6, 3])
    assert weights == {}  # every one was asked for
    torch.testing.assert_close(
        found.mean((2, 3)), model.features(images()), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("arch", DETECTRON2_CONFIGS)
def test_detectron2_configs_state_the_real_widths(arch: str) -> None:
    with torch.device("meta"):
        net = create_model(arch, 5).net
    config = DETECTRON2_CONFIGS[arch]
    depth = sum(
        1
        for name, m in net.named_modules()
        if isinstance(m, nn.Conv2d) and "downsample" not in name
    )
    assert config["DEPTH"] == depth + 1  # and the classifier
    assert config.get("RES2_OUT_CHANNELS", 256) == net.layer1[-1].conv1.in_channels
    block = net.layer1[0].conv2  # Detectron2's bottleneck is groups * width channels
    groups = config.get("NUM_GROUPS", 1)
    width = config.get("WIDTH_PER_GROUP", 64)
    assert (block.groups, block.in_channels) == (groups, groups * width)


# ---- RobustBench ----


class ImageNormalizer(nn.Module):
    """RobustBench's own layer (its `architectures/utils_architectures.py`)."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.as_tensor(std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def benchmark(
    model: nn.Module, x: Tensor, y: Tensor, eps: float
) -> tuple[float, float]:
    """Clean and robust accuracy as `robustbench.benchmark` asks: [0, 1] in, logits out."""
    clean = (model(x).argmax(1) == y).float().mean().item()
    delta = torch.zeros_like(x)
    for _ in range(5):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(
            F.cross_entropy(model(x + delta), y, reduction="sum"), delta
        )
        delta = (delta + eps / 2 * gradient.sign()).clamp(-eps, eps).detach()
        delta = (x + delta).clamp(0, 1) - x
    return clean, (model(x + delta).argmax(1) == y).float().mean().item()


def test_robustbench_runs_on_what_we_write(tmp_path: Path) -> None:
    model = trained("resnet18", 5)
    path = tmp_path / "Ours2026.pt"
    export_model(model, path, "robustbench")
    net = torchvision.models.resnet18(num_classes=5)
    parts = OrderedDict(normalize=ImageNormalizer((0.0,) * 3, (1.0,) * 3), model=net)
    theirs = nn.Sequential(parts).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    x = images(n=16)
    y = model(x).argmax(1)
    y[:4] = (y[:4] + 1) % 5  # wrong on a quarter
    clean, robust = benchmark(theirs, x, y, eps=8 / 255)
    assert clean == 0.75 > robust
    loader = plain_module(model)
    assert type(loader) is nn.Sequential
    assert not any(isinstance(m, NormalizedModel) for m in loader.modules())
    assert benchmark(loader, x, y, eps=8 / 255) == (clean, robust)
    assert torch.equal(loader(x), theirs(x))
    assert state_hash(load_model(path, "resnet18")) == state_hash(model)


# ---- ONNX ----


@torch.no_grad()
def test_onnxruntime_computes_the_same(tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = trained("resnet8_cifar").train()
    path = tmp_path / "m.onnx"
    export_model(model, path, "onnx", resolution=32)
    assert model.training
    model.eval()
    onnx.checker.check_model(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in (1, 5):
        x = images(32, n)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(logits), model(x), rtol=1e-4, atol=1e-4
        )


def test_onnx_without_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'fastadv\[onnx\]'"):
        export_model(trained("resnet8_cifar"), tmp_path / "m.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("arch", "to", "complaint"),
    [
        ("resnet8_cifar", "torchvision", "torchvision has no network"),
        ("resnet8_cifar", "timm", "it has those of densenet121"),
        ("resnet8_cifar", "detectron2", "it has those of resnet101"),
        ("resnet8_cifar", "safetensor", "perhaps you meant: safetensors"),
    ],
)
def test_refusals(arch: str, to: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        export_model(trained(arch), tmp_path / "x", to)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not write"):
        export_model(
            trained("resnet8_cifar"), tmp_path / "file" / "m.pt", "robustbench"
        )


def test_every_format_is_described() -> None:
    from fastadv.models.architecture_names import _SUFFIXES
    from fastadv.models.export import _WRITERS

    assert set(EXPORT_FORMATS) == set(_WRITERS) == set(_SUFFIXES)
