"""The sections on transfer, in reading order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.cells import departure_label, make_cells
from fastadv.reporting.transfer.study import Study
from fastadv.reporting.transfer.study_classes import per_class, under_attack
from fastadv.reporting.transfer.study_images import (
    against_epochs,
    against_images,
    by_blocks,
    gain_against_images,
)
from fastadv.reporting.transfer.study_sources import (
    against_eps,
    against_source_accuracy,
    by_granularity,
    by_width,
    robust_and_standard,
)
from fastadv.results.row import Row


def transfer_sections(rows: Sequence[Row], names: Mapping[str, str]) -> list[Section]:
    """Make the sections that rows of kind "transfer" have data for.

    Args:
        rows: Rows of the results table.
        names: Published name of a data set by ours, where they differ.
    """
    study = Study(make_cells(rows), names)
    return [*study_sections(study), all_numbers(study)]


def study_sections(study: Study) -> list[Section]:
    """Make the sections that a study has data for, in reading order."""
    builders = (
        robust_and_standard,
        against_eps,
        by_width,
        against_source_accuracy,
        by_granularity,
        against_images,
        gain_against_images,
        by_blocks,
        against_epochs,
        under_attack,
        per_class,
    )
    sections = [builder(study) for builder in builders]
    return [section for section in sections if section is not None]


def all_numbers(study: Study) -> Section:
    """List every cell, and the flaws of the published protocols behind them."""
    flaws: dict[str, set[str]] = {}
    departures: dict[str, set[str]] = {}
    for cell in study.cells:
        protocol = cell.condition.protocol
        for row in cell.rows.values():
            flaws.setdefault(protocol, set()).update(d.text for d in row.defects)
            changed = map(departure_label, row.departures)
            departures.setdefault(protocol, set()).update(changed)
    text = [
        *_paragraphs("Known flaws of {}, which are reproduced: ", flaws),
        *_paragraphs("Some rows depart from {}: ", departures),
    ]
    table = study.table(study.cells)
    return Section("All numbers", [study.interval_note, *text], tables=[table])


def _paragraphs(start: str, found: Mapping[str, set[str]]) -> list[str]:
    return [
        start.format(f"protocol {protocol}") + "; ".join(sorted(parts)) + "."
        for protocol, parts in sorted(found.items())
        if parts
    ]
