"""The section on calibration: whether confidence is the share that is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from matplotlib.figure import Figure

from fastadv.reporting.figures.lines import panel_caption
from fastadv.reporting.figures.palette import source_colors, wrapped
from fastadv.reporting.figures.reliability import (
    MOST_DIAGRAMS,
    Diagram,
    draw_reliability,
)
from fastadv.reporting.page.html import Section, Table
from fastadv.results.row import Row
from fastadv.results.shift_settings import CalibrationSetting
from fastadv.results.table import Arrays
from fastadv.text_tables import format_percent_ci

_CHARACTERS = 30  # Of a line in the title of a diagram.


def calibration_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "calibration".

    Args:
        rows: Rows of that kind, oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours; calibration needs none.
        arrays: Reads the arrays of a row.
    """
    found: dict[str | None, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.experiment, {})[row.metric] = row
    eps = {row.source.name: row.source.eps for row in rows}
    colors = source_colors(eps, eps)
    lines: list[list[object]] = []
    diagrams = []
    for of_metric in found.values():
        first = next(iter(of_metric.values()))
        setting = cast(CalibrationSetting, first.setting)
        attack = "clean" if first.attack is None else str(first.attack)
        lines.append(
            [
                first.target.name,
                first.source.name,
                setting.measured_kind,
                attack,
                _percent(of_metric.get("accuracy")),
                _percent(of_metric.get("confidence")),
                _percent(of_metric.get("ece")),
                _percent(of_metric.get("ece_by_chance")),
                _percent(of_metric.get("adaptive_ece")),
                _number(of_metric.get("nll")),
                _number(of_metric.get("brier")),
                _number(of_metric.get("temperature")),
                _percent(of_metric.get("ece_scaled")),
                _percent(of_metric.get("corrupted_ece")),
                first.n,
            ]
        )
        if kept := arrays(first):
            title = f"{first.source.name}, {first.target.name}, {attack}"
            diagrams.append(
                Diagram(
                    wrapped(title, _CHARACTERS),
                    colors[first.source.name],
                    kept["count"],
                    kept["bin_confidence"],
                    kept["bin_accuracy"],
                )
            )
    figures: list[tuple[Figure, str]] = []
    if diagrams:
        caption = (
            "Share of right decisions by confidence, in bins of equal width, with 95 % "
            "intervals; grey bars are the shares of images. Below the diagonal, a network "
            "is surer than it is right."
        )
        figures.append(
            (
                draw_reliability(diagrams),
                panel_caption(caption, len(diagrams), MOST_DIAGRAMS),
            )
        )
    columns = [
        "target", "source", "row", "images are", "right", "confidence", "ECE",
        "ECE by chance", "adaptive ECE", "NLL", "Brier", "temperature", "ECE scaled",
        "ECE corrupted", "images",
    ]  # fmt: skip
    return [
        Section(
            "Calibration",
            [
                "The expected calibration error (ECE) is the mean distance between "
                "confidence and the share of right decisions, over bins of confidence "
                "(Guo et al. 2017); the adaptive one has as many images in each bin. A "
                "calibrated network with the same confidences would have the ECE by "
                "chance on so few images: an ECE of that size is no evidence against "
                "calibration. A temperature was fitted to the clean images of one half "
                "and applied to the other half. Under attack, the share that is right is "
                "that of the images the attack ended at, which is not the robust accuracy "
                "where several attacks ran."
            ],
            figures,
            [Table(columns, lines, "Calibration, from logits that rows have kept.")],
        )
    ]


def _percent(row: Row | None) -> str | None:
    return None if row is None else format_percent_ci(row.value, row.low, row.high)


def _number(row: Row | None) -> float | None:
    return None if row is None else round(row.value, 3)
