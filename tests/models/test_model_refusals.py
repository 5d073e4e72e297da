"""Files that must be refused: foreign, damaged, or made to run code."""

from __future__ import annotations

import argparse
import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastadv.errors import CheckpointError, ConfigError
from fastadv.models import (
    NormalizedModel,
    create_model,
    load_model,
    read_metadata,
    save_model,
)


@pytest.fixture
def model() -> NormalizedModel:
    torch.set_num_threads(1)
    return create_model("resnet8_cifar", 10, seed=0)


def _refusal(path: Path, arch: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, arch)
    message = str(caught.value)
    assert str(path) in message
    return message


def test_another_architecture_is_named(
    model: NormalizedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(model.net.state_dict(), path)
    message = _refusal(path, "resnet18")
    assert "not those of resnet18" in message
    assert "missing (" in message
    assert "unexpected (linear.weight" in message
    assert "conv1.weight (16, 3, 3, 3) instead of (64, 3, 7, 7)" in message
    assert "They fit resnet8_cifar" in message
    caplog.clear()
    assert load_model(path).arch == "resnet8_cifar"  # the only one that fits
    assert "its weights fit resnet8_cifar alone, which is taken" in caplog.text
    with pytest.raises(ConfigError, match="perhaps you meant: resnet8_cifar"):
        load_model(path, "resnet9_cifar")


def test_weights_of_nothing_known(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(3)}, path)
    assert "no known one fits. Pass `arch=NAME`" in _refusal(path)
    torch.save({"epoch": 3, "optimizer": {}}, path)
    assert "holds no weights: found keys ['epoch', 'optimizer']" in _refusal(path)
    torch.save([1, 2], path)
    assert "found a list" in _refusal(path)


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_not_executed(tmp_path: Path, zipped: bool) -> None:
    path, marker = tmp_path / "resnet18_l2_eps3.ckpt", tmp_path / "owned"
    torch.save(
        {"model": _Malicious(marker)}, path, _use_new_zipfile_serialization=zipped
    )
    message = _refusal(path)
    assert not marker.exists()
    assert "needs code to be run" in message
    assert "mkdir" in message
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file was a real threat


def test_refusal_of_objects_is_without_torchs_advice(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(argparse.Namespace(lr=0.1), path)
    message = _refusal(path)
    assert "Namespace" in message
    assert "state_dict() alone" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [9, 300, 0.5, 0.99])
def test_truncated_pickle(
    model: NormalizedModel, tmp_path: Path, zipped: bool, keep: float
) -> None:
    path = tmp_path / "resnet8_cifar_l2_eps3.ckpt"
    torch.save(model.net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep > 1 else int(keep * len(data))])
    assert "damaged, cut short" in _refusal(path)


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.99])
def test_truncated_safetensors(
    model: NormalizedModel, tmp_path: Path, keep: float
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep > 1 else int(keep * len(data))])
    assert "damaged, cut short" in _refusal(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"<HTML><head>", "web page"),
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"hello world, not a checkpoint", "no checkpoint at all"),
        (bytes(1000), "no checkpoint at all"),
    ],
)
def test_lookalikes(tmp_path: Path, suffix: str, content: bytes, reason: str) -> None:
    path = tmp_path / f"resnet18_l2_eps3{suffix}"
    path.write_bytes(content)
    assert reason in _refusal(path)


def test_missing_path(tmp_path: Path) -> None:
    assert "there is no file or folder" in _refusal(tmp_path / "absent.ckpt")


def test_damaged_metadata(tmp_path: Path) -> None:
    header = json.dumps(
        {"__metadata__": {"fastadv_format": "1", "arch": "resnet18", "mean": "oops"}}
    ).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "damaged" in _refusal(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no fastadv metadata"):
        read_metadata(path)
