"""Tables of schema 1, 2 and 3 open, and say what they said.

The tables were written by the last commit that wrote schema 3; `as_read.json` is what it
read back from that of schema 3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastadv.results.row import Row
from fastadv.results.table import ResultsTable

TABLES = Path(__file__).parent / "tables"
OLD: list[dict[str, Any]] = json.loads((TABLES / "schema3/as_read.json").read_text())


def _rows(version: int) -> list[Row]:
    return ResultsTable(TABLES / f"schema{version}").rows()


def test_each_number_is_a_row() -> None:
    rows = _rows(3)
    clean = [row for row in rows if row.attack is None]
    robust = [row for row in rows if row.attack is not None]
    assert [row.value for row in clean] == [old["value"] for old in OLD]
    attacked = [old for old in OLD if old["robust_value"] is not None]
    assert [row.value for row in robust] == [old["robust_value"] for old in attacked]
    assert [row.low for row in robust] == [old["robust_ci_low"] for old in attacked]
    assert [row.experiment for row in robust] == [old["identity"] for old in attacked]
    assert len({row.identity for row in rows}) == len(rows) == len(OLD) + 2


def test_a_sweep_over_an_old_table_recomputes_nothing() -> None:
    table = ResultsTable(TABLES / "schema3", once=True)
    assert table.identities() >= {old["identity"] for old in OLD}
    assert all(old["identity"] in table for old in OLD)
    assert [r.identity for r in _rows(3) if r.attack is None] == [
        old["identity"] for old in OLD
    ]


def test_nothing_of_an_old_row_is_lost() -> None:
    for row, old in zip((r for r in _rows(3) if r.attack is None), OLD, strict=True):
        used, setting = json.loads(old["hyperparameters"]), row.setting
        assert setting.kind == "transfer"
        same = ("mode", "k_blocks", "protocol", "select_on", "num_train", "num_val")
        for name in (*same, "num_pool", "num_available"):
            assert getattr(setting, name) == old[name]
        renamed = {"C": "chosen_c", "lr": "chosen_lr", "epoch": "chosen_epoch"}
        for name, value in used.items():
            found = getattr(setting, renamed.get(name, name))
            if name == "statistics" and value is not None:
                assert [list(found.mean), list(found.std)] == value
            elif name == "schedule":
                named = {"third": "thirds", "epochs // 3": "floored_thirds"}
                assert found == named[value.removeprefix("x 0.1 every ")]
            elif name == "method":
                flat = vars(found) | {p.name: p.value for p in found.parameters}
                assert {key: flat[key] for key in value} == value
            else:
                assert (list(found) if name == "lrs" else found) == value
        facts = {
            k: v for k, v in json.loads(old["environment"]).items() if v is not None
        }
        provenance = vars(row.provenance) | {
            each.name: each.value for each in row.provenance.packages
        }
        assert {key: provenance[key] for key in facts} == facts
        for ours, theirs in (("name", "source"), ("digest", "source_hash")):
            assert getattr(row.source, ours) == old[theirs]
        assert row.source.given == old["source_given"]
        assert row.source.accuracy == old["source_accuracy"]
        assert list(row.per_class_correct) == old["per_class_correct"]
        assert list(row.target.class_names) == old["class_names"]
        assert row.target.downscale == old["downscale"]
        assert (row.val_value, row.seed) == (old["val_value"], old["seed"])
        assert str(row.time) == old["time"]


def test_notes_become_data() -> None:
    for row, old in zip((r for r in _rows(3) if r.attack is None), OLD, strict=True):
        said = [d.text for d in row.defects]
        said += [f"{d.name} {d.ours} instead of {d.published}" for d in row.departures]
        assert row.setting.kind == "transfer"
        if not row.setting.depends_on_seed:
            said.append("one row for all seeds, which change nothing here")
        assert "; ".join(said) == (old["notes"] or "")
        assert not any(d.code == "unknown" for d in row.defects)


@pytest.mark.parametrize("version", [1, 2])
def test_older_versions_are_the_same_rows_with_less(version: int) -> None:
    newest = [r for r in _rows(3) if version == 2 or r.attack is None]
    for row, new in zip(_rows(version), newest, strict=True):
        assert row.source.given is None
        assert row.source.digest == new.source.digest
        assert (row.value, row.metric, row.time) == (new.value, new.metric, new.time)
        assert row.provenance == new.provenance
        assert row.identity == (None if version == 1 else new.identity)
        assert row.experiment is not None
    keys = [row.setting_key for row in _rows(2)]
    assert keys == [row.setting_key for row in _rows(3)]


def test_the_evaluations_of_the_study_are_those_of_its_page() -> None:
    root = Path(__file__).parents[2]
    rows = ResultsTable(root / "docs" / "studies" / "results").rows(kind="evaluation")
    lines = [json.loads(x) for x in (root / "bench/results/study.jsonl").open()]
    runs = [line for line in lines if line["what"] == "pretraining"]
    assert len(runs) == 4
    for line in runs:
        of_run = [row for row in rows if row.source.name == line["run"]]
        attacked = {row.attack.name: row for row in of_run if row.attack is not None}
        judged = attacked["autoattack"]
        shares = {
            "clean_acc": of_run[0].value,
            "autoattack_acc": judged.value,
            "attacked_clean_acc": next(
                r.value
                for r in of_run
                if r.experiment == judged.experiment and r.attack is None
            ),
        }
        if line["pgd_acc"] is not None:
            shares["pgd_acc"] = attacked["pgd"].value
        assert {name: line[name] for name in shares} == pytest.approx(
            {name: value / 100 for name, value in shares.items()}
        )
        assert line["sha256"] == judged.source.digest
