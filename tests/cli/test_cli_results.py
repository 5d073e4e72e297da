"""fastadv-results: what it lists, shows, exports and merges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import Caller
from result_rows import transfer_row

from fastadv.results.table import ResultsTable

OLD = Path(__file__).parents[1] / "results" / "tables" / "schema3"


def test_rows_are_listed_by_filters(call: Caller) -> None:
    lines = call("results", "list", OLD).out.splitlines()
    assert len(lines) == 2 + len(ResultsTable(OLD).rows())
    assert "digits, full network, protocol salman2020" in lines[7]
    assert "pgd, l2 0.5, 3 steps" in lines[6]
    found = call(
        "results", "list", OLD, "mode=fixed_feature", "attack=none", "seed=0,1"
    )
    assert len(found.out.splitlines()) == 2 + 6
    [robust] = call("results", "list", OLD, "eps=1/2", "--json").out.splitlines()
    by_name = call("results", "list", OLD, "attack=pgd", "--json").out.splitlines()
    assert robust in by_name
    assert len(by_name) == 2
    assert json.loads(robust)["attack"]["eps"] == 0.5
    assert "evaluation" not in json.loads(robust)  # the columns of another kind


def test_a_row_is_shown_by_the_beginning_of_its_identity(call: Caller) -> None:
    row = ResultsTable(OLD).rows()[0]
    assert row.identity is not None
    shown = call("results", "show", OLD, row.identity[:6]).out
    assert f"transfer.chosen_c                {row.setting.chosen_c}" in shown  # type: ignore[union-attr]
    values = json.loads(call("results", "show", OLD, row.identity, "--json").out)
    assert values["value"] == row.value
    assert values["provenance"]["torch"] == "2.15.0"
    missing = call("results", "show", OLD, "zz")
    assert missing.code == 2
    assert "no row of" in missing.error


def test_exports_are_read_without_fastadv(call: Caller, tmp_path: Path) -> None:
    rows = ResultsTable(OLD).rows(mode="full_network")
    csv, parquet = tmp_path / "x.csv", tmp_path / "table" / "x.parquet"
    for file in (csv, parquet):
        done = call("results", "export", OLD, file, "mode=full_network")
        assert (done.code, done.out) == (0, f"{file}: {len(rows)} rows\n")
    frame = pd.read_csv(csv)
    assert frame["value"].tolist() == [row.value for row in rows]
    assert frame["source.name"].tolist() == [row.source.name for row in rows]
    assert json.loads(frame["per_class_total"][0]) == list(rows[0].per_class_total)
    frame = pd.read_parquet(parquet)
    assert frame["target"][0]["name"] == "digits"
    assert ResultsTable(parquet.parent).rows() == rows
    again = call("results", "export", OLD, csv)
    assert again.code == 2
    assert "exists; add --force" in again.error
    assert call("results", "export", OLD, csv, "--force").code == 0
    assert len(pd.read_csv(csv)) == len(ResultsTable(OLD).rows())


def test_a_table_is_compacted(call: Caller, tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    before = ResultsTable(tmp_path).rows()
    assert (
        call("results", "compact", tmp_path).out == f"{tmp_path}: 2 files became one\n"
    )
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    assert ResultsTable(tmp_path).rows() == before
    assert "nothing to merge" in call("results", "compact", tmp_path).out


def test_kept_files_are_listed_shown_and_deleted(call: Caller, tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "r")
    for seed, weights in ((0, b"zero"), (1, None)):
        identity = f"{seed}abc"
        found = table.kept.keep(identity, {"x": np.arange(3)}, weights, limit=1e6)
        table.append([transfer_row(identity=identity, seed=seed, **found)])
    first, second = call("results", "list", table.path).out.splitlines()[2:]
    assert first.endswith("verdicts network")
    assert second.endswith("verdicts")
    place = f"files.weights                    {next(table.path.glob('_weights/*'))}"
    assert place in call("results", "show", table.path, "0a").out.splitlines()
    done = call("results", "forget", table.path, "seed=0")
    assert done.out == f"{table.path}: 1 files were deleted, 4e-06 MB\n"
    shown = call("results", "show", table.path, "0a").out.splitlines()
    assert f"{place} (deleted)" in shown
    assert call("results", "forget", table.path).code == 2
    assert call("results", "forget", table.path, "--arrays", "kind=transfer").code == 0
    assert not list((table.path / "_arrays").iterdir())


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["list", "{none}"], 1, "there is no results table at"),
        (["compact", "{none}"], 1, "there is no results table at"),
        (["list", "{old}", "dataset"], 2, "'dataset' is no filter; write NAME=VALUE"),
        (
            ["list", "{old}", "datset=x"],
            2,
            "unknown column 'datset'; perhaps you meant",
        ),
        (["list", "{old}", "seed=first"], 2, "'first' is no value of type int64"),
        (["list", "{old}", "eps=1/0"], 2, "'1/0' is no value of type double"),
        (["list", "{old}", "checked=maybe"], 2, "'maybe' is no value of type bool"),
        (["list", "{old}", "provenance=x"], 2, "is no value of type struct"),
        (["export", "{old}", "x.xlsx"], 2, "x.xlsx must end in .csv or .parquet"),
        (["lst", "{old}"], 2, "unknown command 'lst'; perhaps you meant: list"),
    ],
)
def test_bad_words_are_told(
    words: list[str], code: int, complaint: str, call: Caller, tmp_path: Path
) -> None:
    places = {"none": tmp_path / "none", "old": OLD}
    done = call("results", *(word.format(**places) for word in words))
    assert done.code == code
    assert complaint in done.error
