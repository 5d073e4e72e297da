"""The sections of a report, by the kind of result they show.

A new kind of result gets its section by one file that makes it, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fastadv.reporting.calibration import calibration_sections
from fastadv.reporting.detection import detection_sections
from fastadv.reporting.effective import effective_sections
from fastadv.reporting.evaluation import evaluation_sections
from fastadv.reporting.influence import influence_sections
from fastadv.reporting.manipulation import manipulation_sections
from fastadv.reporting.page.html import Section
from fastadv.reporting.seeing import (
    gradient_sections,
    inversion_sections,
    visualization_sections,
)
from fastadv.reporting.shape import shape_sections
from fastadv.reporting.shift import corruption_error_sections, shift_sections
from fastadv.reporting.similarity import similarity_sections
from fastadv.reporting.transfer.sections import transfer_sections
from fastadv.reporting.vulnerability import universal_sections, vulnerability_sections
from fastadv.results.row import Row
from fastadv.results.table import Arrays

# Each is given the rows of its kind, the published names of data sets by ours, and what
# reads the arrays of a row.
SECTIONS: dict[
    str, Callable[[Sequence[Row], Mapping[str, str], Arrays], Sequence[Section]]
] = {
    "evaluation": lambda rows, names, arrays: evaluation_sections(rows, names),
    "transfer": transfer_sections,
    "influence": influence_sections,
    "shape": shape_sections,
    "manipulation": manipulation_sections,
    "similarity": similarity_sections,
    "shift": shift_sections,
    "corruption_error": corruption_error_sections,
    "calibration": calibration_sections,
    "effective_robustness": effective_sections,
    "gradients": gradient_sections,
    "visualization": visualization_sections,
    "inversion": inversion_sections,
    "vulnerability": vulnerability_sections,
    "universal": universal_sections,
    "detection": detection_sections,
}

# Kinds whose rows the sections of a kind read besides its own.
_ALSO_READ = {"transfer": "evaluation"}


def report_sections(
    rows: Sequence[Row],
    names: Mapping[str, str] | None = None,
    arrays: Arrays = lambda row: {},
) -> list[Section]:
    """Make the sections that rows of a results table have data for, in reading order.

    Args:
        rows: Rows of a results table.
        names: Published names of data sets by ours, where they differ.
        arrays: Reads the arrays of a row; without it, figures of arrays are left out.
    """
    sections: list[Section] = []
    for kind, make_sections in SECTIONS.items():
        if not any(row.kind == kind for row in rows):
            continue
        read = [row for row in rows if row.kind in (kind, _ALSO_READ.get(kind))]
        sections += make_sections(read, names or {}, arrays)
    return sections
