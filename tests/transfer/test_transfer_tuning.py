"""Fine-tuning: what trains and what is frozen, selection, robustness."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuned_runs import moved, source_file, statistics, tuning_config

from fastadv.cli import transfer as command
from fastadv.data import (
    ArraySet,
    DatasetSplits,
    make_loader,
    open_dataset,
)
from fastadv.errors import ConfigError, DataError
from fastadv.models import create_model
from fastadv.results.settings import MethodRecord, Parameter
from fastadv.results.table import ResultsTable
from fastadv.transfer import TransferConfig, target, transfer, tuned as module
from fastadv.transfer.freezing import choose_trained, prepare_model
from fastadv.transfer.protocol import TransferRun
from fastadv.transfer.protocols import Procedure, Rates
from fastadv.transfer.tuned import fine_tune, make_method

# ---- what trains ----

_LAST = {
    ("resnet50", 0): ("fc.",),
    ("resnet50", 1): ("fc.", "layer4.2."),
    ("resnet50", 3): ("fc.", "layer4."),
    ("resnet50", 9): ("fc.", "layer4.", "layer3."),
    ("mobilenet_v2", 3): ("classifier.", "features.16", "features.17", "features.18"),
    ("shufflenet_v2_x1_0", 2): ("fc.", "conv5.", "stage4.3."),
    ("mnasnet1_0", 1): ("classifier.", "layers.14.", "layers.15."),
    ("densenet121", 1): (
        "classifier.", "features.denseblock4.denselayer16", "features.norm5"
    ),
    ("squeezenet1_1", 1): ("classifier.", "features.12."),
}  # fmt: skip


@pytest.mark.parametrize(("arch", "k"), _LAST)
def test_the_last_blocks_train_and_nothing_else(arch: str, k: int) -> None:
    with torch.device("meta"):
        model = create_model(arch, 5)
    trained = choose_trained(model, "last_k_blocks", k)
    names = {n for n, p in model.net.named_parameters() if p.requires_grad}
    wanted = {
        n for n, _ in model.net.named_parameters() if n.startswith(_LAST[arch, k])
    }
    assert names == wanted
    ids = {id(p) for n, p in model.net.named_parameters() if n in wanted}
    assert {id(p) for p in trained.parameters} == ids
    # And back: nothing stays frozen from before.
    everything = choose_trained(model, "full_network")
    assert len(everything.parameters) == len(list(model.parameters()))
    assert everything.frozen == []


@pytest.mark.parametrize("arch", ["mobilenet_v2", "shufflenet_v2_x1_0", "densenet121"])
def test_an_update_moves_exactly_the_last_blocks(arch: str) -> None:
    images = open_dataset("digits").train
    procedure = Procedure(epochs=1, batch_size=4)
    model = prepare_model(create_model(arch, 3, seed=0), 10, 0, procedure)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pixels = np.stack([images.load(i) for i in range(4)])
    few = ArraySet(pixels, images.labels[:4], images.classes, name="x", split="train")
    loader = make_loader(few, batch_size=4, resolution=32, train=True)
    trained = choose_trained(model, "last_k_blocks", 2)
    inside = {id(t) for _, ms in model.blocks()[-2:] for m in ms for t in m.state_dict(
        keep_vars=True
    ).values()} | {id(p) for p in model.head.parameters()}  # fmt: skip
    method = make_method(model, None, 32)
    finished = fine_tune(model, trained, loader, Rates(0.1), procedure, method, "x")
    assert [epoch for epoch, _ in finished] == [1]
    after = model.state_dict(keep_vars=True)
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert moved == {k for k, v in after.items() if id(v) in inside}
    assert len(moved) > 4


def test_frozen_means_frozen(tmp_path: Path, tuned: list[Any]) -> None:
    [row] = transfer(tuning_config(source_file(tmp_path), mode="last_k_blocks", k=1))
    assert (row.setting.mode, row.setting.k_blocks) == ("last_k_blocks", 1)
    assert (row.defects, row.departures, row.setting.depends_on_seed) == ((), (), True)
    model = tuned[0][1]
    name, _ = model.blocks()[-1]
    in_block = {
        k for k in model.state_dict() if k.startswith((f"net.{name}.", "net.linear."))
    }
    assert moved(tuned[0]) == in_block
    assert in_block & statistics(model)


def test_frozen_batchnorm_may_follow_the_target(
    tmp_path: Path, tuned: list[Any]
) -> None:
    source = source_file(tmp_path)
    # Fixed features that move cannot be computed once: the trunk runs every epoch.
    transfer(
        tuning_config(
            source, mode="fixed_feature", protocol="fastadv", frozen_bn="train"
        )
    )
    heads = {"net.linear.weight", "net.linear.bias"}
    assert moved(tuned[0]) == heads | statistics(tuned[0][1])


def test_bf16_is_autocast_of_what_trains(tmp_path: Path, tuned: list[Any]) -> None:
    source = source_file(tmp_path)
    words: dict[str, Any] = {"num_train": 400, "epochs": 3}
    rows = [
        transfer(tuning_config(source, precision=precision, **words))[0]
        for precision in ("fp32", "bf16")
    ]
    exact, half = (model.state_dict() for _, model in tuned)
    assert not torch.equal(exact["net.conv1.weight"], half["net.conv1.weight"])
    assert {tensor.dtype for tensor in half.values()} == {torch.float32, torch.int64}
    assert rows[1].value == pytest.approx(rows[0].value, abs=6)
    assert rows[1].value > 60
    assert rows[0].identity != rows[1].identity
    used = [row.setting.precision for row in rows]
    assert used == [None, "bf16"]
    # The attack of adversarial fine-tuning, too.
    made = make_method(
        tuned[1][1], tuning_config(source, method="pgd_at").method_config, 32, "bf16"
    )
    assert made.view is not None
    assert {p.dtype for p in made.view.net.parameters()} == {torch.bfloat16}


def test_scratch_owes_nothing_to_the_source(tmp_path: Path) -> None:
    rows = [
        transfer(tuning_config(source_file(tmp_path, seed=seed), mode=mode))[0]
        for mode in ("scratch", "full_network")
        for seed in (0, 1)
    ]
    counts = [row.per_class_correct for row in rows]
    assert counts[0] == counts[1] != counts[2]
    assert counts[2] != counts[3]
    assert rows[0].setting.mode == "scratch"


# ---- selection ----


def test_selection_never_touches_the_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    load = ArraySet.load

    def loading(images: ArraySet, index: int) -> Any:
        log.append(images.split)
        return load(images, index)

    def tuning(*arguments: Any) -> Any:
        yield from fine_tune(*arguments)
        log.append("tuned")

    monkeypatch.setattr(ArraySet, "load", loading)
    monkeypatch.setattr(module, "fine_tune", tuning)
    config = tuning_config(source_file(tmp_path), lrs=(0.05, 0.01))
    transfer(config)
    last = len(log) - log[::-1].index("tuned")
    assert log.count("tuned") == 2
    assert "test" not in log[:last]
    assert log[last:] == ["test"] * 500  # once each, at the end
    del log[:]
    transfer(dataclasses.replace(config, select_on="test"))
    assert "test" in log[: log.index("tuned")]  # the counting can see it


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_heads_are_chosen_without_the_test_images(
    solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"mode": "fixed_feature", "solver": solver}
    if solver == "sgd":
        words |= {"lrs": (1.0, 0.01, 1e-5), "epochs": 5}
    config = tuning_config(source_file(tmp_path), num_train=200, seeds=(0, 1), **words)
    honest = transfer(config)
    real = open_dataset("digits")
    noise = np.random.default_rng(0).integers(0, 255, (50, 8, 8, 3)).astype(np.uint8)
    other = ArraySet(
        noise, np.arange(50) % 10, real.test.classes, name="digits", split="test"
    )
    splits = DatasetSplits("digits", real.train, other)
    monkeypatch.setattr(target, "open_dataset", lambda *_, **__: splits)
    poisoned = transfer(config)
    for row, same in zip(honest, poisoned, strict=True):
        assert row.setting == same.setting
        assert row.val_value == same.val_value
        assert (row.target.num_test, same.target.num_test) == (500, 50)


def test_a_grid_of_heads_gives_every_seed_its_own_row(tmp_path: Path) -> None:
    words: dict[str, Any] = {"mode": "fixed_feature", "solver": "sgd", "epochs": 40}
    words |= {"batch_size": 16, "num_train": 200}
    config = tuning_config(source_file(tmp_path), lrs=(1.0, 1e-3), **words)
    grid = transfer(dataclasses.replace(config, seeds=(5, 2)))
    for row, seed in zip(grid, (5, 2), strict=True):
        [alone] = transfer(dataclasses.replace(config, seeds=(seed,)))
        assert row.seed == seed
        for name in ("per_class_correct", "setting", "val_value", "identity"):
            assert getattr(row, name) == getattr(alone, name)
    assert grid[0].per_class_correct != grid[1].per_class_correct
    chosen = grid[0].setting
    assert (chosen.solver, chosen.chosen_lr, chosen.epochs) == ("sgd", 1.0, 40)
    assert grid[0].value > 40  # chance is 10, the features those of random weights


# ---- robustness ----


@pytest.mark.parametrize("mode", ["fixed_feature", "full_network"])
def test_robust_accuracy_goes_with_the_row(mode: str, tmp_path: Path) -> None:
    source = source_file(tmp_path)
    words: dict[str, Any] = {"mode": mode, "norm": "linf", "robust_steps": 3}
    pairs = [
        transfer(tuning_config(source, robust_eps=eps, num_train=200, **words))
        for eps in (0.0, 0.02, 0.2)
    ]
    clean, robust = zip(*pairs, strict=True)
    # A head put on the network says what it said on its features, to rounding.
    assert robust[0].value == pytest.approx(clean[0].value, abs=0.4 + 1e-9)
    assert robust[0].value > robust[1].value > robust[2].value
    assert clean[0].value == clean[1].value == clean[2].value
    for first, second in pairs:
        assert first.attack is None
        assert first.identity == first.experiment == second.experiment
        assert first.identity != second.identity
        assert first.setting == second.setting
    attack = robust[1].attack
    assert (attack.norm, attack.eps, attack.num_steps) == ("linf", 0.02, 3)
    assert (attack.name, attack.random_start, attack.keep) == ("pgd", True, "best")
    assert robust[1].low < robust[1].value < robust[1].high
    # What happened to each image lies beside the table.
    found = ResultsTable(source.parent / "results").arrays(robust[1])
    assert clean[1].arrays == robust[1].arrays
    right = found["fell_to"] >= 0
    assert 100 * right.mean() == pytest.approx(clean[1].value, abs=0.4 + 1e-9)
    assert 100 * (found["fell_to"] == 1).mean() == pytest.approx(robust[1].value)
    labels = found["labels"][found["fell_to"] == 1]
    assert np.bincount(labels, minlength=10).tolist() == list(
        robust[1].per_class_correct
    )


def test_adversarial_fine_tuning_is_more_robust(tmp_path: Path) -> None:
    words: dict[str, Any] = {"norm": "linf", "robust_eps": 0.1, "robust_steps": 3}
    words |= {"epochs": 5, "num_train": 400}
    source = source_file(tmp_path)
    _, plain = transfer(tuning_config(source, **words))
    _, robust = transfer(
        tuning_config(source, method="pgd_at", eps=0.1, num_steps=3, **words)
    )
    assert robust.value > plain.value + 5
    method = MethodRecord(name="pgd_at", norm="linf", eps=0.1, num_steps=3)
    assert robust.setting.method == method
    partly: dict[str, Any] = {"mode": "last_k_blocks", "k": 1, "num_train": 60}
    config = tuning_config(source, method="trades", eps=0.05, norm="linf", **partly)
    [row] = transfer(dataclasses.replace(config, num_steps=2))
    assert row.setting.method.parameters == (Parameter(name="beta", value=6.0),)


def test_the_command_shows_protocol_and_robustness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--source", str(source_file(tmp_path)), "--dataset", "digits"]
    words += ["--num-train", "60", "--results", str(tmp_path / "r"), "--device", "cpu"]
    assert command.main(words) == 0
    assert "robust" not in capsys.readouterr().out
    words += ["--mode", "last_k_blocks", "--k", "1", "--protocol", "utrera2021"]
    words += ["--resolution", "16", "--epochs", "1", "--seeds", "0", "--norm", "linf"]
    words += ["--robust-eps", "4/255", "--robust-steps", "2"]
    assert command.main(words) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("robust accuracy")
    assert sum("fixed_feature" in line and line.endswith("-") for line in out) == 1
    assert sum("last_k_blocks 1 (utrera2021)" in line for line in out) == 1
    assert out[-1].startswith("note: BatchNorm of frozen layers in train mode; ")
    assert command.main([*words, "--k", "77"]) == 2
    assert "--k 77: resnet8_cifar has" in capsys.readouterr().err


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mode": "last_k_blocks"}, "needs `k`, the number of blocks that train"),
        ({"k": 3}, "`k=3` belongs to `mode=last_k_blocks`, not to fixed_feature"),
        (
            {"mode": "last_k_blocks", "k": -1},
            "`k=-1` cannot work; it must be at least 0",
        ),
        (
            {"solver": "lbfgs", "lrs": (0.1,)},
            "`lrs` belongs to `solver=sgd`; lbfgs is exact",
        ),
        ({"mode": "scratch", "frozen_bn": "train"}, "`mode=scratch` freezes nothing"),
        ({"mode": "scratch", "solver": "sgd"}, "`solver=sgd` belongs to features"),
        (
            {"protocol": "salman2020", "solver": "sgd"},
            "`solver=sgd` belongs to features",
        ),
        ({"precision": "bf16"}, "`precision=bf16` belongs to networks that train"),
        ({"method": "pgd_at"}, "use `mode=last_k_blocks` `k=0`"),
        (
            {"mode": "scratch", "eps": 1.0},
            "`eps` belongs to adversarial fine-tuning; add",
        ),
        ({"mode": "scratch", "method": "mart", "eps": 0.0}, "needs an `eps` above 0"),
        ({"robust_eps": 4.0, "norm": "linf"}, r"4 of 255 is 4/255"),
        ({"downscale": 0}, "`downscale=0` cannot work; it must be at least 1"),
        ({"lrs": ()}, "`lrs` needs at least one value"),
        (
            {"seeds": (0, -1)},
            r"`seeds=-1` cannot work; it must be in \[0, 4294967296\)",
        ),
        (
            {"source_accuracy": 250.0},
            r"`source_accuracy=250.0` cannot .* in \[0, 100\]",
        ),
        (
            {"source_accuracy": math.nan},
            "`source_accuracy=nan` cannot work; it must be in",
        ),
        ({"robust_steps": 7}, "`robust_steps=7` belongs to `robust_eps`; add that"),
        (
            {"norm": "linf"},
            "`norm=linf` belongs to `eps` and `robust_eps`; add `method",
        ),
    ],
)
def test_choices_that_do_not_go_together(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        TransferConfig(source="s", dataset="d", **changes)


def test_heads_and_blocks_that_do_not_fit(tmp_path: Path) -> None:
    source = source_file(tmp_path)
    with pytest.raises(ConfigError, match=r"`k=99`: resnet8_cifar has 4 blocks"):
        TransferRun(tuning_config(source, mode="last_k_blocks", k=99))
    squeeze = source_file(tmp_path, "squeezenet1_1")
    words: dict[str, Any] = {"mode": "fixed_feature", "resolution": 32}
    with pytest.raises(
        ConfigError, match="head of squeezenet1_1 is no linear function"
    ):
        TransferRun(tuning_config(squeeze, robust_eps=0.1, **words))
    TransferRun(tuning_config(squeeze, **words))


def test_splits_that_do_not_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(labels: list[int], classes: str, split: str) -> ArraySet:
        pixels = np.zeros((len(labels), 8, 8, 3), np.uint8)
        return ArraySet(pixels, labels, list(classes), name="x", split=split)

    def opening(train: ArraySet, test: ArraySet) -> None:
        splits = DatasetSplits("x", train, test)
        monkeypatch.setattr(target, "open_dataset", lambda *_, **__: splits)

    config = tuning_config(source_file(tmp_path), num_train=None)
    opening(part([0, 1, 2], "abc", "train"), part([0, 1], "ab", "test"))
    with pytest.raises(
        DataError, match=r"3 classes in train, 2 in test.*one of them: c"
    ):
        TransferRun(config)
    opening(part([0, 2], "abc", "train"), part([0, 1, 2], "abc", "test"))
    with pytest.raises(DataError, match=r"no training images of 1 class\(es\): b"):
        TransferRun(config)
