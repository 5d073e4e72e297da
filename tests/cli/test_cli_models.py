"""fastadv-models: what it lists, says and writes; and names of sources elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import Caller, image_folder

from fastadv.files import file_sha256
from fastadv.models import (
    ARCHITECTURES,
    create_model,
    load_model,
    save_model,
    state_hash,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    trained = {"config": {"norm": "linf", "eps": 4 / 255}, "resolution": 16}
    trained["classes"] = ["above", "below"]
    save_model(create_model("resnet8_cifar", 2, seed=0), path, trained)
    return path


def test_list(call: Caller) -> None:
    listed = json.loads(call("models", "list", "--json").out)
    assert sorted(listed) == sorted(ARCHITECTURES)
    sources = listed["resnet50"]["weights"]
    assert list(sources) == [
        "torchvision:resnet50/IMAGENET1K_V1",
        "torchvision:resnet50/IMAGENET1K_V2",
    ]
    assert listed["resnet8_cifar"] == {
        "image_size": 32,
        "salman2020": False,
        "weights": {},
    }
    table = call("models", "list", "wide_resnet50*").out.splitlines()
    assert [line.split()[0] for line in table[2:]] == [
        "wide_resnet50_2",
        "wide_resnet50_2_cifar",
        "wide_resnet50_4",
    ]
    assert (
        "no architecture matches 'nothing*'" in call("models", "list", "nothing*").error
    )
    assert "perhaps you meant: resnet50" in call("models", "list", "resnet5").error


def test_list_of_timm(call: Caller) -> None:
    pytest.importorskip("timm")
    assert "timm/resnet10t" in call("models", "list", "timm/resnet1*").out.split()


def test_show(call: Caller, checkpoint: Path) -> None:
    about = json.loads(call("models", "show", checkpoint, "--json").out)
    assert about["file_sha256"] == file_sha256(checkpoint)
    assert about["state_hash"] == state_hash(load_model(checkpoint))
    assert (about["norm"], about["eps"], about["resolution"]) == ("linf", 4 / 255, 16)
    assert (about["embedding_dim"], about["blocks"]) == (64, 4)
    text = call("models", "show", f"{checkpoint},name=robust").out
    assert text.startswith("robust\n")
    assert "adversarial, linf 4/255" in text
    assert "mean 0.485 0.456 0.406" in text


def test_convert_keeps_everything(
    call: Caller, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "copy.safetensors"
    done = call("models", "convert", checkpoint, out, "--to", "safetensors", "--json")
    assert json.loads(done.out)["files"] == [str(out), f"{out}.json"]
    before = json.loads(call("models", "show", checkpoint, "--json").out)
    after = json.loads(call("models", "show", out, "--json").out)
    same = ("arch", "state_hash", "norm", "eps", "resolution", "classes", "mean")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    digest = file_sha256(checkpoint)
    assert after["metadata"]["converted_from"] == {"name": "mine", "sha256": digest}


def test_convert_never_replaces_unasked(
    call: Caller, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "there.pt"
    out.write_text("precious")
    words = ("models", "convert", checkpoint, out, "--to", "robustbench")
    refusal = call(*words)
    assert refusal.code == 2
    assert "add --force to replace it" in refusal.error
    assert out.read_text() == "precious"
    assert call(*words, "--force").code == 0
    # Nor what is written beside it.
    other = ("models", "convert", checkpoint, tmp_path / "c.pkl", "--to", "detectron2")
    for name in ("c.yaml", "c.pkl.json"):
        (tmp_path / name).write_text("precious")
        assert f"{name} exists; add --force" in call(*other).error
        (tmp_path / name).unlink()
    loaded = load_model(out, "resnet8_cifar")
    assert state_hash(loaded) == state_hash(load_model(checkpoint))


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        ("lst", 2, "unknown command 'lst'; perhaps you meant: list"),
        ("convert a b.pt --to onx", 2, "unknown --to 'onx'; perhaps you meant: onnx"),
        ("convert a b.pt --to onnx", 2, "b.pt must end in .onnx for --to onnx"),
        ("convert a b.onnx --to onnx --resolution 0", 2, "--resolution 0 cannot work"),
        ("convert nowhere.pt b.onnx --to onnx", 1, "there is no file or folder"),
        ("show torchvison:resnet18", 2, "perhaps you meant: torchvision"),
        ("show hf:a", 2, "hf:a names no repository"),
    ],
)
def test_bad_input(words: str, code: int, complaint: str, call: Caller) -> None:
    result = call("models", *words.split())
    assert (result.code, result.out) == (code, "")
    assert complaint in result.error


def test_usage(call: Caller) -> None:
    assert call("models").code == 2
    for command in ("list", "show", "convert"):
        assert command in call("models", "--help").out
        assert call("models", command, "--help").code == 0


def test_eval_and_transfer_take_names(call: Caller, tmp_path: Path) -> None:
    """The same weights under another input convention are another source."""
    folder = image_folder(tmp_path / "data")
    path = tmp_path / "w.pt"
    torch.save(create_model("resnet8_cifar", 2, seed=0).net.state_dict(), path)
    hashes = set()
    for convention in ("imagenet", "caffe"):
        source = f"{path},arch=resnet8_cifar,input={convention},eps=0,name={convention}"
        table = ("--results", tmp_path / "results")
        words = ("--data", folder, "--resolution", 16, "--json", *table)
        result = json.loads(call("eval", "--checkpoint", source, *words).out)
        assert result["n"] == 12
        assert result["checkpoint_sha256"] == file_sha256(path)
        words = ("--dataset", folder, "--resolution", 16, "--json")
        row = json.loads(call("transfer", "--source", source, *words, *table).out)
        opened = row["source"]
        assert (opened["name"], opened["eps"]) == (convention, 0)
        assert opened["digest"] == result["source_hash"]
        assert opened["given"] == source
        hashes.add(opened["digest"])
    assert len(hashes) == 2
    for command in (("eval", "--checkpoint"), ("transfer", "--source")):
        data = "--data" if command[0] == "eval" else "--dataset"
        result = call(*command, "torchvison:resnet18", data, folder)
        assert "perhaps you meant: torchvision" in result.error
