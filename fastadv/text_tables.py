"""Numbers as text: cells, and aligned tables for terminals. This module needs no torch.

The same tables in HTML are `fastadv.reporting.page.html.Table`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(
    r"(< )?(?P<number>[-+]?\d+(\.\d+)?(e[-+]?\d+)?) ?[%s]?( \[.*\])?", re.IGNORECASE
)


def format_percent_ci(
    value: float, low: float | None = None, high: float | None = None
) -> str:
    """Write a percentage with its confidence interval, both in percent.

    Example:
        >>> format_percent_ci(71.234, 69.9, 72.5)
        '71.2% [69.9, 72.5]'
        >>> format_percent_ci(71.234)
        '71.2%'
    """
    if low is None or high is None:
        return f"{value:.1f}%"
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def format_cell(value: object) -> str:
    """Return a cell as one printable line: None is `-`, floats keep four digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}" if 100 <= abs(value) < 1e15 else f"{value:.4g}"
    # A name with a line break or an escape sequence must not redraw the terminal.
    return "".join(c if c.isprintable() else " " for c in str(value))


def cell_number(value: object) -> float | None:
    """Return the number that a cell is sorted by (of `< x` it is x), or None for text.

    Example:
        >>> cell_number("71.2% [69.9, 72.5]")
        71.2
    """
    if isinstance(value, int | float):
        return float(value)
    match = _NUMBER.fullmatch(str(value).strip())
    return float(match["number"]) if match else None


def numeric_columns(
    columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> list[bool]:
    """Return for each column whether it holds numbers only, besides empty cells.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"row {number} has {len(row)} cells for the {len(columns)} columns "
                f"{', '.join(columns)}; write None where there is no value"
            )
    found = []
    for i in range(len(columns)):
        filled = [cell_number(row[i]) for row in rows if row[i] not in (None, "", "-")]
        found.append(bool(filled) and None not in filled)
    return found


def text_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay a table out in plain text: numbers to the right, everything else left.

    Args:
        columns: Titles of the columns.
        rows: Cells of each row, as many as there are columns.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.

    Example:
        >>> print(text_table(["source", "top1"], [["standard", 61.5], ["l2 3", 70.25]]))
        source     top1
        --------  -----
        standard   61.5
        l2 3      70.25
    """
    right = numeric_columns(columns, rows)
    lines = [[format_cell(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    r"""Return a table in Markdown; a bar in a cell is escaped.

    Example:
        >>> print(markdown_table(["a", "b"], [[1, "x|y"]]))
        | a | b |
        | --- | --- |
        | 1 | x\|y |
    """
    lines: list[Sequence[object]] = [columns, ["---"] * len(columns), *rows]
    cells = ([format_cell(c).replace("|", "\\|") for c in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
