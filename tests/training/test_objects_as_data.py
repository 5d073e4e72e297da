"""Data sets that are objects, wherever Python takes the name of one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import TINY
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from fastadv.analysis.config import ManipulationConfig
from fastadv.data import open_dataset
from fastadv.data.handed_in import named_data
from fastadv.errors import ConfigError, DataError
from fastadv.evaluation.config import EvaluationConfig
from fastadv.evaluation.source import evaluate_checkpoint
from fastadv.models import create_model, save_model
from fastadv.training import TrainConfig, Trainer
from fastadv.transfer import TransferConfig, transfer


class Halves:
    """Images that are bright in the half that is their class; no torch class at all."""

    def __init__(self, n: int, first: int = 0) -> None:
        self.n, self.first = n, first

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index >= self.n:
            raise IndexError(index)
        label = int(index >= self.n // 2)
        noise = np.random.default_rng(index + self.first)
        pixels = noise.integers(0, 90, (16, 16, 3))
        pixels[8 * label : 8 * label + 8] += 150
        return Image.fromarray(pixels.astype(np.uint8)), label


SPLITS = {"train": Halves(60), "test": Halves(20, 1000)}


def test_a_run_is_trained_judged_and_transferred_on_objects(tmp_path: Path) -> None:
    """The same numbers as on the same images in a folder."""
    for split, images in SPLITS.items():
        for number in range(len(images)):
            image, label = images[number]
            folder = tmp_path / "data" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number:03}.png")
    results = str(tmp_path / "results")
    values = []
    for data in (SPLITS, str(tmp_path / "data")):
        out = tmp_path / f"run{len(values)}"
        changes: dict[str, Any] = {"data": data, "out": str(out), "num_train": None}
        changes["augment"] = "none"  # folders and objects have other usual ones
        config = TrainConfig(
            **TINY | changes | {"epochs": 1, "val_size": 10, "eps": 0.1}
        )
        summary = Trainer(config).fit()
        common: dict[str, Any] = {"device": "cpu", "results": results, "resolution": 16}
        judged = evaluate_checkpoint(
            EvaluationConfig(checkpoint=str(out), data=data, eps=0.1, **common)
        )
        rows = transfer(
            TransferConfig(
                source=str(out),
                dataset=data,
                feature_cache="off",
                **common,  # type: ignore[arg-type]
            )
        )
        values.append([judged.result["clean_acc"], judged.result["robust_acc"]])
        values[-1].append(rows[0].value)
        assert summary.run == out
        assert rows[0].target.num_test == judged.result["n"] == 20
    assert values[0] == values[1]
    saved = (tmp_path / "run0/config.yaml").read_text()
    assert "data: object:Halves" in saved


def test_a_run_on_an_object_resumes_with_it(tmp_path: Path) -> None:
    config = TrainConfig(
        **TINY | {"data": SPLITS, "out": str(tmp_path / "run"), "num_train": None}
    )
    Trainer(config).fit()
    again = Trainer(dataclasses.replace(config, resume=True, data=dict(SPLITS)))
    assert again.fit().run == tmp_path / "run"
    other = {"train": TensorDataset(torch.rand(30, 3, 8, 8), torch.arange(30) % 3)}
    with pytest.raises(ConfigError, match="the run was begun on 2 classes"):
        Trainer(dataclasses.replace(config, resume=True, data=other)).fit()


def test_any_map_style_data_set(tmp_path: Path) -> None:
    """Parts, concatenations, torchvision's folders, lists and arrays."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(
                tmp_path / name / f"{number}.png"
            )
    tensors = TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 2)
    folder = ImageFolder(str(tmp_path))
    arrays = [(np.zeros((8, 8), np.uint8), np.int64(i % 2)) for i in range(6)]
    for data, n in (
        (Subset(tensors, [0, 1, 2, 3, 4]), 5),
        (ConcatDataset([tensors, tensors]), 16),
        (folder, 8),
        (arrays, 6),
        ({"train": Subset(folder, [0, 1, 4, 5]), "val": Subset(folder, [2, 6])}, 6),
    ):
        name = named_data(data)
        assert named_data(data) == name == TrainConfig(data=data).data  # type: ignore[arg-type]
        splits = open_dataset(name)
        assert len(splits.train) + len(splits.test) == n
    assert open_dataset(folder).test.classes == ("cat", "dog")


def test_what_is_no_data_set() -> None:
    for data in (3, b"x", [], {}, torch.nn.Identity(), (n for n in range(3))):
        with pytest.raises(TypeError, match="data is the name of a data set, a path"):
            TrainConfig(data=data)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="object:Gone is a data set that was handed in"):
        open_dataset("object:Gone")


def test_names_differ_by_object(tmp_path: Path) -> None:
    first, second = Halves(4), Halves(4)
    assert named_data(first) != named_data(second)
    save_model(create_model("resnet8_cifar", 2), tmp_path / "m.safetensors")
    config = ManipulationConfig(
        source=(str(tmp_path / "m.safetensors"),), data=SPLITS, how="patch_shuffle",  # type: ignore[arg-type]
    )  # fmt: skip
    assert config.data.startswith("object:Halves")
    assert dataclasses.replace(config) == config
