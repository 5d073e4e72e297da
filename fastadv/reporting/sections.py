"""The sections of a report, by the kind of result they show.

A new kind of result gets its section by one file that makes it, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fastadv.reporting.evaluation import evaluation_sections
from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.sections import transfer_sections
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable

Make = Callable[
    [Sequence[Row], Mapping[str, str], ResultsTable | None], Sequence[Section]
]
"""Given are the rows of a kind, the published names of data sets by ours, and the table
that holds the arrays of the rows, where there is one."""

SECTIONS: dict[str, Make] = {
    "evaluation": evaluation_sections,
    "transfer": transfer_sections,
}


def report_sections(
    rows: Sequence[Row],
    names: Mapping[str, str] | None = None,
    table: ResultsTable | None = None,
) -> list[Section]:
    """Make the sections that rows of a results table have data for, in reading order.

    Args:
        rows: Rows of any kind.
        names: Published names of data sets by ours, where they differ.
        table: Where the verdicts on test images of the rows are; without it no test
            covers other test images.
    """
    sections: list[Section] = []
    for kind, make_sections in SECTIONS.items():
        of_kind = [row for row in rows if row.kind == kind]
        if of_kind:
            sections += make_sections(of_kind, names or {}, table)
    return sections
