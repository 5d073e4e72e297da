"""The sections of a report, by the kind of result they show.

A new kind of result gets its section by one file that makes it, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fastadv.reporting.evaluation import evaluation_sections
from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.sections import transfer_sections
from fastadv.results.row import Row

# Each is given the rows of its kind, and the published names of data sets by ours.
SECTIONS: dict[str, Callable[[Sequence[Row], Mapping[str, str]], Sequence[Section]]] = {
    "evaluation": evaluation_sections,
    "transfer": transfer_sections,
}


def report_sections(
    rows: Sequence[Row], names: Mapping[str, str] | None = None
) -> list[Section]:
    """Make the sections that rows of a results table have data for, in reading order.

    `names` are the published names of data sets by ours, where they differ.
    """
    sections: list[Section] = []
    for kind, make_sections in SECTIONS.items():
        of_kind = [row for row in rows if row.kind == kind]
        if of_kind:
            sections += make_sections(of_kind, names or {})
    return sections
