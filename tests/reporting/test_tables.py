"""Text tables and the numbers in them."""

from __future__ import annotations

import pytest

from fastadv.reporting import format_percent_ci, text_table
from fastadv.text_tables import cell_number, format_cell, numeric_columns


def test_numbers_stand_right_and_text_left() -> None:
    table = text_table(
        ["source", "top1", "n"],
        [["standard", "61.5% [60.1, 62.9]", 10], ["l2 3", "7.2% [6.9, 7.5]", None]],
    )
    assert table.splitlines() == [
        "source                  top1   n",
        "--------  ------------------  --",
        "standard  61.5% [60.1, 62.9]  10",
        "l2 3         7.2% [6.9, 7.5]   -",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert text_table(["a", "bc"], []) == "a  bc\n-  --"


def test_one_word_makes_a_column_text() -> None:
    rows = [[1, "2"], [2, "2e-3"], [3, "n/a"]]
    assert numeric_columns(["x", "y"], rows) == [True, False]
    assert numeric_columns(["x", "y"], rows[:2]) == [True, True]
    assert numeric_columns(["x"], [[None], ["-"]]) == [False]


def test_a_ragged_row_is_named() -> None:
    with pytest.raises(ValueError, match=r"row 1 has 1 cells for the 2 columns a, b"):
        text_table(["a", "b"], [[1, 2], [3]])


def test_percent_with_and_without_interval() -> None:
    assert format_percent_ci(71.249, 69.96, 72.5) == "71.2% [70.0, 72.5]"
    assert format_percent_ci(100, None, 100) == "100.0%"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (378.0, "378.0"),
        (12345.67, "12345.7"),
        (0.0313725, "0.03137"),
        (float("nan"), "nan"),
        (7, "7"),
        ("a\x1b[2J\nb", "a [2J b"),
    ],
)
def test_cells(cell: object, text: str) -> None:
    assert format_cell(cell) == text


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("71.2% [69.9, 72.5]", 71.2),
        ("-3", -3.0),
        ("1e-3", 0.001),
        ("< 0.0001", 0.0001),
        (True, 1.0),
        ("8/255", None),
        ("resnet18", None),
        ("12 cats", None),
        (None, None),
    ],
)
def test_sort_keys(cell: object, number: float | None) -> None:
    assert cell_number(cell) == number
