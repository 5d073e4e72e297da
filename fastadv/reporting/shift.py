"""The sections on shift: accuracy under corruptions, and errors relative to a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from matplotlib.figure import Figure

from fastadv.reporting.figures.bars import Bar, grouped_bars
from fastadv.reporting.figures.matrices import Matrix, draw_matrices
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.page.html import Section, Table
from fastadv.results.row import Row
from fastadv.results.shift_settings import CorruptionErrorSetting, ShiftSetting
from fastadv.results.table import Arrays
from fastadv.text_tables import format_percent_ci

_MOST = 12  # Heat maps of one figure.


def shift_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "shift".

    Args:
        rows: Rows of that kind, oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours; shift needs none.
        arrays: Reads the arrays of a row.
    """
    found: dict[str | None, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.experiment, {})[row.metric] = row
    lines: list[list[object]] = []
    kinds: list[list[object]] = []
    maps: dict[str, list[Matrix]] = {}
    natural: dict[str, dict[str, Bar]] = {}
    eps: dict[str, float | None] = {}
    for of_metric in found.values():
        first = next(iter(of_metric.values()))
        setting = cast(ShiftSetting, first.setting)
        eps[first.source.name] = first.source.eps
        lines.append(
            [
                first.target.name,
                first.source.name,
                _accuracy(of_metric.get("top1")),
                _accuracy(of_metric.get("corrupted_top1")),
                setting.left_out or None,
                setting.label(),
            ]
        )
        for metric, row in of_metric.items():
            if kind := metric.partition(":")[2]:
                kinds.append(
                    [first.target.name, first.source.name, kind, _accuracy(row), row.n]
                )
        if not setting.corruptions:
            bar = Bar(first.value, first.low, first.high)
            natural.setdefault(first.target.name, {})[first.source.name] = bar
        elif len(values := arrays(first).get("right", np.array([]))):
            severities = [str(s) for s in setting.severities]
            matrix = Matrix(
                first.source.name,
                100 * values.mean(2),
                [_plain(kind) for kind in setting.corruptions],
                severities,
            )
            maps.setdefault(first.setting_label, []).append(matrix)
    figures: list[tuple[Figure, str]] = []
    for label, matrices in maps.items():
        shown = (
            f"The first {_MOST} of {len(matrices)} sources." if matrices[_MOST:] else ""
        )
        figure = draw_matrices(matrices[:_MOST], (0, 100), "accuracy (%)", digits=0)
        caption = (
            f"Accuracy by kind of corruption (rows) and severity (columns), percent; "
            f"{label}. {shown}"
        )
        figures.append((figure, caption.strip()))
    if natural:
        figures.append(
            (
                grouped_bars(natural, source_colors(eps, eps)),
                "Accuracy on images of other origin, as they are.",
            )
        )
    columns = [
        "target",
        "source",
        "as they are",
        "corrupted",
        "classes left out",
        "images",
    ]
    tables = [
        Table(columns, lines, "Accuracy, and its mean over corruptions, percent.")
    ]
    if kinds:
        tables.append(
            Table(
                ["target", "source", "corruption", "accuracy", "images"],
                kinds,
                "Accuracy under each corruption, mean over severities, percent.",
            )
        )
    return [
        Section(
            "Accuracy under shift",
            [
                "Images were corrupted in the fifteen ways of ImageNet-C (Hendrycks and "
                "Dietterich 2019), or come from elsewhere than those that networks were "
                "trained on. Corruptions that are made here take the published severities "
                "for the size of the images, but a drawn texture for frost, and no JPEG "
                "compression after them. Intervals are 95 %, over the draw of images, each "
                "of which is under every corruption. Where classes of the data are unknown "
                "to a network, its images of the others alone count, and cannot be "
                "compared with those of networks that know more."
            ],
            figures,
            tables,
        )
    ]


def corruption_error_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "corruption_error".

    Args:
        rows: Rows of that kind, oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours; corruption errors need none.
        arrays: Reads the arrays of a row; there are none.
    """
    found: dict[str | None, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.experiment, {})[row.metric] = row
    lines = []
    for of_metric in found.values():
        first = next(iter(of_metric.values()))
        setting = cast(CorruptionErrorSetting, first.setting)
        by_kind = [
            (of_metric[metric].value, _plain(metric[3:]))
            for metric in of_metric
            if metric.startswith("ce:")
        ]
        lines.append(
            [
                first.target.name,
                first.source.name,
                setting.reference,
                _accuracy(of_metric.get("mce")),
                _accuracy(of_metric.get("relative_mce")),
                *(
                    f"{kind} {value:.0f}%"
                    for value, kind in (min(by_kind), max(by_kind))
                ),
                first.n,
            ]
        )
    columns = [
        "target", "source", "reference", "mCE", "relative mCE", "best kind", "worst kind",
        "images",
    ]  # fmt: skip
    return [
        Section(
            "Corruption errors",
            [
                "The error under each corruption, added over severities, as a share of the "
                "reference's; mCE is the mean over corruptions. 100 % is as good as the "
                "reference, less is better. The relative mCE is about the increase over "
                "the error on clean images. Published mCEs have AlexNet for the reference "
                "and are of all 50,000 images of ImageNet-C."
            ],
            (),
            [Table(columns, lines, "Errors under corruption relative to a reference.")],
        )
    ]


def _accuracy(row: Row | None) -> str | None:
    return None if row is None else format_percent_ci(row.value, row.low, row.high)


def _plain(kind: str) -> str:
    return kind.replace("_", " ")
