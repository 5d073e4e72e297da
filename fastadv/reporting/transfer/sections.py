"""The sections on transfer, in reading order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer import (
    study_attack,
    study_classes,
    study_decline,
    study_epochs,
    study_images,
    study_published,
    study_sources,
)
from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.pairing import Pairing
from fastadv.reporting.transfer.study import Study
from fastadv.results.row import Row
from fastadv.results.table import Arrays


def transfer_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays | None = None
) -> list[Section]:
    """Make the sections of rows of kind "transfer"; see `report_sections`.

    Rows of kind "evaluation" may be among them: what sources reach on their own data.
    """
    kinds: dict[str, list[Row]] = {"transfer": [], "evaluation": []}
    for row in rows:
        kinds[row.kind].append(row)
    cells = make_cells(kinds["transfer"])
    study = Study(cells, names, Pairing(arrays), kinds["evaluation"])
    return [*study_sections(study), all_numbers(study)]


def study_sections(study: Study) -> list[Section]:
    """Make the sections that a study has data for, in reading order."""
    builders = (
        study_sources.robust_and_standard,
        study_sources.against_eps,
        study_sources.by_width,
        study_sources.against_source_accuracy,
        study_published.across_radii,
        study_published.texture_trained,
        study_sources.by_granularity,
        study_images.against_images,
        study_images.gain_against_images,
        study_images.by_blocks,
        study_images.against_epochs,
        study_epochs.within_training,
        study_attack.under_attack,
        study_decline.decline_against_factors,
        study_classes.per_class,
    )
    return [section for builder in builders if (section := builder(study)) is not None]


def all_numbers(study: Study) -> Section:
    """List every cell, and the flaws of the published protocols behind them."""
    notes: dict[str, set[str]] = {}
    for cell in study.cells:
        protocol = f"protocol {cell.condition.protocol}"
        flaws = f"Known flaws of {protocol}, which are reproduced: "
        departures = f"Some rows depart from {protocol}: "
        for row in cell.rows.values():
            notes.setdefault(flaws, set()).update(d.text for d in row.defects)
            notes.setdefault(departures, set()).update(map(str, row.departures))
    text = [
        f"{start}{'; '.join(sorted(notes[start]))}."
        for start in sorted(notes)
        if notes[start]
    ]
    table = study.table(study.cells)
    return Section("All numbers", [study.interval_note, *text], tables=[table])
