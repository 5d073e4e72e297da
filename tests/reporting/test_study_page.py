"""The transfer table of docs/studies: one place for one experiment."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from synthetic_results import row, typed

from fastadv.results.table import ResultsTable

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[ModuleType, ModuleType]:
    """bench/study.py and bench/tables.py, with results in a folder of the test."""
    monkeypatch.syspath_prepend(BENCH)
    import harness
    import study
    import tables

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return study, tables


def page(
    bench: tuple[ModuleType, ModuleType], rows: list[dict[str, object]], folder: Path
) -> list[list[str]]:
    """Cells of the Markdown table of these rows."""
    study, tables = bench
    table = ResultsTable(folder / "table")
    table.append(typed(rows))
    results = study.Results("study")
    study.transfer(results, table)
    results.write()
    lines = tables.study().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def tuned(k: int, **changes: object) -> list[dict[str, object]]:
    return [
        row(mode="last_k_blocks", k_blocks=k, seed=seed, value=value + 10 * k) | changes
        for seed, value in enumerate((40.0, 42.0))
    ]


def test_the_table_says_how_many_blocks_train(
    bench: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    other = tuned(1, source="wide", resolution=96, source_eps=None, num_pool=100)
    head, _, *lines = page(bench, [*tuned(1), *tuned(3), *other], tmp_path)
    sources = ["synthetic, 224 px", "wide, 96 px"]
    assert head == ["target", "what trains", "images", *sources]
    assert lines == [
        ["synthetic_set", "last block", "100", "", "51.0 +- 1.4"],
        ["synthetic_set", "last block", "all", "51.0 +- 1.4", ""],
        ["synthetic_set", "last 3 blocks", "all", "71.0 +- 1.4", ""],
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "salman2020"},
        {"downscale": 32},
        {"hyperparameters": json.dumps({"epochs": 30})},
        {"hyperparameters": json.dumps({"solver": "lbfgs", "batch_size": 8})},
    ],
)
def test_two_experiments_never_share_a_place(
    change: dict[str, object],
    bench: tuple[ModuleType, ModuleType],
    tmp_path: Path,
) -> None:
    rows = [*tuned(1), *tuned(1, **change)]
    with pytest.raises(ValueError, match="share a place of the table; they differ in"):
        page(bench, rows, tmp_path)
