"""The relative decline against what a sweep varies: each factor alone, others equal."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest
from synthetic_results import row, typed

from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.study import Study
from fastadv.reporting.transfer.study_decline import decline_against_factors
from fastadv.results.row import Row

ATTACK = json.dumps({"name": "pgd", "norm": "linf", "eps": 0.01, "num_steps": 10})


def rows(robust: float, **more: Any) -> list[Row]:
    values = {"mode": "last_k_blocks", "k_blocks": 1, "value": 80.0, "attack": ATTACK}
    values |= {"robust_value": robust, "robust_ci_low": robust - 1}
    values |= {"robust_ci_high": robust + 1, "identity": f"{robust} {more}"}
    return typed([row(**values | more)])


def section(*given: list[Row]) -> Section | None:
    return decline_against_factors(Study(make_cells(chain.from_iterable(given)), {}))


def lines(found: Section | None) -> list[tuple[object, ...]]:
    assert found is not None
    [table] = found.tables
    places = [table.columns.index(c) for c in ("factor", "value", "relative decline")]
    return [tuple(line[i] for i in places) for line in table.rows]


FACTORS = [
    ({"k_blocks": 0}, {"k_blocks": 3}, ("trained blocks", "0", "3")),
    (
        {"num_pool": 100, "class_names": ["a"] * 10, "per_class_total": [4] * 10},
        {"num_pool": 1000, "class_names": ["a"] * 10, "per_class_total": [4] * 10},
        ("images per class", "10", "100"),
    ),
    (
        {"downscale": 32},
        {"downscale": None},
        ("side that images are reduced to, pixels", "32", "224"),
    ),
]


@pytest.mark.parametrize(("first", "second", "named"), FACTORS)
def test_a_factor_that_varies_is_drawn(
    first: dict[str, Any], second: dict[str, Any], named: tuple[str, str, str]
) -> None:
    found = section(rows(40.0, **first), rows(20.0, **second))
    name, low, high = named
    assert lines(found) == [(name, low, "50.0"), (name, high, "75.0")]
    assert found is not None
    assert len(found.figures) == 1


def test_networks_that_differ_otherwise_are_not_joined() -> None:
    assert section(rows(40.0, k_blocks=0)) is None
    other = {"k_blocks": 3, "protocol": "utrera2021"}
    assert section(rows(40.0, k_blocks=0), rows(20.0, **other)) is None
    # Two sources are two lines of one panel.
    both = section(
        *(
            rows(robust, k_blocks=k, source=f"eps {eps}", source_eps=eps)
            for robust, k, eps in (
                (40.0, 0, 0.0), (20.0, 3, 0.0), (60.0, 0, 1.0), (40.0, 3, 1.0),
            )
        )
    )  # fmt: skip
    assert [line[2] for line in lines(both)] == ["50.0", "75.0", "25.0", "50.0"]
