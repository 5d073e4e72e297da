"""The section on robustness after transfer compares like with like."""

from __future__ import annotations

import dataclasses
import json
from itertools import chain
from typing import Any

import pytest
from synthetic_results import row, typed

from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.study import Study
from fastadv.reporting.transfer.study_attack import under_attack
from fastadv.results.row import Row, SourceRecord
from fastadv.results.settings import MethodRecord, TransferSetting

ATTACK = json.dumps({"name": "pgd", "norm": "linf", "eps": 0.01, "num_steps": 10})


def _rows(mode: str, eps: float, clean: float, robust: float, **more: Any) -> list[Row]:
    values = {"mode": mode, "source_eps": eps, "value": clean, "robust_value": robust}
    values |= {"robust_ci_low": robust - 1, "robust_ci_high": robust + 1}
    values |= {"attack": ATTACK, "identity": f"{mode} {eps} {clean} {more}"}
    return typed([row(**values | more)])


def _section(*rows: list[Row]) -> Section:
    found = under_attack(Study(make_cells(chain.from_iterable(rows)), {}))
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
