"""Fine-tuning: what trains and what is frozen, the published protocols, robustness."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastadv.cli import transfer as command
from fastadv.data import (
    ArraySet,
    DatasetSplits,
    LoaderOptions,
    make_loader,
    open_dataset,
)
from fastadv.errors import ConfigError, DataError
from fastadv.models import NormalizedModel, create_model, save_model
from fastadv.transfer import TransferConfig, protocol, target, transfer
from fastadv.transfer.protocol import TransferRun
from fastadv.transfer.settings import Settings, make_settings, published_names
from fastadv.transfer.tuning import (
    UtreraLoader,
    choose_trained,
    fine_tune,
    make_method,
    misfrozen,
    prepare_model,
    utrera_transform,
)


def _source(folder: Path, arch: str = "resnet8_cifar", seed: int = 0) -> Path:
    file = folder / f"{arch}-{seed}.safetensors"
    save_model(create_model(arch, 3, seed=seed), file, {"resolution": 16})
    return file


def _config(source: Path, **changes: Any) -> TransferConfig:
    values: dict[str, Any] = {
        "source": str(source),
        "dataset": "digits",
        "mode": "full_network",
        "num_train": 60,
        "results": str(source.parent / "results"),
        "device": "cpu",
        "workers": 0,
    }
    if changes.get("mode") != "fixed_feature" or "protocol" in changes:
        values |= {"epochs": 1, "lrs": (0.05,), "batch_size": 16}
    return TransferConfig(**(values | changes))


@pytest.fixture
def tuned(
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[dict[str, Tensor], NormalizedModel]]:
    """Every network that was fine-tuned, with its state before."""
    seen: list[tuple[dict[str, Tensor], NormalizedModel]] = []

    def keeping(model: NormalizedModel, *rest: Any) -> Any:
        seen.append(({k: v.clone() for k, v in model.state_dict().items()}, model))
        return fine_tune(model, *rest)

    monkeypatch.setattr(protocol, "fine_tune", keeping)
    return seen


def _moved(seen: tuple[dict[str, Tensor], NormalizedModel]) -> set[str]:
    before, model = seen
    after = model.state_dict()
    return {k for k, v in after.items() if not torch.equal(v, before[k])}


def _statistics(model: NormalizedModel) -> set[str]:
    ends = ("running_mean", "running_var", "num_batches_tracked")
    return {k for k in model.state_dict() if k.endswith(ends)}


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
    settings = Settings(epochs=1, batch_size=4)
    model = prepare_model(create_model(arch, 3, seed=0), 10, 0, settings)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pixels = np.stack([images.load(i) for i in range(4)])
    few = ArraySet(pixels, images.labels[:4], images.classes, name="x", split="train")
    loader = make_loader(few, batch_size=4, resolution=32, train=True)
    trained = choose_trained(model, "last_k_blocks", 2)
    inside = {id(t) for _, ms in model.blocks()[-2:] for m in ms for t in m.state_dict(
        keep_vars=True
    ).values()} | {id(p) for p in model.head.parameters()}  # fmt: skip
    method = make_method(model, None, 32)
    assert list(fine_tune(model, trained, loader, 0.1, settings, method, "x")) == [1]
    after = model.state_dict(keep_vars=True)
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert moved == {k for k, v in after.items() if id(v) in inside}
    assert len(moved) > 4


def test_frozen_means_frozen(tmp_path: Path, tuned: list[Any]) -> None:
    [row] = transfer(_config(_source(tmp_path), mode="last_k_blocks", k=1))
    assert (row["mode"], row["k_blocks"], row["notes"]) == ("last_k_blocks", 1, None)
    model = tuned[0][1]
    name, _ = model.blocks()[-1]
    in_block = {
        k for k in model.state_dict() if k.startswith((f"net.{name}.", "net.linear."))
    }
    assert _moved(tuned[0]) == in_block
    assert in_block & _statistics(model)


def test_frozen_batchnorm_may_follow_the_target(
    tmp_path: Path, tuned: list[Any]
) -> None:
    source = _source(tmp_path)
    # Fixed features that move cannot be computed once: the trunk runs every epoch.
    transfer(
        _config(source, mode="fixed_feature", protocol="fastadv", frozen_bn="train")
    )
    heads = {"net.linear.weight", "net.linear.bias"}
    assert _moved(tuned[0]) == heads | _statistics(tuned[0][1])


def test_scratch_owes_nothing_to_the_source(tmp_path: Path) -> None:
    rows = [
        transfer(_config(_source(tmp_path, seed=seed), mode=mode))[0]
        for mode in ("scratch", "full_network")
        for seed in (0, 1)
    ]
    counts = [row["per_class_correct"] for row in rows]
    assert counts[0] == counts[1] != counts[2]
    assert counts[2] != counts[3]
    assert rows[0]["mode"] == "scratch"


# ---- published protocols ----


def test_salman2020_keeps_its_defects_and_says_so(
    tmp_path: Path, tuned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    real = protocol.evaluate

    def counting(model: Any, loader: Any, *rest: Any) -> Any:
        judged.append(len(loader.imageset))
        return real(model, loader, *rest)

    monkeypatch.setattr(protocol, "evaluate", counting)
    config = _config(
        _source(tmp_path),
        mode="fixed_feature",
        protocol="salman2020",
        resolution=16,
        epochs=7,
        lrs=None,
        batch_size=None,
    )
    run = TransferRun(config)
    assert run.settings.lrs == (0.01, 0.001)
    assert run.settings.batch_size == 64
    [row] = run.rows()
    # On the test set after epochs 1, 6 and 7 with each learning rate, and at the end.
    assert judged == [500] * 7
    assert (row["protocol"], row["select_on"], row["num_val"]) == (
        "salman2020",
        "test",
        0,
    )
    assert row["val_value"] == row["value"]
    assert row["notes"] == (
        "BatchNorm of frozen layers in train mode; inputs normalised by mean 0, std 1; "
        "the published code stops with an error here, this trains the head alone; "
        "epoch and learning rate chosen on the test set; epochs 7 instead of 150; "
        "resolution 16 instead of 224"
    )
    chosen = json.loads(row["hyperparameters"])
    assert (chosen["augment"], chosen["epoch"] in (1, 6, 7)) == ("rrc", True)
    for before, model in tuned:
        assert _moved((before, model)) == {
            "net.linear.weight",
            "net.linear.bias",
            *_statistics(model),
        }
        assert (model.mean.tolist(), model.std.tolist()) == ([0.0] * 3, [1.0] * 3)


def _settings(
    dataset: str, n: int = 5000, misfrozen: str | None = None, **changes: Any
) -> Settings:
    config = TransferConfig(source="s", dataset=dataset, **changes)
    digits = dataset in ("digits", "mnist")
    return make_settings(
        config, dataset, n, config.side(32), digits=digits, misfrozen=misfrozen
    )


def test_salman2020_settings() -> None:
    flowers = _settings("flowers102", mode="full_network", protocol="salman2020")
    assert (flowers.epochs, flowers.batch_size, flowers.lrs) == (150, 64, (0.01, 0.001))
    assert (flowers.momentum, flowers.weight_decay) == (0.9, 5e-4)
    assert flowers.statistics == ((0, 0, 0), (1, 1, 1))
    assert flowers.changed == ()
    assert "BatchNorm" not in str(flowers.notes)  # nothing is frozen
    for name in ("cifar10", "cifar100"):
        found = _settings(name, protocol="salman2020", mode="full_network")
        assert found.statistics is not None
        assert found.statistics[0][0] == pytest.approx(0.5, abs=0.01)
        assert "the target's statistics" in str(found.notes)
    repaired = _settings(
        "dtd", protocol="salman2020", select_on="val", frozen_bn="eval"
    )
    assert repaired.notes == (
        "inputs normalised by mean 0, std 1; select_on val instead of test; frozen_bn "
        "eval instead of train"
    )


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
        assert found.notes == "BatchNorm of frozen layers in train mode"
    assert _settings("mnist", **options).augment == "none"
    seeds = [
        len(TransferConfig(source="s", dataset="d", num_train=n, **options).seeds)
        for n in (100, 6400, 6401, 25600, 25601, 50000, None)
    ]
    assert seeds == [10, 10, 5, 5, 1, 1, 1]
    with pytest.raises(ConfigError, match="one learning rate and chooses nothing"):
        _settings("svhn", lrs=(0.1, 0.2), **options)


def test_utrera2021_runs(tmp_path: Path, tuned: list[Any]) -> None:
    words: dict[str, Any] = {"mode": "last_k_blocks", "k": 1, "protocol": "utrera2021"}
    config = _config(_source(tmp_path), resolution=16, seeds=(0,), lrs=None, **words)
    [row] = transfer(config)
    assert (row["select_on"], row["val_value"]) == ("none", None)
    assert (row["num_train"], row["num_val"]) == (60, 0)
    before, model = tuned[0]
    assert before["net.linear.weight"].std().item() == pytest.approx(1, abs=0.1)
    assert before["net.linear.bias"].abs().max() == 0
    assert _statistics(model) < _moved(tuned[0])
    assert "net.conv1.weight" not in _moved(tuned[0])


def test_the_augmentation_of_utrera2021() -> None:
    white = np.full((64, 32, 32, 3), 255, np.uint8)
    images = ArraySet(white, [0] * 64, ["a"], name="x", split="train")
    options: dict[str, Any] = {"batch_size": 64, "resolution": 32, "train": True}
    options |= {"augment": "none", "workers": 0}
    state = torch.random.get_rng_state()
    loader = UtreraLoader(images, LoaderOptions(**options))
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
    assert misfrozen(model) == (
        f"freezing by layer name left {left:,} parameters of the trunk training"
    )
    assert left == 25_343_616
    with torch.device("meta"):
        assert misfrozen(create_model("wide_resnet50_2", 5)) is None
        assert "stops with an error" in str(misfrozen(create_model("vgg16_bn", 5)))
    words: dict[str, Any] = {"protocol": "salman2020", "misfrozen": "all wrong"}
    assert "all wrong" in str(_settings("dtd", **words).notes)
    assert "all wrong" not in str(_settings("dtd", mode="full_network", **words).notes)
    assert "all wrong" not in str(_settings("dtd", misfrozen="all wrong").notes)


def test_what_the_papers_never_ran_is_said() -> None:
    def changed(protocol: str, mode: str, k: int | None = None) -> tuple[str, ...]:
        return _settings("svhn", protocol=protocol, mode=mode, k=k).changed

    for mode in ("fixed_feature", "full_network"):
        assert changed("salman2020", mode) == ()
    assert changed("salman2020", "last_k_blocks", 3) == (
        "mode last_k_blocks instead of fixed_feature or full_network",
    )
    assert changed("salman2020", "scratch") == (
        "mode scratch instead of fixed_feature or full_network",
    )
    for k in (0, 1, 3, 9):
        assert changed("utrera2021", "last_k_blocks", k) == ()
    assert changed("utrera2021", "fixed_feature") == ()  # the last 0 blocks
    assert changed("utrera2021", "last_k_blocks", 2) == (
        "k 2 instead of the last 0, 1, 3, 9 blocks",
    )
    assert changed("utrera2021", "scratch") == (
        "mode scratch instead of the last 0, 1, 3, 9 blocks",
    )
    assert changed("fastadv", "scratch") == ()


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
    monkeypatch.setattr(protocol, "fine_tune", tuning)
    config = _config(_source(tmp_path), lrs=(0.05, 0.01))
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
    config = _config(_source(tmp_path), num_train=200, seeds=(0, 1), **words)
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
        assert row["hyperparameters"] == same["hyperparameters"]
        assert row["val_value"] == same["val_value"]
        assert (row["num_test"], same["num_test"]) == (500, 50)


def test_a_grid_of_heads_gives_every_seed_its_own_row(tmp_path: Path) -> None:
    words: dict[str, Any] = {"mode": "fixed_feature", "solver": "sgd", "epochs": 40}
    words |= {"batch_size": 16, "num_train": 200}
    config = _config(_source(tmp_path), lrs=(1.0, 1e-3), **words)
    grid = transfer(dataclasses.replace(config, seeds=(5, 2)))
    for row, seed in zip(grid, (5, 2), strict=True):
        [alone] = transfer(dataclasses.replace(config, seeds=(seed,)))
        assert row["seed"] == seed
        for name in ("per_class_correct", "hyperparameters", "val_value", "identity"):
            assert row[name] == alone[name]
    assert grid[0]["per_class_correct"] != grid[1]["per_class_correct"]
    chosen = json.loads(grid[0]["hyperparameters"])
    assert (chosen["solver"], chosen["lr"], chosen["epochs"]) == ("sgd", 1.0, 40)
    assert grid[0]["value"] > 40  # chance is 10, the features those of random weights


# ---- robustness ----


@pytest.mark.parametrize("mode", ["fixed_feature", "full_network"])
def test_robust_accuracy_goes_with_the_row(mode: str, tmp_path: Path) -> None:
    source = _source(tmp_path)
    words: dict[str, Any] = {"mode": mode, "norm": "linf", "robust_steps": 3}
    rows = [
        transfer(_config(source, robust_eps=eps, num_train=200, **words))[0]
        for eps in (0.0, 0.02, 0.2)
    ]
    # A head put on the network says what it said on its features, to rounding.
    assert rows[0]["robust_value"] == pytest.approx(rows[0]["value"], abs=0.4 + 1e-9)
    robust = [row["robust_value"] for row in rows]
    assert robust[0] > robust[1] > robust[2]
    assert rows[0]["value"] == rows[1]["value"] == rows[2]["value"]
    attack = json.loads(rows[1]["attack"])
    assert (attack["norm"], attack["eps"], attack["num_steps"]) == ("linf", 0.02, 3)
    assert rows[1]["robust_ci_low"] < robust[1] < rows[1]["robust_ci_high"]


def test_adversarial_fine_tuning_is_more_robust(tmp_path: Path) -> None:
    words: dict[str, Any] = {"norm": "linf", "robust_eps": 0.1, "robust_steps": 3}
    words |= {"epochs": 5, "num_train": 400}
    source = _source(tmp_path)
    [plain] = transfer(_config(source, **words))
    [robust] = transfer(_config(source, method="pgd_at", eps=0.1, num_steps=3, **words))
    assert robust["robust_value"] > plain["robust_value"] + 5
    method = json.loads(robust["hyperparameters"])["method"]
    assert method == {"name": "pgd_at", "norm": "linf", "eps": 0.1, "num_steps": 3}
    partly: dict[str, Any] = {"mode": "last_k_blocks", "k": 1, "num_train": 60}
    config = _config(source, method="trades", eps=0.05, norm="linf", **partly)
    [row] = transfer(dataclasses.replace(config, num_steps=2))
    assert json.loads(row["hyperparameters"])["method"]["beta"] == 6


def test_the_command_shows_protocol_and_robustness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--source", str(_source(tmp_path)), "--dataset", "digits"]
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
        ({"mode": "last_k_blocks"}, "needs --k, the number of blocks that train"),
        ({"k": 3}, "--k 3 is of --mode last_k_blocks, not of fixed_feature"),
        ({"mode": "last_k_blocks", "k": -1}, "--k -1 must be at least 0"),
        (
            {"solver": "lbfgs", "lrs": (0.1,)},
            "--lrs is of --solver sgd; lbfgs is exact",
        ),
        ({"mode": "scratch", "frozen_bn": "train"}, "--mode scratch freezes nothing"),
        ({"mode": "scratch", "solver": "sgd"}, "--solver sgd is of features"),
        ({"protocol": "salman2020", "solver": "sgd"}, "--solver sgd is of features"),
        ({"method": "pgd_at"}, "use --mode last_k_blocks --k 0"),
        ({"mode": "scratch", "eps": 1.0}, "--eps is of adversarial fine-tuning; add"),
        ({"mode": "scratch", "method": "mart", "eps": 0.0}, "needs an --eps above 0"),
        ({"robust_eps": 4.0, "norm": "linf"}, r"4 of 255 is 4/255"),
        ({"downscale": 0}, "--downscale 0 must be at least 1"),
        ({"lrs": ()}, "--lrs needs at least one value"),
    ],
)
def test_choices_that_do_not_go_together(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        TransferConfig(source="s", dataset="d", **changes)


def test_heads_and_blocks_that_do_not_fit(tmp_path: Path) -> None:
    source = _source(tmp_path)
    with pytest.raises(ConfigError, match=r"--k 99: resnet8_cifar has 4 blocks"):
        TransferRun(_config(source, mode="last_k_blocks", k=99))
    squeeze = _source(tmp_path, "squeezenet1_1")
    words: dict[str, Any] = {"mode": "fixed_feature", "resolution": 32}
    with pytest.raises(
        ConfigError, match="head of squeezenet1_1 is no linear function"
    ):
        TransferRun(_config(squeeze, robust_eps=0.1, **words))
    TransferRun(_config(squeeze, **words))


def test_splits_that_do_not_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(labels: list[int], classes: str, split: str) -> ArraySet:
        pixels = np.zeros((len(labels), 8, 8, 3), np.uint8)
        return ArraySet(pixels, labels, list(classes), name="x", split=split)

    def opening(train: ArraySet, test: ArraySet) -> None:
        splits = DatasetSplits("x", train, test)
        monkeypatch.setattr(target, "open_dataset", lambda *_, **__: splits)

    config = _config(_source(tmp_path), num_train=None)
    opening(part([0, 1, 2], "abc", "train"), part([0, 1], "ab", "test"))
    with pytest.raises(
        DataError, match=r"3 classes in train, 2 in test.*one of them: c"
    ):
        TransferRun(config)
    opening(part([0, 2], "abc", "train"), part([0, 1, 2], "abc", "test"))
    with pytest.raises(DataError, match=r"no training images of 1 class\(es\): b"):
        TransferRun(config)
