"""What a transfer leaves behind: networks that open again, and verdicts that pair."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuned_runs import source_file, tuning_config

from fastadv.errors import CheckpointError, ConfigError, DataError
from fastadv.evaluation.config import EvaluationConfig
from fastadv.evaluation.source import SourceEvaluation, evaluate_checkpoint
from fastadv.models import create_model, load_model, save_model
from fastadv.models.source import open_source
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable
from fastadv.results.verdicts import check_paired, read_verdicts
from fastadv.transfer import transfer
from fastadv.transfer.experiment import Experiment
from fastadv.transfer.keeping import expected_bytes
from fastadv.transfer.protocol import TransferRun

# How a network is transferred, whether all of its weights are kept, and its default radius.
MODES: dict[str, tuple[dict[str, Any], bool]] = {
    "exact head": ({"mode": "fixed_feature"}, False),
    "head by SGD": ({"mode": "fixed_feature", "lrs": (0.1,), "epochs": 3}, False),
    "head with moving statistics": (
        {"mode": "fixed_feature", "protocol": "fastadv", "frozen_bn": "train"}, False
    ),
    "reduced images": ({"mode": "fixed_feature", "downscale": 6}, False),
    "last block": ({"mode": "last_k_blocks", "k": 1}, True),
    "whole network": ({"mode": "full_network"}, True),
    "from scratch": ({"mode": "scratch"}, True),
}  # fmt: skip


def _row_source(table: Path, row: Row, digits: int = 8) -> str:
    return f"row:{table}/{str(row.identity)[:digits]}"


def _evaluated(source: str, results: Path, **choices: Any) -> SourceEvaluation:
    words: dict[str, Any] = {"data": "digits", "device": "cpu", "workers": 0}
    words |= {"checkpoint": source, "results": str(results)}
    return evaluate_checkpoint(EvaluationConfig(**(words | choices)))


@pytest.mark.parametrize("name", MODES)
def test_a_row_is_a_source_with_the_accuracy_that_it_states(
    name: str, tmp_path: Path
) -> None:
    choices, whole = MODES[name]
    file = source_file(tmp_path)
    config = tuning_config(file, save=whole, **choices)
    [row] = transfer(config)
    table = ResultsTable(config.results)
    assert row.weights is not None
    assert row.not_kept is None
    source = open_source(_row_source(table.path, row))
    assert (source.num_classes, source.resolution, source.arch) == (
        10, 16, "resnet8_cifar"
    )  # fmt: skip
    # A network from scratch owes nothing to the source but its architecture.
    began = "resnet8_cifar" if choices["mode"] == "scratch" else file.stem
    assert source.name == f"{began} on {row.setting_label}, seed 0"
    assert (source.trunk is None) == whole
    # An evaluation on its own target finds the same images right, and the same logits.
    again = _evaluated(_row_source(table.path, row, 32), table.path, eps=0)
    assert again.rows[0].value == row.value
    before, after = (table.arrays(each) for each in (row, again.rows[0]))
    np.testing.assert_allclose(
        before["clean_logits"], after["clean_logits"], rtol=1e-3, atol=1e-3
    )
    pair = [read_verdicts(table.arrays, each) for each in (row, again.rows[0])]
    check_paired(*pair)
    np.testing.assert_array_equal(pair[0].right, pair[1].right)
    assert 100 * pair[0].right.mean() == pytest.approx(row.value)
    # What did not train is not stored again.
    small = (table.path / "_weights" / row.weights).stat().st_size
    assert (small < file.stat().st_size / 4) != whole


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Row]]:
    """A source, a table, and the rows of two heads with their robust accuracy."""
    folder = tmp_path_factory.mktemp("kept")
    file = source_file(folder)
    words: dict[str, Any] = {"seeds": (0, 1), "robust_eps": 0.5, "robust_steps": 2}
    config = tuning_config(file, mode="fixed_feature", feature_cache="off", **words)
    return file, Path(config.results), transfer(config)


def test_clean_and_attacked_outcomes_are_kept(
    kept: tuple[Path, Path, list[Row]],
) -> None:
    _, results, rows = kept
    table = ResultsTable(results)
    clean, robust = rows[:2]
    assert clean.arrays == robust.arrays
    assert clean.weights == robust.weights
    found = table.arrays(clean)
    assert found["attacks"].tolist() == ["pgd"]
    assert found["clean_logits"].shape == found["attacked_logits"].shape == (500, 10)
    np.testing.assert_array_equal(found["indices"], np.arange(500))
    for row in (clean, robust):
        verdicts = read_verdicts(table.arrays, row)
        right = np.bincount(verdicts.labels[verdicts.right], minlength=10)
        assert right.tolist() == list(row.per_class_correct)
    fooled = found["attacked_logits"].argmax(1) != found["labels"]
    assert (fooled == (found["fell_to"] < 1)).mean() > 0.99
    # Two seeds pair, and both rows of one network are the same network.
    check_paired(
        read_verdicts(table.arrays, clean), read_verdicts(table.arrays, rows[2])
    )
    names = [_row_source(results, row) for row in (clean, robust, rows[2])]
    first, same, other = (open_source(name).digest for name in names)
    assert first == same != other


def test_a_kept_network_can_be_attacked_and_transferred_again(
    kept: tuple[Path, Path, list[Row]], tmp_path: Path
) -> None:
    _, results, rows = kept
    name = _row_source(results, rows[0])
    evaluated = _evaluated(name, tmp_path, eps=0.5, num_steps=2, num_images=50)
    clean, robust = evaluated.rows
    assert robust.value <= clean.value
    assert clean.source.given == name
    # The row of an evaluation is the network that it is about.
    of_evaluation = open_source(_row_source(tmp_path, clean))
    assert of_evaluation.digest == open_source(name).digest
    fine = tuning_config(tmp_path / "x", mode="full_network", save=True)
    [again] = transfer(replace(fine, source=name))
    assert again.source.digest == of_evaluation.digest
    whole = open_source(_row_source(tmp_path / "results", again))
    assert whole.trunk is None
    # A head on that network refers to a row itself.
    head = tuning_config(tmp_path / "x", mode="fixed_feature", num_train=80)
    [second] = transfer(replace(head, source=name))
    nested = open_source(_row_source(tmp_path / "results", second))
    assert nested.trunk is not None
    assert nested.trunk.trunk is not None
    assert nested.load().num_classes == 10


def test_relative_names_mean_the_same_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = source_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = tuning_config(Path(file.name), mode="fixed_feature", results="results")
    [row] = transfer(config)
    here = open_source(f"row:{str(row.identity)[:8]}")  # ./results is the default
    weight = here.load().head.weight
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = open_source(_row_source(tmp_path / "results", row))
    assert there.digest == here.digest
    direct = load_model(tmp_path / "results" / "_weights" / str(row.weights))
    torch.testing.assert_close(direct.head.weight, weight)


def _copy(kept: tuple[Path, Path, list[Row]], folder: Path) -> tuple[Path, Row]:
    shutil.copytree(kept[1], folder / "results")
    return folder / "results", kept[2][0]


def test_deleted_and_damaged_weights_are_said_to_be(
    kept: tuple[Path, Path, list[Row]], tmp_path: Path
) -> None:
    results, row = _copy(kept, tmp_path)
    file = results / "_weights" / str(row.weights)
    name = _row_source(results, row)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged.*Delete it, and run"):
        open_source(name)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"were deleted \(.* is gone\); run"):
        open_source(name)


def test_a_source_that_is_gone_or_changed_is_said_to_be(tmp_path: Path) -> None:
    file = source_file(tmp_path)
    config = tuning_config(file, mode="fixed_feature")
    [row] = transfer(config)
    name = _row_source(Path(config.results), row)
    save_model(create_model("resnet8_cifar", 3, seed=9), file, {"resolution": 16})
    with pytest.raises(CheckpointError, match=r"have changed since .*put the former"):
        open_source(name)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"which cannot be opened: there is no"):
        open_source(name)


@pytest.mark.parametrize(
    ("begin", "error", "text"),
    [
        ("zzz", ConfigError, "begins with 'zzz'; `fastadv-results list"),
        ("", ConfigError, "begins with ''.*another table is row:TABLE/IDENTITY"),
        (None, ConfigError, "is ambiguous: 4 rows"),
    ],
)
def test_unknown_and_ambiguous_identities_are_refused(
    begin: str | None,
    error: type[Exception],
    text: str,
    kept: tuple[Path, Path, list[Row]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identities = {f"ab{number}" for number in range(4)}
    if begin is None:
        monkeypatch.setattr(ResultsTable, "identities", lambda self: identities)
    with pytest.raises(error, match=text):
        open_source(f"row:{kept[1]}/{'ab' if begin is None else begin}")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no results table at .*row:TABLE/IDENTITY"
    ):
        open_source(f"row:{tmp_path / 'none'}/3f2a")


def test_what_was_not_kept_is_said(tmp_path: Path) -> None:
    file = source_file(tmp_path)
    [row] = transfer(tuning_config(file))
    assert row.weights is None
    assert row.arrays is not None
    with pytest.raises(CheckpointError, match=r"keeps no network \(weights: whole"):
        open_source(_row_source(tmp_path / "results", row))
    [bare] = transfer(tuning_config(file, mode="fixed_feature", keep="none"))
    assert (bare.weights, bare.arrays, bare.not_kept) == (None, None, None)
    with pytest.raises(DataError, match="no verdicts on single images"):
        read_verdicts(ResultsTable(tmp_path / "results").arrays, bare)
    [some] = transfer(tuning_config(file, mode="fixed_feature", keep="verdicts"))
    arrays = ResultsTable(tmp_path / "results").arrays(some)
    assert set(arrays) == {"labels", "fell_to", "indices", "image_set", "attacks"}


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("exact head", "heads"),
        ("exact head", "verdicts"),
        ("head with moving statistics", "heads"),
        ("whole network", "heads"),
        ("whole network", "networks"),
    ],
)
def test_the_forecast_of_bytes_is_what_is_written(
    name: str, keep: Any, tmp_path: Path
) -> None:
    config = tuning_config(source_file(tmp_path), keep=keep, **MODES[name][0])
    experiment = Experiment(config)
    images = experiment.splits.test
    about = (experiment.source.arch, len(images), len(images.classes))
    forecast = expected_bytes(config, *about)
    transfer(config)
    table = ResultsTable(config.results)
    # The row itself is counted, too, with about as much as it takes in a merged table.
    row = expected_bytes(replace(config, keep="none"), *about)
    assert 0.8 < (forecast - row) / table.kept.size() < 1.25


def test_beyond_the_bound_the_row_stays(tmp_path: Path) -> None:
    config = tuning_config(source_file(tmp_path), mode="fixed_feature", keep_limit=1e-5)
    [row] = transfer(config)
    table = ResultsTable(config.results)
    [stored] = table.rows()
    assert stored.value == row.value
    assert stored.arrays is None
    assert stored.weights is not None  # 3 kB; there was room for that
    assert "would exceed `keep_limit`" in str(stored.not_kept)


def test_an_interrupted_run_loses_no_row_and_leaves_nothing_that_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tuning_config(source_file(tmp_path), mode="fixed_feature", seeds=(0, 1))
    real = ResultsTable.append

    def killed(table: ResultsTable, rows: list[Row]) -> None:
        if rows[0].seed == 1:  # its files are there, and its row is not
            raise KeyboardInterrupt
        real(table, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ResultsTable, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            transfer(config)
    table = ResultsTable(config.results, once=True)
    [first] = table.rows()
    files = {path.name for path in table.path.glob("_*/*")}
    assert len(files) == 4
    list(TransferRun(config, table).rows())
    assert table.rows()[0] == first
    assert {row.seed for row in table.rows()} == {0, 1}
    assert {path.name for path in table.path.glob("_*/*")} == files
    for row in table.rows():
        assert open_source(_row_source(table.path, row)).num_classes == 10


def test_rows_of_older_tables_keep_nothing_and_say_so() -> None:
    old = Path(__file__).parents[1] / "results" / "tables" / "schema3"
    table = ResultsTable(old)
    for row in table.rows()[:2]:
        with pytest.raises(CheckpointError, match=r"keeps no network.*older version"):
            open_source(_row_source(old, row, 32))
        with pytest.raises(DataError, match="older version"):
            read_verdicts(table.arrays, row)
