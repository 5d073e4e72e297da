"""The section on robustness after transfer compares like with like."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
from synthetic_results import row, typed

from fastadv.reporting import report_sections
from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.study import Study
from fastadv.reporting.transfer.study_attack import under_attack
from fastadv.results.row import AttackRecord, Row, SourceRecord, TargetRecord
from fastadv.results.settings import EvaluationSetting, MethodRecord, TransferSetting

ATTACK = json.dumps({"name": "pgd", "norm": "linf", "eps": 0.01, "num_steps": 10})


def _rows(mode: str, eps: float, clean: float, robust: float, **more: Any) -> list[Row]:
    values = {"mode": mode, "source_eps": eps, "value": clean, "robust_value": robust}
    values |= {"robust_ci_low": robust - 1, "robust_ci_high": robust + 1}
    values |= {"attack": ATTACK, "identity": f"{mode} {eps} {clean} {more}"}
    return typed([row(**values | more)])


def _section(*rows: list[Row], own: Sequence[Row] = ()) -> Section:
    cells = make_cells(chain.from_iterable(rows))
    found = under_attack(Study(cells, {}, evaluations=own))
    assert found is not None
    return found


def _scratch(clean: float, robust: float) -> list[Row]:
    return [
        dataclasses.replace(
            each, source=SourceRecord(name="from scratch", arch="resnet18")
        )
        for each in _rows("scratch", 0.0, clean, robust)
    ]


def _tuned_by(rows: list[Row], method: str) -> list[Row]:
    record = MethodRecord(name=method, norm="linf", eps=0.01, num_steps=10)
    return [
        dataclasses.replace(
            each, setting=dataclasses.replace(each.setting, method=record)
        )
        for each in rows
        if isinstance(each.setting, TransferSetting)
    ]


def test_source_fine_tuned_and_scratch_side_by_side() -> None:
    section = _section(
        _rows("fixed_feature", 0.0, 50.0, 10.0),
        _rows("full_network", 0.0, 80.0, 40.0),
        _rows("full_network", 1.0, 75.0, 60.0),
        _scratch(60.0, 45.0),
    )
    models = section.tables[1]
    lines = [dict(zip(models.columns, line, strict=True)) for line in models.rows]
    declines = {
        line["source"]: [
            line.get(title)
            for title in ("source with a new head", "fine-tuned", "from scratch")
        ]
        for line in lines
    }
    assert declines == {
        "standard": ["80.0", "50.0", "25.0"],
        "l2 1": [None, "20.0", "25.0"],
    }
    assert section.findings == [
        "Under attack, accuracy falls by 20.0 % of it (15.0 points) with robust sources "
        "and by 50.0 % of it (40.0 points) with standard sources, on average over the "
        "same 1 setting(s). This is not tested.",
        "Under attack, accuracy falls by 50.0 % of it (40.0 points) with standard sources "
        "and by 25.0 % of it (15.0 points) with random weights (from scratch), on average "
        "over the same 1 setting(s). This is not tested.",
    ]


def _own(digest: str, clean: float, robust: float, **changes: Any) -> list[Row]:
    """Rows of an evaluation of a source on the data it was trained for."""
    attack = AttackRecord(**(json.loads(ATTACK) | changes))
    source = SourceRecord(name="any name", digest=digest, arch="resnet18")
    common: dict[str, Any] = {
        "source": source,
        "target": TargetRecord(name="imagenet"),
        "setting": EvaluationSetting(),
        "experiment": f"{digest}{clean}",
        "n": 100,
    }
    return [Row(value=clean, **common), Row(value=robust, attack=attack, **common)]


def test_the_source_on_its_own_data_stands_beside() -> None:
    def with_digest(rows: list[Row], digest: str) -> list[Row]:
        return [
            dataclasses.replace(r, source=dataclasses.replace(r.source, digest=digest))
            for r in rows
        ]

    rows = [
        with_digest(_rows("full_network", 0.0, 80.0, 40.0), "a"),
        with_digest(_rows("full_network", 1.0, 75.0, 60.0), "b"),
        _scratch(60.0, 45.0),
    ]
    own = [
        *_own("a", 70.0, 35.0),
        *_own("a", 80.0, 8.0),  # the newest counts
        *_own("b", 60.0, 50.0, num_steps=20),  # another attack
        *_own("b", 60.0, 50.0, eps=0.02),
        *_own("c", 60.0, 50.0),
    ]
    section = _section(*rows, own=own)
    models = section.tables[1]
    lines = [dict(zip(models.columns, line, strict=True)) for line in models.rows]
    assert [line["source on its own data"] for line in lines] == ["90.0", None]
    [said] = [text for text in section.text if "their own data" in text]
    assert said.startswith("1 source(s) were not measured on their own data")
    assert "--norm linf --eps 0.01 --num-steps 10 --results TABLE" in said
    assert "their own data" not in str(_section(*rows[:1], own=own).text)
    # The report finds the evaluations in the table that has the transfers.
    page = report_sections([*chain.from_iterable(rows), *own])
    assert "source on its own data" in str([t.columns for s in page for t in s.tables])


def test_what_is_from_scratch_or_tuned_under_attack_is_no_source() -> None:
    """Neither of the two may be averaged with networks that were tuned plainly."""
    plain = [_rows("full_network", eps, 80.0, 40.0) for eps in (0.0, 1.0)]
    first = _section(*plain).findings
    more = [
        _tuned_by(_rows("full_network", 1.0, 70.0, 69.0), "pgd_at"),
        _scratch(60, 59),
    ]
    second = _section(*plain, *more).findings
    assert first == second[:1]
    assert "50.0 % of it (40.0 points) with robust sources" in first[0]


def test_other_targets_do_not_make_a_difference() -> None:
    """Only settings that both kinds of sources have are averaged."""
    section = _section(
        _rows("full_network", 0.0, 80.0, 40.0),
        _rows("full_network", 1.0, 80.0, 60.0),
        _rows("full_network", 1.0, 80.0, 0.0, dataset="another"),
    )
    assert "25.0 % of it (20.0 points) with robust sources" in section.findings[0]
    assert "same 1 setting(s)" in section.findings[0]


def test_a_network_that_is_never_right_has_no_decline() -> None:
    section = _section(
        _rows("full_network", 0.0, 0.0, 0.0), _rows("full_network", 1.0, 50.0, 40.0)
    )
    assert section.findings == []
    columns = section.tables[0].columns
    said = [line[columns.index("relative decline")] for line in section.tables[0].rows]
    assert said == [None, "20.0"]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_decline_is_a_mean_over_seeds(seeds: int) -> None:
    found = [
        _rows("full_network", 0.0, 50.0 + 10 * seed, 40.0, seed=seed)
        for seed in range(seeds)
    ]
    table = _section(*found).tables[0]
    said = str(table.rows[0][table.columns.index("relative decline")])
    shares = [100 * (10 + 10 * seed) / (50 + 10 * seed) for seed in range(seeds)]
    mean = sum(shares) / seeds
    # Fewer than three seeds have no interval.
    assert said.startswith(f"{mean:.2f} [") if seeds == 3 else said == f"{mean:.1f}"
