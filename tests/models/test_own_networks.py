"""Networks of people's own: named, imported where they are typed, saved and loaded again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastadv.models.own_networks as own_networks
from fastadv import PGD, ThreatModel, register_arch
from fastadv.cli.train import main
from fastadv.errors import CheckpointError, ConfigError, FastadvError
from fastadv.evaluation import evaluate
from fastadv.evaluation.config import EvaluationConfig
from fastadv.models import (
    AttackView,
    NormalizedModel,
    as_model,
    create_model,
    export_model,
    load_model,
    open_source,
    plain_module,
    save_model,
)
from fastadv.training.config import TrainConfig
from fastadv.training.trainer import Trainer
from fastadv.transfer import TransferConfig

MODULE = '''
from torch import nn

ran = open("ran", "w")


def tiny(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )


class Five(nn.Module):
    """It takes no arguments, and has five classes."""

    def __init__(self):
        super().__init__()
        self.body = tiny(5)

    def forward(self, x):
        return self.body(x)


class Group:
    @staticmethod
    def net(classes):
        return tiny(classes)


def broken(num_classes):
    raise RuntimeError("no such layer")


number = 3
'''


class Two(nn.Module):
    """Two pooled branches, whose logits are averaged, and one channel or three."""

    def __init__(self, classes: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, 2, 1)
        self.last = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.conv(x).relu().mean((2, 3)))
        return logits


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_networks, "_OWN", {})
    monkeypatch.setenv(own_networks.VARIABLE, "")  # and back as it was, afterwards
    torch.manual_seed(0)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of networks, which is the current one."""
    (tmp_path / "bringing.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("bringing", None)


X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", ["bringing:tiny", "bringing:Five", "bringing:Group.net"]
)
def test_a_typed_name_imports_and_has_any_number_of_classes(
    name: str, module: Path
) -> None:
    model = create_model(name, 7, seed=0).eval()
    assert model(X).shape == (3, 7)
    torch.testing.assert_close(model.head(model.features(X)), model(X))
    save_model(model, "model.safetensors")
    assert torch.equal(load_model("model.safetensors")(X), model(X))
    assert os.environ["FASTADV_ARCH"] == name  # for other processes
    assert torch.equal(
        AttackView(model)(model.normalize(X)).argmax(1), model(X).argmax(1)
    )


def test_a_name_in_a_file_imports_nothing(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model("bringing:tiny", 3, seed=0).eval()
    save_model(model, "model.safetensors")
    own_networks._OWN.clear()
    monkeypatch.setenv("FASTADV_ARCH", "")
    sys.modules.pop("bringing")
    Path("ran").unlink()
    for opened in (
        lambda: load_model("model.safetensors"),
        lambda: open_source("model.safetensors"),
        lambda: TrainConfig(arch="bringing:tiny"),
    ):
        with pytest.raises(ConfigError, match=r"bringing:.*Type `arch=bringing:"):
            opened()
    with pytest.raises(FastadvError, match="bringing:Five"):
        open_source("model.safetensors,arch=bringing:Five")
    assert not Path("ran").exists()
    assert "bringing" not in sys.modules
    again = load_model("model.safetensors", arch="bringing:tiny")  # typed again
    assert torch.equal(again(X), model(X))
    assert open_source("model.safetensors").arch == "bringing:tiny"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.module:net", "No module named 'missing'"),
        ("bringing:none", "no attribute 'none'"),
        ("bringing:number", "a int; it must be a function"),
        ("bringing:broken", "could not build its network.*no such layer"),
        ("bringing", "unknown architecture 'bringing'"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    name: str, reason: str, module: Path
) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        create_model(name, 3)
    assert "\n" not in str(error.value)


def test_names_of_the_library_stay_its_own() -> None:
    for name in ("resnet18", "timm/resnet18"):
        with pytest.raises(ConfigError, match="is an architecture of the library"):
            register_arch(name, Two)
    with pytest.raises(ConfigError, match="cannot be the name"):
        register_arch("a,b", Two)
    with pytest.raises(ValueError, match="go together"):
        register_arch("two", Two, mean=(0.5,))


def test_statistics_and_head_can_be_registered() -> None:
    register_arch("two", Two, mean=(0.5,) * 3, std=(0.25,) * 3, head="last.0")
    model = create_model("two", 16)
    assert model.mean.tolist() == [0.5] * 3
    assert model.head is model.net.last[0]
    register_arch("two", Two)
    assert create_model("two", 9).head.out_features == 9


def test_a_module_is_evaluated_attacked_exported_and_loaded(tmp_path: Path) -> None:
    net = Two().eval()
    assert as_model(net).num_classes == 4
    found = evaluate(net, [(X, net(X).argmax(1))], PGD(ThreatModel("linf", 0.1), 2))
    assert found.clean.top1 == 1
    assert NormalizedModel(net, [0.5] * 3, [0.5] * 3).num_classes == 4
    save_model(net, tmp_path / "net.safetensors")
    back = load_model(tmp_path / "net.safetensors")
    assert torch.equal(back(X), net(X))
    assert back.net is not net
    export_model(net, tmp_path / "net.pt", "robustbench")
    plain = plain_module(as_model(Two()))
    plain.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(plain(X), net(X))
    own_networks._OWN.clear()  # another process
    with pytest.raises(ConfigError, match=r"'Two'.*register_arch\('Two', build\)"):
        load_model(tmp_path / "net.safetensors")
    for arch in (Two, Two(), lambda num_classes: Two(num_classes)):
        assert torch.equal(
            load_model(tmp_path / "net.safetensors", arch=arch)(X), net(X)
        )
    with pytest.raises(CheckpointError, match="not those of Sequential"):
        load_model(tmp_path / "net.safetensors", arch=nn.Sequential(nn.Flatten()))


def test_two_networks_of_one_class_do_not_take_each_others_place(
    tmp_path: Path,
) -> None:
    first, second = Two(4), Two(6)
    save_model(first, tmp_path / "first.safetensors")
    save_model(second, tmp_path / "second.safetensors")
    assert [as_model(net).arch for net in (first, second)] == ["Two", "Two-2"]
    assert load_model(tmp_path / "first.safetensors").num_classes == 4
    assert load_model(tmp_path / "second.safetensors").num_classes == 6


def test_a_module_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path))
    net = Two().eval()
    config = TransferConfig(source=net, dataset="digits")  # type: ignore[arg-type]
    source = open_source(config.source)
    assert torch.equal(source.load()(X), net(X))
    assert source.num_classes == 4
    judged = EvaluationConfig(checkpoint=net, data="digits")  # type: ignore[arg-type]
    assert judged.checkpoint == config.source
    with pytest.raises(TypeError, match="not a int"):
        TransferConfig(source=3, dataset="digits")  # type: ignore[arg-type]


def test_a_network_that_is_handed_in_is_trained(tmp_path: Path) -> None:
    net = Two(classes=3)
    before = net.conv.weight.detach().clone()
    config = TrainConfig(
        data="shapetex", num_train=48, resolution=16, epochs=1, batch_size=16, eps=0.1,
        num_steps=1, out=str(tmp_path / "run"), eval_images=16,
    )  # fmt: skip
    trainer = Trainer(config, model=net)
    assert trainer.config.arch == "Two"
    trainer.fit()
    assert not torch.equal(net.conv.weight, before)
    run = load_model(tmp_path / "run")
    assert run.arch == "Two"
    assert run.num_classes == net.last[2].out_features > 3


def test_a_network_that_runs_on_nothing_says_so() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3 * 7 * 7, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.last(x.flatten(1))
            return logits

    with pytest.raises(
        ConfigError, match=r"runs on no images of 3 channels.*image_size"
    ):
        as_model(Picky())
    register_arch("picky", Picky, image_size=7)
    model = create_model("picky", 2)
    assert model(torch.rand(1, 3, 7, 7)).shape == (1, 2)


def test_commands_import_what_is_typed(
    module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *("--data", "shapetex", "--resolution", "16", "--num-train", "48"),
        *("--epochs", "1", "--eps", "0", "--out", "run", "--batch-size", "16"),
    ]
    assert main(["--arch", "bringing:tiny", *words]) == 0
    own_networks._OWN.clear()  # another process
    os.environ["FASTADV_ARCH"] = ""
    capsys.readouterr()
    assert main(["--resume", "--out", "run"]) == 2
    refused = capsys.readouterr().err
    assert "--arch bringing:tiny" in refused
    assert len(refused.splitlines()) == 1
    assert main(["--resume", "--out", "run", "--arch", "bringing:tiny"]) == 0
    own_networks._OWN.clear()
    assert load_model("run").arch == "bringing:tiny"  # the variable is inherited
