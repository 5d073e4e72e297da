"""Weights written and read back, a disk that fails, and published layouts."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fastadv.errors import CheckpointError, ConfigError, OutputError
from fastadv.files import file_sha256
from fastadv.models import (
    NormalizedModel,
    create_model,
    load_model,
    read_metadata,
    resolve_checkpoint,
    save_model,
    state_hash,
)

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> NormalizedModel:
    model = create_model("resnet8_cifar", 10, mean=MEAN, std=STD, seed=0)
    model.train()(torch.rand(4, 3, 32, 32))  # BatchNorm statistics worth keeping
    return model.eval()


def same(a: NormalizedModel, b: NormalizedModel) -> bool:
    return state_hash(a) == state_hash(b) and a.arch == b.arch


# ---- our own files ----


def test_round_trip(model: NormalizedModel, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "m.safetensors"
    save_model(model, path, {"epoch": 3, "eps": 0.5})
    loaded = load_model(path)
    assert same(model, loaded)
    assert not loaded.training
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    metadata = read_metadata(path)
    assert metadata["user"] == {"epoch": 3, "eps": 0.5}
    assert metadata["arch"] == "resnet8_cifar"
    assert tuple(metadata["mean"]) == pytest.approx(MEAN)
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


def test_statistics_survive_exactly(tmp_path: Path) -> None:
    model = create_model("resnet8_cifar", 10, mean=(1 / 3, 2 / 7, 0.1), std=STD)
    save_model(model, tmp_path / "m.safetensors")
    assert torch.equal(load_model(tmp_path / "m.safetensors").mean, model.mean)


def test_keys_are_those_of_the_bare_network(
    model: NormalizedModel, tmp_path: Path
) -> None:
    save_model(model, tmp_path / "m.safetensors")
    state = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert state.keys() == model.net.state_dict().keys()


def test_channels_last_weights_round_trip(
    model: NormalizedModel, tmp_path: Path
) -> None:
    before = state_hash(model)
    model.to(memory_format=torch.channels_last)
    assert state_hash(model) == before
    save_model(model, tmp_path / "m.safetensors")
    assert state_hash(load_model(tmp_path / "m.safetensors")) == before


def test_run_folder_prefers_best_over_last(
    model: NormalizedModel, tmp_path: Path
) -> None:
    best = tmp_path / "checkpoints" / "best" / "model.safetensors"
    last = tmp_path / "checkpoints" / "last" / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"holds no.*checkpoints/best"):
        load_model(tmp_path)
    save_model(model, last)
    assert resolve_checkpoint(tmp_path) == last
    save_model(model, best)
    assert resolve_checkpoint(tmp_path) == best
    assert same(load_model(tmp_path), model)


def test_create_model_takes_a_path_and_another_head(
    model: NormalizedModel, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    assert same(create_model("resnet8_cifar", weights=path), model)
    transferred = create_model("resnet8_cifar", 4, weights=path, seed=0)
    assert transferred.num_classes == 4
    assert torch.equal(transferred.net.conv1.weight, model.net.conv1.weight)
    assert torch.equal(transferred.mean, model.mean)
    with pytest.raises(CheckpointError, match="is a resnet8_cifar, not a resnet18"):
        create_model("resnet18", weights=path)


def test_stored_normalisation_is_never_replaced_silently(
    model: NormalizedModel, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    assert same(load_model(path, mean=MEAN, std=STD), model)
    with pytest.raises(CheckpointError, match="trained with mean"):
        load_model(path, mean=(0.0, 0.0, 0.0))


def test_num_classes_is_checked(model: NormalizedModel, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    assert load_model(path, num_classes=10).num_classes == 10
    with pytest.raises(CheckpointError, match=r"10 classes, not 5.*replace_head"):
        load_model(path, num_classes=5)


def test_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header = {
        "fastadv_format": "99",
        "arch": "resnet8_cifar",
        "num_classes": "10",
        "mean": "[0,0,0]",
        "std": "[1,1,1]",
        "user": "{}",
    }
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, header)
    with pytest.raises(CheckpointError, match=r"format 99.*upgrade"):
        load_model(path)


def test_hashes(model: NormalizedModel, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc" * 100_000)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(FileNotFoundError, match="absent"):
        file_sha256(tmp_path / "absent")
    before = state_hash(model)
    with torch.no_grad():
        weight = model.net.conv1.weight
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(1e9))
    assert state_hash(model) != before


# ---- writing when the disk does not cooperate ----


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file(
    model: NormalizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, call, _no_space)
    with pytest.raises(OutputError, match=r"m\.safetensors.*No space left"):
        save_model(create_model("resnet8_cifar", 10, seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_never_be_read_is_not_written(tmp_path: Path) -> None:
    net = create_model("resnet8_cifar", 10, seed=1).net
    own = NormalizedModel(net, (0.5,) * 3, (0.2,) * 3, "mine", 10)
    path = tmp_path / "mine.safetensors"
    with pytest.raises(ConfigError, match=r"unknown architecture 'mine'.*not written"):
        save_model(own, path)
    assert not path.exists()


def test_write_cut_short_by_the_kernel(model: NormalizedModel, tmp_path: Path) -> None:
    """A real partial write: the kernel refuses to grow the file past 64 KiB."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            save_model(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# ---- published layouts ----


def _madry(state: dict[str, Tensor], inner: str) -> dict[str, Tensor]:
    """The state dict of `robustness`' AttackerModel under DataParallel."""
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    wrapped = {
        "module.normalizer.new_mean": mean,
        "module.normalizer.new_std": std,
        "module.attacker.normalize.new_mean": mean,
        "module.attacker.normalize.new_std": std,
    }
    for key, value in state.items():
        wrapped[f"module.model.{inner}{key}"] = value
        wrapped[f"module.attacker.model.{inner}{key}"] = value
    return wrapped


Wrap = Callable[[NormalizedModel], dict[str, Any]]
LAYOUTS: dict[str, Wrap] = {
    "madry-resnet": lambda m: {
        "model": _madry(m.net.state_dict(), ""),
        "optimizer": {"state": {}},
        "schedule": None,
        "epoch": 90,
        "amp": None,
        "nat_prec1": 0.5,
    },
    "madry-other": lambda m: {"state_dict": _madry(m.net.state_dict(), "model.")},
    "robustbench": lambda m: {
        "normalize.mean": torch.tensor(MEAN),
        "normalize.std": torch.tensor(STD),
        **{f"model.{k}": v for k, v in m.net.state_dict().items()},
    },
    "ours, DDP and compiled": lambda m: {
        f"module._orig_mod.{k}": v for k, v in m.state_dict().items()
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_published_layouts(
    model: NormalizedModel, tmp_path: Path, layout: str, zipped: bool
) -> None:
    path = tmp_path / "resnet8_cifar_l2_eps0.05.ckpt"
    torch.save(LAYOUTS[layout](model), path, _use_new_zipfile_serialization=zipped)
    assert same(load_model(path), model)


@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "model.model."])
def test_bare_state_dicts(model: NormalizedModel, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "weights.pt"
    state = {prefix + k: v for k, v in model.net.state_dict().items()}
    torch.save(state, path)
    loaded = load_model(path, "resnet8_cifar", mean=MEAN, std=STD)
    assert same(loaded, model)
    imagenet = load_model(path, "resnet8_cifar")
    assert imagenet.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize("arch", ["densenet121", "mobilenet_v2", "squeezenet1_1"])
def test_salman_files_of_other_families(arch: str, tmp_path: Path) -> None:
    model = create_model(arch, 12, mean=MEAN, std=STD, seed=0)
    path = tmp_path / f"{arch}_linf_eps4.0.ckpt"
    torch.save({"model": _madry(model.net.state_dict(), "model.")}, path)
    assert same(load_model(path), model)


def test_torchvisions_old_densenet_keys(tmp_path: Path) -> None:
    model = create_model("densenet121", 3, seed=0)
    state = {}
    for key, value in model.net.state_dict().items():
        for kind in ("norm1", "conv1", "norm2", "conv2"):
            if "layer" in key:
                key = key.replace(f".{kind}.", f".{kind[:-1]}.{kind[-1]}.")
        state[key] = value
    assert state.keys() != model.net.state_dict().keys()
    path = tmp_path / "densenet121-a639ec97.pth"
    torch.save(state, path)
    assert same(load_model(path), model)


def test_files_without_batch_counters_and_in_half(
    model: NormalizedModel, tmp_path: Path
) -> None:
    state = {
        k: v.half() for k, v in model.net.state_dict().items() if "num_batches" not in k
    }
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    loaded = load_model(tmp_path / "w.safetensors", "resnet8_cifar")
    assert loaded.net.conv1.weight.dtype == torch.float32
    assert torch.equal(loaded.net.conv1.weight.half(), model.net.conv1.weight.half())


def test_leftovers_are_refused_by_name(model: NormalizedModel, tmp_path: Path) -> None:
    path = tmp_path / "resnet8_cifar_l2_eps3.ckpt"
    state = _madry(model.net.state_dict(), "")
    torch.save({"model": {**state, "module.model.adapter.w": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(adapter\.w\)"):
        load_model(path)
    torch.save({"model": {**state, "module.attacker.model.x": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match=r"attacker\.model\.x"):
        load_model(path)
    del state["module.normalizer.new_std"]
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"only one of 'normalizer\.new_mean'"):
        load_model(path)
