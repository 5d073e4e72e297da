"""The results table: rows come back as they were, once, in order, and filtered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from result_rows import SETTING, TARGET, evaluation_row, transfer_row

from fastadv.errors import ConfigError, DataError, OutputError
from fastadv.results.identity import make_identity
from fastadv.results.schema import SCHEMA
from fastadv.results.settings import KINDS
from fastadv.results.table import ResultsTable


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results")
    assert table.rows() == []
    first = [transfer_row(), evaluation_row()]
    then = [
        transfer_row(seed=2, source=replace(transfer_row().source, name="\u00fc, b"))
    ]
    table.append(first)
    table.append(then)
    assert ResultsTable(tmp_path / "results").rows() == first + then


def test_each_kind_is_a_column_of_its_own(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path)
    table.append([transfer_row(), evaluation_row()])
    stored = pq.read_table(next(tmp_path.glob("*.parquet")))
    assert stored.column_names == SCHEMA.names
    assert stored["kind"].to_pylist() == ["transfer", "evaluation"]
    for kind in KINDS:
        given = [values is not None for values in stored[kind].to_pylist()]
        assert given == [k == kind for k in stored["kind"].to_pylist()]


def test_what_is_compared_and_what_is_not() -> None:
    key = transfer_row().setting_key
    alike = [
        transfer_row(setting=replace(SETTING, **changes), setting_key="").setting_key
        for changes in (
            {"chosen_lr": 0.001},
            {"chosen_epoch": 3},
            {"num_train": 10, "num_pool": 20},
            {"epochs": 150.0},
        )
    ]
    assert set(alike) == {key}
    other = [
        transfer_row(setting=replace(SETTING, **changes), setting_key="").setting_key
        for changes in (
            {"mode": "scratch"},
            {"batch_size": 64},
            {"epochs": 90},
            {"method": None},
            {"select_on": "val"},
        )
    ]
    other += [
        transfer_row(target=replace(TARGET, **changes), setting_key="").setting_key
        for changes in ({"name": "x"}, {"fingerprint": "x"}, {"downscale": 8})
    ]
    assert len({key, *other}) == 9
    assert (
        transfer_row(source=replace(transfer_row().source, name="x")).setting_key == key
    )


def test_what_makes_numbers_the_same() -> None:
    row = evaluation_row()
    given: dict[str, Any] = {
        "source": row.source,
        "target": row.target,
        "setting": row.setting,
        "seed": 0,
        "attack": row.attack,
    }
    same = [
        given | {"source": replace(row.source, name="x", path="/y")},
        given | {"target": replace(row.target, name="x")},
    ]
    other = [
        given | {"source": replace(row.source, digest="x")},
        given | {"target": replace(row.target, resolution=32)},
        given | {"setting": replace(row.setting, num_images=7)},
        given | {"seed": 1},
        given | {"attack": None},
        given | {"attack": replace(row.attack, eps=0.25)},
        given | {"fastadv": "0.2"},
    ]
    identity = make_identity(**given)
    assert {make_identity(**values) for values in same} == {identity}
    assert len({identity, *(make_identity(**values) for values in other)}) == 8


def test_a_choice_that_is_added_later_recomputes_nothing() -> None:
    @dataclass(frozen=True)
    class Before:
        kind: ClassVar[str] = "x"
        steps: int = 3

    @dataclass(frozen=True)
    class After(Before):
        more: str = "none"

    facts = (transfer_row().source, transfer_row().target)
    settings: list[Any] = [Before(4), After(4), After(4, "some")]
    first, second, third = (make_identity(*facts, each, seed=0) for each in settings)
    assert first == second != third


def test_rows_are_filtered_by_columns_of_any_depth(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path)
    rows = [transfer_row(seed=1), evaluation_row(seed=2), evaluation_row(seed=3)]
    table.append(rows)
    assert table.rows(kind="transfer") == rows[:1]
    assert table.rows(kind="evaluation", seed=3) == rows[2:]
    assert table.rows(seed=[1, 3]) == [rows[0], rows[2]]
    assert table.rows(eps=0.5) == rows[1:]  # of the attack
    assert table.rows(**{"source.eps": 3}) == rows
    assert table.rows(mode="full_network") == rows[:1]
    assert table.rows(attack=None) == table.rows(**{"attack.name": None}) == rows[:1]
    assert table.rows(attack="autoattack") == rows[1:]
    assert table.rows(attack=["fab", None]) == rows[:1]
    assert table.rows(dataset="digits", source="robust") == rows
    assert table.columns("seed", "attack.eps", kind="evaluation") == [
        {"seed": 2, "attack.eps": 0.5},
        {"seed": 3, "attack.eps": 0.5},
    ]
    with pytest.raises(
        ConfigError, match=r"unknown column 'datset'; perhaps .*dataset"
    ):
        table.rows(datset="x")
    with pytest.raises(ConfigError, match="'x' is no value of a column of int64"):
        table.rows(seed="x")


def test_a_row_is_added_once(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path, once=True)
    clean, robust = transfer_row(identity="a"), transfer_row(identity="b", value=1.0)
    table.append([clean, robust])
    again = ResultsTable(tmp_path, once=True)
    again.append([transfer_row(identity="a", value=99.0)])
    again.append([clean, robust, transfer_row(identity="c", value=2.0)])
    assert ("a" in table, "b" in table, "d" in table) == (True, True, False)
    assert sorted(row.value for row in table.rows()) == [1.0, 2.0, 62.5]
    assert table.identities() == {"a", "b", "c"}
    with pytest.raises(ValueError, match="without identity"):
        table.append([transfer_row()])


def test_a_file_is_no_table(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    file.write_text("mine")
    with pytest.raises(DataError, match="is a file; a results table is a directory"):
        ResultsTable(file)
    with pytest.raises(OutputError, match="could not write"):
        ResultsTable(file / "below").append([transfer_row()])
    assert file.read_text() == "mine"


def test_other_versions_and_other_files_are_refused(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path)
    table.append([transfer_row()])
    foreign = tmp_path / "foreign.parquet"
    foreign.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"foreign\.parquet cannot be read .*move it"):
        table.rows()
    for version in ("0", "5"):
        schema = pa.schema([("x", pa.int64())], {"fastadv_schema": version})
        pq.write_table(pa.table({"x": [1]}, schema=schema), foreign)
        with pytest.raises(DataError, match=f"version {version}, this fastadv reads 1"):
            table.rows()
    pq.write_table(pa.table({"x": [1]}), foreign)
    with pytest.raises(DataError, match="has schema version none"):
        table.prepare()
    foreign.rename(tmp_path / "foreign.txt")  # moved away: the rest can be read
    assert len(table.rows()) == 1


def test_the_example_of_the_docs_reads_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = ResultsTable(tmp_path / "results")
    table.append(
        [transfer_row(experiment="a"), transfer_row(experiment="a", value=61.5)]
    )
    attack = evaluation_row().attack
    table.append([transfer_row(experiment="a", attack=attack, value=20.25)])
    page = Path(__file__).parents[2] / "docs" / "results-table.md"
    example = page.read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(page), "exec"), {})
    printed = capsys.readouterr().out
    assert "62.0" in printed  # the mean of the clean rows
    assert "20.25" in printed
