"""Training methods, protocols and metrics of one's own, by each way of naming them."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import Caller, image_folder
from sklearn.metrics import f1_score
from small_runs import TINY
from torch import Tensor

from fastadv import extensions
from fastadv.data import open_dataset
from fastadv.errors import ConfigError
from fastadv.models import create_model, save_model
from fastadv.results import ResultsTable
from fastadv.training import TrainConfig
from fastadv.training.methods import Method
from fastadv.transfer import TransferConfig
from fastadv.transfer.procedure import make_procedure
from fastadv.transfer.protocols import Procedure, Protocol

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
METHOD = f"{EXAMPLES}/own_method.py:HalfAndHalf"
PROTOCOL = f"{EXAMPLES}/own_protocol.py:short"
METRIC = f"{EXAMPLES}/own_metric.py:macro_f1"
ONE_EPOCH = [
    *("--arch", "resnet8_cifar", "--data", "digits", "--resolution", "16"),
    *("--num-train", "60", "--epochs", "1", "--norm", "linf", "--eps", "0.1"),
    *("--eval-images", "10", "--eval-steps", "1", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("own") / "m.safetensors"
    save_model(create_model("resnet8_cifar", 2, seed=0, image_size=16), file)
    return str(file)


def _transferred(call: Caller, network: str, *words: str) -> list[Any]:
    data = Path("data")
    if not data.exists():
        image_folder(data)
    result = call(
        *("transfer", "--source", network, "--dataset", "data", "--resolution", "16"),
        *("--device", "cpu", "--results", "found", *words),
    )
    assert result.code == 0, result.err
    return list(ResultsTable("found").rows())


def test_a_method_of_ones_own(call: Caller) -> None:
    """A run keeps the name, and resumes only where the name is typed again."""
    words = ["--method", METHOD, "--method-option", "share=0.25"]
    result = call("train", *ONE_EPOCH, *words, "--out", "run")
    assert result.code == 0, result.err
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["method"], config["method_option"]) == (METHOD, ["share=0.25"])
    extensions._typed.clear()  # another process
    refused = call("train", "--resume", "--out", "run")
    assert refused.code != 0
    assert f"type it yourself: --method {METHOD}" in refused.error
    assert call("train", "--resume", "--out", "run", "--method", METHOD).code == 0
    named = TrainConfig(**TINY | {"method": METHOD, "out": None})
    assert named.out_path.name == "resnet8_cifar_l20.25_HalfAndHalf_digits_s0"


def test_a_method_handed_in(call: Caller, network: str) -> None:
    class Mine(Method):
        pass

    config = TrainConfig(**TINY | {"method": Mine})  # type: ignore[arg-type]
    assert config.method == f"{__name__}:test_a_method_handed_in.Mine"
    assert config.entry is Mine.entry
    rows = _transferred(
        call, network,
        *("--mode", "full_network", "--method", METHOD, "--eps", "0.1", "--lrs", "0.01"),
        *("--epochs", "1", "--select-on", "none"),
    )  # fmt: skip
    method = rows[0].setting.method
    assert (method.name, method.num_steps) == (METHOD, 3)
    assert [(p.name, p.value) for p in method.parameters] == [("share", 0.5)]


def test_a_protocol_of_ones_own(call: Caller, network: str) -> None:
    """It supplies what is not given, and departures from it are listed."""
    words = ["--mode", "full_network", "--protocol", PROTOCOL]
    rows = _transferred(call, network, *words)
    setting = rows[0].setting
    assert setting.protocol == PROTOCOL
    assert (setting.epochs, setting.batch_size, setting.optimizer) == (2, 32, "adamw")
    assert (setting.select_on, setting.chosen_lr, setting.augment) == (
        "none", 3e-3, "none",
    )  # fmt: skip
    assert rows[0].departures == ()
    again = _transferred(call, network, *words, "--epochs", "1")[-1]
    [departure] = again.departures
    assert (departure.name, departure.ours, departure.published) == ("epochs", "1", "2")


def test_a_protocol_that_changes_is_another_experiment(network: str) -> None:
    """Its name stays; the identity of a row counts what it prescribes."""
    from fastadv.transfer.experiment import Experiment
    from fastadv.transfer.identity import row_identity

    image_folder(Path("data"))
    epochs = [3]
    mine = Protocol(lambda task: Procedure(epochs=epochs[0]), name="mine_of_test")
    config = TransferConfig(
        source=network, dataset="data", mode="full_network", resolution=16,
        protocol=mine, device="cpu",  # type: ignore[arg-type]
    )  # fmt: skip
    assert config.protocol == "mine_of_test"
    assert config.selects_on == "val"
    experiment = Experiment(config)
    identities = set()
    for epochs[0] in (3, 3, 4):
        opened = experiment.opened
        identities.add(row_identity(config, 0, experiment.source, opened, 16))
    assert len(identities) == 2
    assert make_procedure(config, "data", 24, 16).epochs == 4


def test_a_metric_of_ones_own(call: Caller, network: str) -> None:
    image_folder(Path("data"))
    result = call(
        *("eval", "--checkpoint", network, "--data", "data", "--resolution", "16"),
        *("--norm", "linf", "--eps", "8/255", "--num-steps", "2", "--device", "cpu"),
        *("--dataset-option", f"metric={METRIC}", "--results", "judged", "--json"),
    )
    assert result.code == 0, result.err
    found = json.loads(result.out)
    table = ResultsTable("judged")
    rows = list(table.rows())
    assert [row.metric for row in rows] == ["top1", METRIC, "top1", METRIC]
    assert len({row.identity for row in rows}) == 4
    arrays = table.arrays(rows[0])
    for name, row, which in (
        ("clean_metric", rows[1], "clean_logits"),
        ("robust_metric", rows[3], "attacked_logits"),
    ):
        predicted = arrays[which].argmax(1)
        if which == "attacked_logits":
            first = arrays["clean_logits"].argmax(1)
            predicted = np.where(arrays["fell_to"] < 0, first, predicted)
        expected = f1_score(arrays["labels"], predicted, average="macro")
        assert found[name] == pytest.approx(expected)
        assert row.value == pytest.approx(100 * expected)
        assert row.low < row.value < row.high or row.low == row.high


def _share_right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).double().mean()


def test_accuracy_as_a_metric_of_ones_own(call: Caller, network: str) -> None:
    """Written as a function it is the built-in accuracy, clean and attacked, in each mode."""
    name = extensions.name_of(_share_right, (), "metrics")
    for mode in (["--mode", "fixed_feature"], ["--mode", "last_k_blocks", "--k", "0"]):
        more = [*mode, "--robust-eps", "0.3", "--robust-steps", "2"]
        if "--k" in mode:
            more += ["--epochs", "1", "--lrs", "0.1", "0.01", "--keep", "none"]
        ours = _transferred(call, network, *more, "--dataset-option", f"metric={name}")
        usual = _transferred(call, network, *more, "--dataset-option", "metric=top1")
        for own, row in zip(ours[-2:], usual[-2:], strict=True):
            assert own.metric == name
            assert row.metric == "top1"
            assert own.value == pytest.approx(row.value)
            assert own.val_value == pytest.approx(row.val_value)
            assert own.low == pytest.approx(row.low, abs=12)
    splits = open_dataset("digits", metric=_share_right)
    assert splits.metric == name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --method half", "unknown --method 'half'; known: discrepancy, free"),
        ("train --method no_such:Half", "there is no module 'no_such'"),
        (f"train --method {METHOD}s", "perhaps you meant: HalfAndHalf"),
        (f"train --method {METRIC}", "names a function and no training method"),
        (f"train --method {METHOD} --method-option shar=1", "has the options share"),
        (f"train --method {METHOD} --method-option share=lots", "must be KEY=NUMBER"),
        (f"train --method {METHOD} --beta 2", "means nothing to --method"),
        ("train --method-option share=1", "has no such options"),
        ("transfer --protocol salman", "perhaps you meant: salman2020"),
        ("transfer --protocol nowhere.py:x", "there is no file nowhere.py"),
        (f"transfer --protocol {METHOD}", "a protocol is a function from"),
        (f"transfer --protocol {METRIC} --mode scratch", "macro_f1() missing"),
        ("transfer --dataset-option metric=top2", "unknown metric 'top2'; perhaps you"),
        ("transfer --dataset-option metric=a.py:b", "there is no file a.py"),
        (f"transfer --dataset-option metric={METHOD}", "cannot be called as metric("),
        (f"eval --dataset-option metric={PROTOCOL}", "cannot be called as metric("),
        ("eval --dataset-option metric=torch:true_divide", "fails for logits [20, 10]"),
    ],
)
def test_wrong_names_fail_before_work(call: Caller, words: str, said: str) -> None:
    command, *rest = words.split(maxsplit=1)
    given = rest[0].split()
    if command == "train":
        given += ONE_EPOCH
    else:
        save_model(create_model("resnet8_cifar", 10), "m.safetensors")
        named = ("--source", "--dataset") if command == "transfer" else (
            "--checkpoint", "--data"
        )  # fmt: skip
        given += [named[0], "m.safetensors", named[1], "digits", "--resolution", "16"]
    result = call(command, *given)
    assert result.code in (1, 2)
    assert said in result.error
    assert not Path("runs").exists()


def test_installed_packages_add_names(
    call: Caller, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may hold such a name, since whoever installed the package chose its code."""
    added = EntryPoints(
        EntryPoint(name, value, f"fastadv.{group}")
        for name, value, group in (
            ("half", "own_method:HalfAndHalf", "methods"),
            ("short", "own_protocol:short", "protocols"),
            ("macro_f1", "own_metric:macro_f1", "metrics"),
        )
    )
    monkeypatch.setattr(
        extensions, "entry_points", lambda group: added.select(group=group)
    )
    monkeypatch.syspath_prepend(str(EXAMPLES))
    Path("recipe.yaml").write_text("method: half\nmethod_option: [share=0.5]\n")
    result = call("train", "--config", "recipe.yaml", *ONE_EPOCH, "--dry-run")
    assert result.code == 0, result.err
    rows = _transferred(
        call, network, *("--mode", "full_network", "--protocol", "short"),
        *("--dataset-option", "metric=macro_f1"),
    )  # fmt: skip
    assert (rows[0].setting.protocol, rows[0].metric) == ("short", "macro_f1")
    for name in ("own_method", "own_protocol", "own_metric"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "line",
    [
        f"protocol: {PROTOCOL}",
        f"method: {METHOD}",
        f"dataset_option: [metric={METRIC}]",
        f"protocol: [fastadv, {PROTOCOL}]",
    ],
)
def test_a_recipe_imports_nothing(call: Caller, line: str) -> None:
    extensions._typed.clear()
    recipe = "sources: [m]\ndatasets: [digits]\nprotocols: [full_network]\n"
    Path("sweep.yaml").write_text(recipe + line + "\n")
    result = call("transfer", "sweep", "sweep.yaml", "--dry-run")
    assert result.code != 0
    assert "a file never imports any" in result.error


def test_objects_with_names_of_the_library() -> None:
    with pytest.raises(ConfigError, match="'fastadv' is built in; give the Protocol"):
        TransferConfig(
            source="m", dataset="digits",
            protocol=Protocol(lambda task: Procedure(), name="fastadv"),  # type: ignore[arg-type]
        )  # fmt: skip
    first, second = (torch.nn.Identity() for _ in range(2))
    names = {extensions.name_of(each, (), "tried") for each in (first, second, first)}
    assert len(names) == 2
