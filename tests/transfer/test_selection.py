"""What chooses hyper-parameters, what is held out for it, and what is fitted again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tuned_runs import source_file, tuning_config

from fastadv.data import DatasetSplits, open_dataset
from fastadv.data.sets.subsets import Subset
from fastadv.errors import ConfigError, DataError
from fastadv.transfer import TransferConfig, target, transfer, tuned as module
from fastadv.transfer.experiment import Experiment
from fastadv.transfer.history import History
from fastadv.transfer.protocols import Rates
from fastadv.transfer.recipe import read_recipe


def _config(**changes: Any) -> TransferConfig:
    return TransferConfig(**({"source": "s", "dataset": "d"} | changes))


_FULL = {"mode": "full_network"}
_ROBUST = {**_FULL, "method": "pgd_at", "norm": "linf"}
_HEADS_SGD = {"solver": "sgd"}


@pytest.mark.parametrize(
    ("changes", "select_on", "select_by", "refits"),
    [
        ({}, "val", "clean", True),
        ({"refit": "none"}, "val", "clean", False),
        ({"strengths": (0.1,)}, "none", "clean", False),
        (_HEADS_SGD, "val", "clean", True),
        ({"lrs": (0.1,)}, "none", "clean", False),
        (_FULL, "val", "clean", False),
        (_FULL | {"refit": "all"}, "val", "clean", True),
        (_FULL | {"lrs": (0.1,), "refit": "all"}, "none", "clean", False),
        (_FULL | {"lrs": (0.1,), "select_on": "val"}, "val", "clean", False),
        (_ROBUST, "val", "robust", False),
        (_ROBUST | {"select_by": "clean"}, "val", "clean", False),
        (_ROBUST | {"lrs": (0.1,)}, "none", "clean", False),
        (_ROBUST | {"protocol": "utrera2021"}, "none", "clean", False),
        (_ROBUST | {"protocol": "salman2020"}, "test", "robust", False),
    ],
)
def test_what_chooses(
    changes: dict[str, Any], select_on: str, select_by: str, refits: bool
) -> None:
    config = _config(**changes)
    found = (config.selects_on, config.selects_by, config.refits)
    assert found == (select_on, select_by, refits)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            _FULL | {"select_by": "robust"},
            "`method=standard` has none; add `method=pgd",
        ),
        (
            _ROBUST | {"select_by": "robust", "lrs": (0.1,)},
            "`select_by=robust`: there is nothing to choose; give several",
        ),
        (
            _FULL | {"select_on": "none"},
            r"chooses nothing, but there are 2 values of `lrs`: 0.01 0.001; give one",
        ),
        (
            {"select_on": "none", "strengths": (0.1, 1.0)},
            "2 values of `strengths`: 0.1 1; give one, for example `strengths=0.1`",
        ),
        ({"strengths": ()}, "`strengths` needs at least one value"),
        ({"strengths": (0.0,)}, "`strengths=0.0` cannot work; it must be above 0"),
        (_FULL | {"strengths": (0.1,)}, "`strengths` belongs to `mode=fixed_feature`"),
        ({"strengths": (0.1,), "lrs": (0.1,)}, "`strengths` belongs to"),
    ],
)
def test_choices_of_selection_that_cannot_work(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        _config(**changes)


def test_robust_selection_takes_another_learning_rate_than_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One network is accurate and falls to any attack, the other always says one class."""
    source = source_file(tmp_path)
    config = tuning_config(
        source, lrs=(0.05, 0.01), method="pgd_at", norm="linf", eps=0.4, num_steps=2
    )
    real = module._candidates

    def two(experiment: Experiment, run: History, *rest: Any) -> Iterator[Any]:
        if run.rates.lr == 0.05:
            plain = tuning_config(source, lrs=(0.05,), num_train=300, epochs=3)
            *_, last = real(Experiment(plain), History(Rates(0.05), 3), *rest)
            yield 1, last[1]
        else:
            constant = Experiment(config).load_model()
            constant.replace_head(10, seed=0)
            with torch.no_grad():
                constant.head.weight.zero_()
                constant.head.bias.copy_(torch.arange(10.0))
            yield 1, constant

    monkeypatch.setattr(module, "_candidates", two)
    chosen = {}
    for by in ("clean", "robust", None):
        [row] = transfer(dataclasses.replace(config, select_by=by))
        chosen[by] = row.setting.chosen_lr, row.setting.select_by
        if by == "robust":
            assert row.val_value == pytest.approx(10, abs=7)  # that of one class
    assert chosen["clean"] == (0.05, "clean")
    assert chosen["robust"] == chosen[None] == (0.01, "robust")


def test_clean_accuracy_decides_among_equals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both networks fall to every attack, and the later is right more often."""
    config = tuning_config(
        source_file(tmp_path), lrs=(0.05, 0.01), method="pgd_at", norm="linf", eps=0.4
    )

    def judged(experiment: Experiment, model: Any, judge: Any) -> tuple[float, float]:
        values.append((0.0, 0.25 * len(values)))
        return values[-1]

    values: list[tuple[float, float]] = []
    monkeypatch.setattr(module, "_value", judged)
    [row] = transfer(config)
    assert values == [(0.0, 0.0), (0.0, 0.25)]
    assert (row.setting.chosen_lr, row.val_value) == (0.01, 0.0)


# ---- nothing is held out where nothing is chosen ----


def test_one_learning_rate_trains_on_all_images(tmp_path: Path) -> None:
    config = tuning_config(source_file(tmp_path))
    [row] = transfer(config)
    assert (row.setting.num_train, row.setting.num_val) == (60, 0)
    assert (row.setting.select_on, row.val_value) == ("none", None)
    [same] = transfer(dataclasses.replace(config, select_on="none"))
    assert same.identity == row.identity
    assert same.per_class_correct == row.per_class_correct
    [held] = transfer(dataclasses.replace(config, select_on="val"))
    assert (held.setting.num_train, held.setting.num_val) == (50, 10)
    assert held.identity != row.identity


def test_an_axis_of_learning_rates_is_judged_on_validation_images(
    tmp_path: Path,
) -> None:
    file = tmp_path / "recipe.yaml"
    recipe: dict[str, Any] = {"sources": ["s"], "datasets": ["d"]}
    for protocol, wanted in (
        ({"mode": "full_network", "lr": [0.1, 0.01]}, ["val", "val"]),
        ({"mode": "full_network", "lr": [0.1]}, ["none"]),
        ({"mode": "full_network", "lr": 0.1}, ["none"]),
        ({"mode": "full_network", "lr": [0.1, 1.0], "select_on": "none"}, ["none"] * 2),
        (
            {"mode": "full_network", "lr": [0.1, 1.0], "protocol": "utrera2021"},
            ["none"] * 2,
        ),
    ):
        file.write_text(yaml.safe_dump(recipe | {"protocols": [protocol]}))
        assert [config.selects_on for config in read_recipe(file)] == wanted


@pytest.fixture
def one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits with one training image of each class."""
    real = open_dataset("digits")
    first = [int(np.flatnonzero(real.train.labels == c)[0]) for c in range(10)]
    splits = DatasetSplits("digits", Subset(real.train, first), real.test)
    monkeypatch.setattr(target, "open_dataset", lambda *_, **__: splits)


@pytest.mark.usefixtures("one_each")
def test_one_image_of_each_class(tmp_path: Path) -> None:
    words: dict[str, Any] = {"mode": "fixed_feature", "num_train": None}
    config = tuning_config(source_file(tmp_path), **words)
    with pytest.raises(ConfigError, match=r"no class .* \(`select_on=none`"):
        transfer(config)
    [head] = transfer(dataclasses.replace(config, select_on="none"))
    assert (head.setting.num_train, head.setting.chosen_c) == (10, 0.01)
    assert head.value > 15  # chance is 10
    [tuned] = transfer(tuning_config(source_file(tmp_path), num_train=10))
    assert (tuned.setting.num_train, tuned.setting.num_val) == (10, 0)


def test_one_class_cannot_be_told_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open_dataset("digits")
    zeros = Subset(real.train, np.flatnonzero(real.train.labels == 0)[:20])
    splits = DatasetSplits("digits", zeros, real.test)
    monkeypatch.setattr(target, "open_dataset", lambda *_, **__: splits)
    words: dict[str, Any] = {"mode": "fixed_feature", "num_train": None}
    with pytest.raises(DataError, match=r"no training images of 9 class\(es\)"):
        transfer(tuning_config(source_file(tmp_path), **words))


# ---- fitted again ----


def test_heads_are_fitted_again_with_the_rate_that_was_chosen(tmp_path: Path) -> None:
    words: dict[str, Any] = {"mode": "fixed_feature", "solver": "sgd", "epochs": 8}
    words |= {"num_train": 100, "batch_size": 16, "lrs": (0.3, 1e-3, 0.03)}
    config = tuning_config(source_file(tmp_path), seeds=(0, 1, 2), **words)
    refitted = transfer(config)
    before = transfer(dataclasses.replace(config, refit="none"))
    for row, old in zip(refitted, before, strict=True):
        assert (row.setting.refit, old.setting.refit) == (True, False)
        assert (row.setting.num_train, row.setting.num_val) == (90, 10)
        assert row.val_value == old.val_value  # of the choice, before the refit
        assert row.setting.chosen_lr == old.setting.chosen_lr
        assert row.identity != old.identity
        alone = dataclasses.replace(
            config, lrs=(row.setting.chosen_lr,), seeds=(row.seed,)
        )
        [same] = transfer(alone)
        assert same.setting.num_train == 100
        assert same.per_class_correct == row.per_class_correct
    assert any(
        row.per_class_correct != old.per_class_correct
        for row, old in zip(refitted, before, strict=True)
    )


def test_networks_are_trained_again_where_that_is_asked_for(tmp_path: Path) -> None:
    words: dict[str, Any] = {"lrs": (0.05, 1e-4), "num_train": 100, "epochs": 2}
    config = tuning_config(source_file(tmp_path), refit="all", **words)
    [row] = transfer(config)
    assert (row.setting.refit, row.setting.num_val) == (True, 10)
    alone = dataclasses.replace(config, lrs=(row.setting.chosen_lr,), refit="none")
    [same] = transfer(alone)
    assert same.per_class_correct == row.per_class_correct
    [held] = transfer(dataclasses.replace(config, refit="none"))
    assert held.setting.chosen_lr == row.setting.chosen_lr
    assert held.per_class_correct != row.per_class_correct
