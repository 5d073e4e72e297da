"""Ranges and choices of fields: one check, for Python callers and for commands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from hypothesis import given, strategies as st

from fastadv.errors import ConfigError, in_flags
from fastadv.ranges import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    Checked,
    Range,
    ordered_fields,
)


@dataclass(frozen=True, kw_only=True)
class Base(Checked):
    count: Annotated[int, AT_LEAST_1] = 1
    kind: Literal["a", "b"] | None = None


@dataclass(frozen=True, kw_only=True)
class Example(Base):
    share: Annotated[float, Range(0, 1)] = 0.5
    rates: Annotated[tuple[float, ...] | None, ABOVE_0] = None
    side: Annotated[int, AT_LEAST_1] | None = None
    free: float = 0.0


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(-10, 10))
def test_a_range_is_its_interval(value: float, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    inside = low < value < high
    assert (value in Range(low, high, "()")) == inside
    assert (value in Range(low, high, "[]")) == (inside or value in (low, high))
    if low < high:
        assert (value in Range(low, high, "[)")) == (inside or value == low)
        assert (value in Range(low, high, "(]")) == (inside or value == high)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_range_holds_what_is_not_finite(value: float) -> None:
    assert [
        r for r in (ABOVE_0, AT_LEAST_0, AT_LEAST_1, Range(0, 1)) if value in r
    ] == []
    assert (value in Range(0, ends="[]")) == (value == math.inf)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "`count=0` cannot work; it must be at least 1"),
        ({"share": 1.0}, "`share=1.0` cannot work; it must be in [0, 1)"),
        ({"rates": (0.1, 0.0)}, "`rates=0.0` cannot work; it must be above 0"),
        ({"side": -3}, "`side=-3` cannot work; it must be at least 1"),
        ({"kind": "c"}, "unknown `kind` 'c'; known: a, b"),
    ],
)
def test_every_field_is_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Example(**values)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_what_is_in_range_is_left_alone() -> None:
    made = Example(count=3, share=0.0, rates=(0.1,), side=2, kind="b", free=-math.inf)
    assert (made.count, made.rates, made.side, made.kind) == (3, (0.1,), 2, "b")
    names = [field.name for field in ordered_fields(Example)]
    assert names == ["share", "rates", "side", "free", "count", "kind"]


def test_a_command_says_flags_where_the_library_says_arguments() -> None:
    message = (
        "`num_steps=0` and `eps` of `pip install x`, `l2`-free `--k`, `AttackView(m)`"
    )
    assert in_flags(message) == (
        "--num-steps 0 and --eps of `pip install x`, --l2-free `--k`, `AttackView(m)`"
    )
