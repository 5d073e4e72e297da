"""The sections of a report, by the kind of result they show.

A new kind of result gets its section by one file that makes it, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.sections import transfer_sections

Row = Mapping[str, Any]

# Given the rows of its kind and the published names of data sets, by ours.
SECTIONS: dict[str, Callable[[Sequence[Row], Mapping[str, str]], Sequence[Section]]] = {
    "transfer": transfer_sections,
}


def report_sections(
    rows: Sequence[Row], names: Mapping[str, str] | None = None
) -> list[Section]:
    """Make the sections that a results table has data for, in reading order.

    Args:
        rows: Rows of the results table.
        names: Published name of a data set by ours, where they differ.
    """
    return [
        section
        for make_sections in SECTIONS.values()
        for section in make_sections(rows, names or {})
    ]
