"""What a transfer reads of its target: options, subsets, and what a seed decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fastadv.cli import transfer as command
from fastadv.data import ImageSet, open_dataset, subset, train_val_split
from fastadv.data.sets.image_set import FileSet
from fastadv.errors import ConfigError, DataError
from fastadv.models import create_model, save_model
from fastadv.transfer import ResultsTable, TransferConfig, target, transfer
from fastadv.transfer.experiment import Experiment
from fastadv.transfer.features import rows_of
from fastadv.transfer.procedure import make_procedure
from fastadv.transfer.recipe import read_recipe
from fastadv.transfer.sweep import plan_sweep
from fastadv.transfer.target import open_target


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "net.safetensors"
    save_model(create_model("resnet8_cifar", 3, seed=0), file, {"resolution": 16})
    return file


def _config(source: Path, **changes: Any) -> TransferConfig:
    values: dict[str, Any] = {
        "source": str(source),
        "dataset": "digits",
        "results": str(source.parent / "results"),
        "device": "cpu",
        "workers": 0,
    }
    return TransferConfig(**(values | changes))


def _folder(root: Path, train: int = 40, test: int = 4) -> Path:
    """Noisy bitmaps of two classes, the first brighter."""
    for split, count in (("train", train), ("val", test)):
        for label in range(2):
            for i in range(count // 2):
                path = root / split / "ab"[label] / f"{i:03}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw = np.random.default_rng([label, i, count])
                pixels = draw.integers(0, 255 - 120 * label, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


# ---- options of data sets ----


def test_options_reach_the_data_set_and_the_row(source: Path, tmp_path: Path) -> None:
    data = str(_folder(tmp_path / "data"))
    words = ["--source", str(source), "--dataset", data, "--num-train", "8"]
    words += ["--device", "cpu", "--workers", "0"]
    words += ["--results", str(tmp_path / "results")]
    option = ["--dataset-option", "metric=mean_per_class"]
    assert command.main(words) == 0
    assert command.main([*words, *option]) == 0
    assert command.main([*words, *option, "--dataset-option", "strict=true"]) == 0
    plain, other, same = ResultsTable(tmp_path / "results").rows()
    assert (plain.metric, other.metric) == ("top1", "mean_per_class")
    assert plain.target.name == "data"
    assert other.target.name == same.target.name == "data (metric mean_per_class)"
    assert plain.identity != other.identity == same.identity


def test_options_are_checked(source: Path, tmp_path: Path) -> None:
    for given, complaint in (
        (("partition",), r"`dataset_option=partition` must be KEY=VALUE"),
        (("=2",), r"`dataset_option==2` must be KEY=VALUE"),
        (("a=1", "a=2"), r"`dataset_option=a=2`: a was already given as 1"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            _config(source, dataset_option=given)
    config = _config(source, dataset="dtd", dataset_option=("partitoin=2",))
    with pytest.raises(ConfigError, match="perhaps you meant: partition"):
        open_target(config, 32)


def test_a_recipe_gives_options_with_their_data_set(
    source: Path, tmp_path: Path
) -> None:
    data = str(_folder(tmp_path / "data"))
    targets = [data, {"dataset": data, "dataset_option": ["metric=mean_per_class"]}]
    recipe: dict[str, Any] = {
        "sources": [str(source)],
        "datasets": targets,
        "protocols": ["fixed_feature"],
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    plan = plan_sweep(read_recipe(file), ResultsTable(tmp_path / "results"))
    assert [task.setting.dataset_option for task in plan.tasks] == [
        (),
        ("metric=mean_per_class",),
    ]


# ---- what is embedded ----


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the sets that were embedded."""
    sizes: list[int] = []
    real = Experiment._embed

    def embedding(run: Experiment, images: ImageSet) -> Any:
        sizes.append(len(images))
        return real(run, images)

    monkeypatch.setattr(Experiment, "_embed", embedding)
    return sizes


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_only_the_images_of_small_subsets_are_embedded(
    solver: str, source: Path, embedded: list[int]
) -> None:
    words: dict[str, Any] = {"solver": solver, "num_train": 100}
    if solver == "sgd":
        words |= {"epochs": 3, "lrs": (0.1, 0.01)}
    rows = transfer(_config(source, seeds=(0, 1), **words))
    assert sorted(embedded) == [100, 100, 500]
    assert rows[0].per_class_correct != rows[1].per_class_correct
    del embedded[:]
    [alone] = transfer(_config(source, seeds=(1,), **words))
    assert sorted(embedded) == [100, 500]
    for name in ("per_class_correct", "val_value", "setting"):
        assert getattr(alone, name) == getattr(rows[1], name)
    assert alone.setting.solver == solver
    del embedded[:]
    transfer(_config(source, seeds=(0, 1), **(words | {"num_train": 200})))
    assert sorted(embedded) == [500, 1297]  # the whole serves all seeds and sizes


def test_a_subset_gives_the_head_that_the_whole_gives(
    source: Path, monkeypatch: pytest.MonkeyPatch, embedded: list[int]
) -> None:
    config = _config(source, seeds=(3,), num_train=100)
    [few] = transfer(config)
    monkeypatch.setattr("fastadv.transfer.features.FEW", 0.0)
    [whole] = transfer(config)
    assert sorted(embedded) == [100, 500, 500, 1297]
    for name in ("per_class_correct", "val_value", "setting", "identity"):
        assert getattr(few, name) == getattr(whole, name)


def test_features_of_a_part_held_out_of_one_split(source: Path, tmp_path: Path) -> None:
    """The training images themselves are a subset of what is on disk."""
    digits = open_dataset("digits").train
    pixels = np.stack([digits.load(i) for i in range(300)])
    np.savez(tmp_path / "one.npz", x=pixels, y=digits.labels[:300])
    [row] = transfer(_config(source, dataset=str(tmp_path / "one.npz")))
    assert (row.setting.num_train + row.setting.num_val, row.target.num_test) == (
        270,
        30,
    )
    assert row.value > 30  # chance is 10; with labels of other images it would be so


def test_positions_within_what_is_embedded() -> None:
    train = open_dataset("digits").train
    pool = subset(train, 50, 0)
    part, val = train_val_split(pool, 0.2, 0)
    rows = rows_of(part, pool)
    assert train.labels[pool.indices[rows]].tolist() == part.labels.tolist()  # type: ignore[attr-defined]
    assert sorted([*rows, *rows_of(val, pool)]) == list(range(50))
    assert rows_of(pool, train).tolist() == pool.indices.tolist()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="not all images of train"):
        rows_of(subset(train, 50, 1), pool)


def test_subsets_have_keys_of_their_own_and_read_only_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = open_dataset(_folder(tmp_path / "data")).train
    assert isinstance(train, FileSet)
    read: list[int] = []
    real: Callable[[Any, int], bytes] = type(train).read

    def reading(images: Any, index: int) -> bytes:
        read.append(index)
        return real(images, index)

    monkeypatch.setattr(type(train), "read", reading)
    first, second = subset(train, 6, 0), subset(train, 6, 1)
    assert len({s.content_hash() for s in (train, first, second)}) == 3
    assert len(read) == 40 + 6 + 6
    digits = open_dataset("digits").train
    assert len({subset(digits, 50, seed).content_hash() for seed in (0, 1)}) == 2


# ---- what is held out ----


@pytest.fixture
def many_classes(tmp_path: Path) -> str:
    """Four training images of each of ten classes."""
    draw = np.random.default_rng(5)
    x, y = draw.integers(0, 255, (60, 16, 16, 3), np.uint8), np.repeat(range(10), 6)
    test = np.tile([False] * 4 + [True] * 2, 10)
    for split, rows in (("train", ~test), ("test", test)):
        for i in np.flatnonzero(rows):
            path = tmp_path / "many" / split / str(y[i]) / f"{i}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[i]).save(path)
    return str(tmp_path / "many")


_HELD_OUT = (
    "many: 10 of 40 images (25%) are held out for validation, not `val_fraction=0.1`, "
    "since every class of two or more gives one; 30 are trained on"
)


def test_more_held_out_than_asked_for_is_said_once(
    source: Path, many_classes: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(source, dataset=many_classes, seeds=(0, 1, 2))
    for row in transfer(config):
        sizes = row.setting.num_train, row.setting.num_val
        assert (sizes, row.setting.select_on) == ((30, 10), "val")
    assert caplog.messages.count(_HELD_OUT) == 1
    caplog.clear()
    quiet: list[dict[str, Any]] = [{"val_fraction": 0.25}, {"select_on": "test"}]
    quiet += [{"dataset": "digits", "num_train": 100}]
    for changes in quiet:
        transfer(_config(source, **({"dataset": many_classes} | changes)))
    assert not [text for text in caplog.messages if "held out" in text]


def test_a_sweep_says_it_before_its_workers_do(
    source: Path, many_classes: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target._warn_once.cache_clear()
    configs = [
        _config(source, dataset=many_classes, seeds=(0, 1), **changes)
        for changes in (
            {"mode": "full_network"},
            {},
            {"mode": "full_network", "protocol": "utrera2021"},
        )
    ]
    table = ResultsTable(tmp_path / "results")
    plan = plan_sweep(configs, table)
    assert len(plan.tasks) == 2 + 1 + 2
    assert [text for text in caplog.messages if "held out" in text] == [_HELD_OUT]
    blocks: dict[str, Any] = {"mode": "last_k_blocks", "k": 99}
    for change in ({"num_train": 41}, {"num_train": 41, **blocks, "k": 1}, blocks):
        configs.append(_config(source, dataset=many_classes, **change))
    with pytest.raises(
        DataError, match=r"(?s)n=41 images.*which has 40.*`k=99`: "
    ) as no:
        plan_sweep(configs, table)
    assert str(no.value).startswith("2 source(s) or data set(s) cannot be used")
    plan = plan_sweep(configs, table, skip_missing=True)
    assert (len(plan.tasks), plan.rows, len(plan.missing)) == (5, 6, 2)


@pytest.mark.parametrize("select_on", [None, "val", "test"])
@pytest.mark.parametrize("protocol", ["fastadv", "salman2020", "utrera2021"])
def test_what_is_held_out_goes_with_what_chooses(
    protocol: Any, select_on: Any, source: Path
) -> None:
    words: dict[str, Any] = {"mode": "full_network", "protocol": protocol}
    config = _config(source, select_on=select_on, **words)
    procedure = make_procedure(config, "digits", 100, 16)
    assert config.holds_out == (procedure.select_on == "val")


# ---- what a seed decides ----


def test_one_row_where_no_seed_changes_anything(source: Path, tmp_path: Path) -> None:
    config = _config(source, seeds=(2, 0, 1), select_on="test")
    [row] = transfer(config)
    assert row.seed == 2
    assert not row.setting.depends_on_seed
    file = tmp_path / "recipe.yaml"
    recipe: dict[str, Any] = {
        "sources": [str(source)],
        "datasets": ["digits"],
        "protocols": ["fixed_feature"],
        "select_on": "test",
        "seeds": [2, 0, 1],
    }
    file.write_text(yaml.safe_dump(recipe))
    plan = plan_sweep(read_recipe(file), ResultsTable(tmp_path / "results"))
    assert (plan.rows, plan.done, plan.tasks) == (1, 1, [])
    for changes in ({"select_on": None}, {"num_train": 99}, {"solver": "sgd"}):
        kept = TransferConfig(**(vars(config) | {"seeds": (2, 0, 1)} | changes))
        assert kept.seeds == (2, 0, 1)


def test_a_seed_twice_is_refused(source: Path) -> None:
    with pytest.raises(ConfigError, match="`seeds=0 1 0`: 0 is there more than once"):
        _config(source, seeds=(0, 1, 0))
