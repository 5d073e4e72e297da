"""The same networks under other people's names of layers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from source_files import refused
from torch import Tensor, nn
from torch.nn.utils import prune

from fastadv.models import create_model, load_model, save_model
from fastadv.models.export import export_model
from fastadv.models.source import open_source

State = dict[str, Tensor]


class KuangliuBlock(nn.Module):
    """The block of kuangliu/pytorch-cifar, which robustness, AWP and others took over."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class KuangliuResNet18(nn.Module):
    """ResNet18 of kuangliu/pytorch-cifar."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        before = 64
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            blocks = []
            for stride in (1 if stage == 1 else 2, 1):
                blocks.append(KuangliuBlock(before, width, stride))
                before = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.linear(F.avg_pool2d(x, 4).flatten(1))
        return logits


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _random(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.1)
    return net.eval()


@torch.no_grad()
def test_kuanglius_resnets_compute_the_same(tmp_path: Path) -> None:
    net = _random(KuangliuResNet18())
    path = tmp_path / "ckpt.pth"
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"net": state, "acc": 95.4, "epoch": 199}, path)
    model = load_model(f"{path},input=unit")
    assert (model.arch, model.num_classes) == ("resnet18_cifar", 10)
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-4)


def _renamed(state: State, *rules: tuple[str, str]) -> State:
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


RENAMED: dict[str, Callable[[State], State]] = {
    "robustness": lambda s: {
        f"module.model.{key}": value
        for key, value in _renamed(
            s, (r"downsample\.", "shortcut."), (r"^fc\.", "linear.")
        ).items()
    },
    "skip": lambda s: _renamed(s, (r"downsample\.", "skip.")),
    "order": lambda s: _renamed(
        s, (r"layer(\d)\.", r"stages.\1.blocks."), (r"conv(\d)", r"c\1"), ("bn", "norm")
    ),
    "order, below a prefix": lambda s: (
        {
            f"net.{key}": value
            for key, value in _renamed(
                s, ("conv", "convolution"), ("^fc", "top")
            ).items()
        }
        | {"criterion.weight": torch.ones(5)}
    ),
}


@pytest.mark.parametrize("who", RENAMED)
def test_names_of_a_resnet(who: str, tmp_path: Path) -> None:
    model = create_model("resnet18_cifar", 5, seed=0)
    state = model.net.state_dict()
    path = tmp_path / "w.pt"
    torch.save(RENAMED[who](state), path)
    loaded = load_model(f"{path},arch=resnet18_cifar").net.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_order_is_trusted_only_where_it_is_that_of_the_layers(tmp_path: Path) -> None:
    state = create_model("resnet8_cifar", 5, seed=0).net.state_dict()
    other = _renamed(state, ("conv", "convolution"))
    path = tmp_path / "w.pt"
    torch.save(dict(sorted(other.items())), path)
    assert "missing (" in refused(f"{path},arch=resnet8_cifar")
    swapped = list(other.items())
    swapped[0], swapped[1] = swapped[1], swapped[0]
    torch.save(dict(swapped), path)
    assert "missing (" in refused(f"{path},arch=resnet8_cifar")


def test_pruned_weights_are_masked(tmp_path: Path) -> None:
    model = create_model("resnet8_cifar", 5, seed=0)
    net = model.net
    for module in (net.get_submodule("layer1.0.conv1"), net.get_submodule("linear")):
        prune.l1_unstructured(module, "weight", amount=0.5)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    loaded = load_model(tmp_path / "w.pt").net
    weight = loaded.get_parameter("layer1.0.conv1.weight")
    assert torch.equal(weight, net.get_submodule("layer1.0.conv1").weight)
    assert (weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_detectron2s_backbone_comes_back(tmp_path: Path) -> None:
    model = create_model("resnet18", 5, seed=0)
    export_model(model, tmp_path / "d2.pkl", "detectron2")
    source = open_source(f"{tmp_path / 'd2.pkl'},arch=resnet18,input=unit")
    assert source.num_classes == 0
    x = torch.rand(1, 3, 64, 64)
    assert source.load().features(x).shape == (1, 512)


@torch.no_grad()
def test_resnets_of_transformers_compute_the_same(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    config = library.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=4,
    )
    net = _random(library.ResNetForImageClassification(config))
    net.save_pretrained(tmp_path)
    model = load_model(f"{tmp_path},arch=resnet18,input=unit")
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(x), net(x).logits, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_vits_of_transformers_compute_the_same(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    pytest.importorskip("timm")
    config = library.ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        num_labels=4,
        layer_norm_eps=1e-6,
    )
    net = _random(library.ViTForImageClassification(config))
    net.save_pretrained(tmp_path)
    model = load_model(f"{tmp_path},arch=timm/vit_tiny_patch16_224,input=unit")
    x = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(model(x), net(x).logits, rtol=1e-3, atol=1e-3)


def test_the_authors_names_are_translated_by_timm(tmp_path: Path) -> None:
    """ConvNeXts of facebookresearch, which timm's own loading translates."""
    pytest.importorskip("timm")
    model = create_model("timm/convnext_atto", 4, seed=0)
    theirs = _renamed(
        model.net.state_dict(),
        (r"^stem\.", "downsample_layers.0."),
        (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    )
    assert not set(theirs) & {"stem.0.weight"}
    torch.save({"model": theirs}, tmp_path / "w.pt")
    loaded = load_model(f"{tmp_path / 'w.pt'},arch=timm/convnext_atto")
    torch.testing.assert_close(loaded.head.weight, model.head.weight)
    torch.testing.assert_close(
        loaded.net.get_parameter("stages.1.blocks.0.conv_dw.weight"),
        model.net.get_parameter("stages.1.blocks.0.conv_dw.weight"),
    )


# ---- files in parts, folders ----


def _shards(folder: Path, state: State) -> Path:
    keys = list(state)
    parts = {"model-00001-of-00002.safetensors": keys[:20]}
    parts["model-00002-of-00002.safetensors"] = keys[20:]
    for name, held in parts.items():
        safetensors.torch.save_file({key: state[key] for key in held}, folder / name)
    index = {"weight_map": {key: n for n, held in parts.items() for key in held}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def test_weights_in_several_files(tmp_path: Path) -> None:
    model = create_model("resnet8_cifar", 5, seed=0)
    index = _shards(tmp_path, model.net.state_dict())
    for given in (index, tmp_path):
        source = open_source(str(given))
        assert torch.equal(source.load().head.weight, model.head.weight)
    before = source.digest
    _shards(tmp_path, create_model("resnet8_cifar", 5, seed=1).net.state_dict())
    assert open_source(str(index)).digest != before
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refused(str(index))
    index.write_text("{}")
    assert "is no index of weights" in refused(str(index))


def test_folders_with_files_of_other_names(tmp_path: Path) -> None:
    model = create_model("resnet8_cifar", 5, seed=0)
    torch.save(model.net.state_dict(), tmp_path / "checkpoint_best.pth.tar")
    (tmp_path / "log.txt").write_text("epoch 1")
    assert torch.equal(load_model(tmp_path).head.weight, model.head.weight)
    save_model(model, tmp_path / "second.safetensors")
    assert "holds several checkpoints (checkpoint_best.pth.tar, second" in refused(
        str(tmp_path)
    )
