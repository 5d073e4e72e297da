"""The section on similarity: which layers of two networks represent images alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from fastadv.reporting.figures.matrices import Matrix, draw_matrices
from fastadv.reporting.page.html import Section, Table
from fastadv.results.analysis_settings import SimilaritySetting
from fastadv.results.row import Row
from fastadv.results.table import Arrays

_MOST = 12  # Heat maps of one figure.
_NAMES = {"cka": "Linear CKA", "svcca": "SVCCA"}


def similarity_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "similarity".

    Args:
        rows: Rows of that kind, oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours; similarity needs none.
        arrays: Reads the arrays of a row.
    """
    found: dict[str | None, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.experiment, {})[row.metric] = row
    figures, lines = [], []
    by_measure: dict[str, list[Matrix]] = {}
    for of_metric in found.values():
        first = next(iter(of_metric.values()))
        setting = cast(SimilaritySetting, first.setting)
        for metric, row in of_metric.items():
            layer = metric.partition(":")[2]
            lines.append(
                [
                    row.target.name,
                    row.source.name,
                    setting.other,
                    _NAMES[setting.measure],
                    layer,
                    round(row.value, 3),
                    row.n,
                ]
            )
        if values := arrays(first):
            title = f"{first.source.name} (rows), {setting.other}"
            sides = values["layers"].tolist(), values["other_layers"].tolist()
            matrix = Matrix(title, values["matrix"], *sides)
            by_measure.setdefault(setting.measure, []).append(matrix)
    for measure, matrices in by_measure.items():
        shown = f"the first {_MOST} of {len(matrices)}" if matrices[_MOST:] else "all"
        caption = f"{_NAMES[measure]} of every pair of layers; {shown} are drawn."
        figures.append(
            (draw_matrices(matrices[:_MOST], (0, 1), _NAMES[measure]), caption)
        )
    columns = ["target", "source", "other", "measure", "layer", "similarity", "images"]
    return [
        Section(
            "Similarity of representations",
            [
                "1 means that two layers represent the images alike up to a rotation and "
                "a scale (CKA) or any linear map (SVCCA); independent ones have a CKA of "
                "about 0. High similarity does not say that two networks use the same "
                "features, and SVCCA is biased upwards with few images."
            ],
            figures,
            [Table(columns, lines, "Similarity of layers of the same name.")],
        )
    ]
