"""The published protocols, to the letter: settings, defects, and that these are said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.lr_scheduler import StepLR
from tuned_runs import moved, source_file, statistics, tuning_config

from fastadv.data import ArraySet, make_loader
from fastadv.data.loading.torchvision_loader import utrera_transform
from fastadv.errors import ConfigError
from fastadv.evaluation.judging import evaluate
from fastadv.models import create_model
from fastadv.results.row import Defect, Row
from fastadv.results.settings import Statistics, TransferSetting
from fastadv.transfer import TransferConfig, protocol, transfer
from fastadv.transfer.experiment import Experiment
from fastadv.transfer.freezing import (
    choose_trained,
    misfreezing,
    published_names,
)
from fastadv.transfer.procedure import make_procedure
from fastadv.transfer.protocol import TransferRun
from fastadv.transfer.protocols import Procedure


def test_salman2020_keeps_its_defects_and_says_so(
    tmp_path: Path, tuned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    real = evaluate

    def counting(model: Any, loader: Any, *rest: Any, **more: Any) -> Any:
        judged.append(len(loader.imageset))
        return real(model, loader, *rest, **more)

    monkeypatch.setattr(protocol, "evaluate", counting)
    monkeypatch.setattr("fastadv.transfer.tuned.evaluate", counting)
    config = tuning_config(
        source_file(tmp_path),
        mode="fixed_feature",
        protocol="salman2020",
        resolution=16,
        epochs=7,
        lrs=None,
        batch_size=None,
    )
    run = TransferRun(config)
    assert run.experiment.procedure.lrs == (0.01, 0.001)
    assert run.experiment.procedure.batch_size == 64
    [row] = run.rows()
    # On the test set after epochs 1, 6 and 7 with each learning rate, and at the end.
    assert judged == [500] * 7
    assert (row.setting.protocol, row.setting.select_on, row.setting.num_val) == (
        "salman2020",
        "test",
        0,
    )
    assert row.val_value == row.value
    assert [defect.text for defect in row.defects] == [
        "BatchNorm of frozen layers in train mode",
        "inputs normalised by mean 0, std 1",
        "the published code stops with an error here, this trains the head alone",
        "epoch and learning rate chosen on the test set",
    ]
    assert _changed(row) == [("epochs", "7", "150"), ("resolution", "16", "224")]
    assert isinstance(row.setting, TransferSetting)
    assert row.setting.augment == "rrc"
    assert row.setting.chosen_epoch in (1, 6, 7)
    assert row.setting.published_epochs is None  # it is 150 for any number of images
    for before, model in tuned:
        assert moved((before, model)) == {
            "net.linear.weight",
            "net.linear.bias",
            *statistics(model),
        }
        assert (model.mean.tolist(), model.std.tolist()) == ([0.0] * 3, [1.0] * 3)


def _changed(found: Procedure | Row) -> list[tuple[str, str, str]]:
    """Name, our choice and the published one of every departure."""
    return [(d.name, d.ours, d.published) for d in found.departures]


def _codes(found: Procedure) -> list[str]:
    return [defect.code for defect in found.defects]


def _settings(
    dataset: str, n: int = 5000, misfreezing: Defect | None = None, **changes: Any
) -> Procedure:
    config = TransferConfig(source="s", dataset=dataset, **changes)
    return make_procedure(config, dataset, n, config.side(32), misfreezing=misfreezing)


def test_salman2020_settings() -> None:
    flowers = _settings("flowers102", mode="full_network", protocol="salman2020")
    assert (flowers.epochs, flowers.batch_size, flowers.lrs) == (150, 64, (0.01, 0.001))
    assert (flowers.momentum, flowers.weight_decay) == (0.9, 5e-4)
    assert flowers.statistics == Statistics(mean=(0, 0, 0), std=(1, 1, 1))
    assert flowers.departures == ()
    # Nothing is frozen, so no BatchNorm is wrong.
    assert _codes(flowers) == ["inputs_not_normalised", "selected_on_test"]
    for name in ("cifar10", "cifar100"):
        found = _settings(name, protocol="salman2020", mode="full_network")
        assert found.statistics is not None
        assert found.statistics.mean[0] == pytest.approx(0.5, abs=0.01)
        assert "target_statistics" in _codes(found)
    repaired = _settings(
        "dtd", protocol="salman2020", select_on="val", frozen_bn="eval"
    )
    assert _codes(repaired) == ["inputs_not_normalised"]
    assert _changed(repaired) == [
        ("select_on", "val", "test"),
        ("frozen_bn", "eval", "train"),
    ]


def test_utrera2021_settings() -> None:
    options: dict[str, Any] = {
        "mode": "last_k_blocks",
        "k": 3,
        "protocol": "utrera2021",
    }
    for n, epochs in ((100, 100), (1600, 100), (1601, 150), (25600, 150)):
        found = _settings("svhn", n, **options)
        assert (found.epochs, found.batch_size, found.lrs) == (epochs, 128, (0.1,))
        assert (found.augment, found.select_on) == ("utrera", "none")
        assert found.statistics is None
        assert _codes(found) == ["frozen_bn_in_train_mode"]
        assert (found.departures, found.published_epochs) == ((), epochs)
    seeds = [
        len(TransferConfig(source="s", dataset="d", num_train=n, **options).seeds)
        for n in (100, 6400, 6401, 25600, 25601, 50000, None)
    ]
    assert seeds == [10, 10, 5, 5, 1, 1, 1]
    with pytest.raises(ConfigError, match="one learning rate and chooses nothing"):
        _settings("svhn", lrs=(0.1, 0.2), **options)


@pytest.mark.parametrize("epochs", [2, 11, 41, 100, 150])
def test_utrera2021_learning_rates_are_those_of_their_scheduler(epochs: int) -> None:
    """`StepLR(epochs // 3)`: of 100 epochs the last has a thousandth of the first."""
    settings = _settings(
        "svhn", mode="full_network", protocol="utrera2021", epochs=epochs
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = StepLR(optimizer, epochs // 3) if epochs >= 3 else None
    for epoch in range(epochs):
        assert settings.rate(0.1, epoch) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        optimizer.step()
        if schedule is not None:
            schedule.step()
    assert settings.for_setting()["schedule"] == "floored_thirds"
    ours = _settings("svhn", mode="full_network", epochs=100)
    assert [ours.rate(1.0, epoch) for epoch in (33, 34, 99)] == [1.0, 0.1, 0.1**2]


@pytest.mark.parametrize(
    ("dataset", "augment"),
    # Their code: `transform_type` of each target in tools/custom_datasets.py.
    [
        ("cifar10", "utrera"),
        ("svhn", "utrera"),
        ("mnist", "none"),
        ("kmnist", "none"),
        ("fashion_mnist", "none"),
    ],
)
def test_utrera2021_augments_all_but_what_is_grey(
    dataset: str, augment: str, tmp_path: Path
) -> None:
    for number in range(12):
        split = "train" if number < 8 else "test"
        path = tmp_path / dataset / split / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (28, 28), (20 * number,) * 3).save(path)
    config = tuning_config(
        source_file(tmp_path),
        dataset=dataset,
        dataset_option=(f"root={tmp_path}",),
        num_train=None,
        mode="last_k_blocks",
        k=0,
        protocol="utrera2021",
        resolution=32,
    )
    for downscale in (None, 16):
        found = Experiment(dataclasses.replace(config, downscale=downscale))
        assert found.procedure.augment == augment
        loader = found.loader(found.splits.train, train=True)
        assert loader.augment == augment
        assert (loader.backend == "torchvision") == (augment == "utrera")


def test_utrera2021_runs(tmp_path: Path, tuned: list[Any]) -> None:
    words: dict[str, Any] = {"mode": "last_k_blocks", "k": 1, "protocol": "utrera2021"}
    config = tuning_config(
        source_file(tmp_path), resolution=16, seeds=(0,), lrs=None, **words
    )
    [row] = transfer(config)
    assert (row.setting.select_on, row.val_value) == ("none", None)
    assert (row.setting.num_train, row.setting.num_val) == (60, 0)
    before, model = tuned[0]
    assert before["net.linear.weight"].std().item() == pytest.approx(1, abs=0.1)
    assert before["net.linear.bias"].abs().max() == 0
    assert statistics(model) < moved(tuned[0])
    assert "net.conv1.weight" not in moved(tuned[0])


def test_the_augmentation_of_utrera2021() -> None:
    white = np.full((64, 32, 32, 3), 255, np.uint8)
    images = ArraySet(white, [0] * 64, ["a"], name="x", split="train")
    options: dict[str, Any] = {"batch_size": 64, "resolution": 32, "train": True}
    options |= {"augment": "utrera", "workers": 0}
    state = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match="memory loader cannot augment as utrera"):
        make_loader(images, backend="memory", **options)
    loader = make_loader(images, **options)
    first, second = next(iter(loader)), next(iter(loader))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.images, second.images)  # the same epoch, begun again
    loader.set_epoch(1)
    again = next(iter(loader)).images
    assert again.shape == (64, 3, 32, 32)
    assert sorted(again.flatten(1).sum(1).tolist()) != sorted(
        first.images.flatten(1).sum(1).tolist()
    )
    pixels = first.images.float()
    # Brightness 0.75 to 1.25; contrast blends with the mean, which the border darkens.
    middle = pixels[:, :, 8:24, 8:24]
    assert middle.min() >= 255 * 0.75 * 0.75 - 2
    assert middle.amax((1, 2, 3)).min() < 220
    # Shifts by up to four pixels uncover a dark border of that width, and no more.
    dark = (pixels < 100).all(1).float().mean(2)  # share of each row of each image
    assert (dark[:, 0] > 0.9).sum() > 10
    assert (dark[:, 3] > 0.8).any()
    assert (dark[:, 6:26] < 0.5).all()
    transform = utrera_transform(32)
    assert "degrees=[-2.0, 2.0]" in repr(transform)
    assert "padding=4" in repr(transform)
    assert repr(transform).count("(0.75, 1.25)") == 3


def test_what_freezing_by_name_froze() -> None:
    def names(arch: str) -> list[str]:
        with torch.device("meta"):
            return [n for n, _ in create_model(arch, 5).net.named_parameters()]

    assert published_names(names("resnet50")) == ["fc.weight", "fc.bias"]
    assert published_names(names("vgg16_bn")) is None
    assert published_names(names("mobilenet_v2")) is None
    dense = published_names(names("densenet161"))
    assert dense is not None
    assert 0.3 < len(dense) / len(names("densenet161")) < 1  # half frozen
    assert "features.denseblock1.denselayer3.conv1.weight" not in dense
    assert "features.denseblock1.denselayer5.conv1.weight" in dense
    assert "features.denseblock2.denselayer4.conv1.weight" not in dense
    with torch.device("meta"):
        model = create_model("densenet161", 5)
    trained = choose_trained(model, "fixed_feature", by_name=True)
    assert len(trained.parameters) == len(dense)
    head = sum(p.numel() for p in model.head.parameters())
    left = sum(p.numel() for p in trained.parameters) - head
    assert misfreezing(model) == Defect(
        code="freezing_by_name_left_some",
        text=f"freezing by layer name left {left:,} parameters of the trunk training",
    )
    assert left == 25_343_616
    with torch.device("meta"):
        assert misfreezing(create_model("wide_resnet50_2", 5)) is None
        assert "stops with an error" in str(misfreezing(create_model("vgg16_bn", 5)))
    wrong = Defect(code="all_wrong", text="all wrong")
    words: dict[str, Any] = {"protocol": "salman2020", "misfreezing": wrong}
    assert wrong in _settings("dtd", **words).defects
    assert wrong not in _settings("dtd", mode="full_network", **words).defects
    assert wrong not in _settings("dtd", misfreezing=wrong).defects


def test_what_the_papers_never_ran_is_said() -> None:
    def changed(protocol: str, mode: str, k: int | None = None) -> Any:
        return _changed(_settings("svhn", protocol=protocol, mode=mode, k=k))

    modes = "fixed_feature or full_network"
    for mode in ("fixed_feature", "full_network"):
        assert changed("salman2020", mode) == []
    for mode, k in (("last_k_blocks", 3), ("scratch", None)):
        assert changed("salman2020", mode, k) == [("mode", mode, modes)]
    blocks = "the last 0, 1, 3, 9 blocks"
    for k in (0, 1, 3, 9):
        assert changed("utrera2021", "last_k_blocks", k) == []
    assert changed("utrera2021", "fixed_feature") == []  # the last 0 blocks
    assert changed("utrera2021", "last_k_blocks", 2) == [("k", "2", blocks)]
    assert changed("utrera2021", "scratch") == [("mode", "scratch", blocks)]
    assert changed("fastadv", "scratch") == []
    half = _settings("svhn", protocol="utrera2021", precision="bf16")
    assert _changed(half) == [("precision", "bf16", "fp32")]
