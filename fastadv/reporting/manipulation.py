"""The section on manipulated images: accuracy without layout, or without frequencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from matplotlib.figure import Figure

from fastadv.reporting.figures.lines import (
    MOST_PANELS,
    Panel,
    Point,
    draw_panels,
    panel_caption,
)
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.figures.pictures import image_rows
from fastadv.reporting.page.html import Section, Table
from fastadv.results.analysis_settings import ManipulationSetting
from fastadv.results.row import Row
from fastadv.results.table import Arrays
from fastadv.text_tables import format_percent_ci

_NAMES = {
    "patch_shuffle": ("patches in random order", "patches per side"),
    "low_pass": ("low frequencies only", "highest frequency (cycles per image)"),
    "high_pass": ("high frequencies only", "lowest frequency (cycles per image)"),
    "band_pass": ("a band of frequencies only", "band (cycles per image)"),
}
_CLEAN = "as they are"

# Source -> level -> row.
_Curves = dict[str, dict[str, Row]]


def manipulation_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "manipulation".

    Args:
        rows: Rows of that kind, oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours; manipulation needs none.
        arrays: Reads the arrays of a row.
    """
    # Manipulation -> target and number of images -> curves.
    found: dict[str, dict[str, _Curves]] = {}
    for row in rows:
        setting = cast(ManipulationSetting, row.setting)
        target = f"{row.target.name}, {setting.num_images} images"
        curves = found.setdefault(setting.how, {}).setdefault(target, {})
        level = row.metric.partition(":")[2] or _CLEAN
        curves.setdefault(row.source.name, {})[level] = row
    lines = [
        [
            row.target.name,
            name,
            _NAMES[how][0],
            level,
            format_percent_ci(row.value, row.low, row.high),
            row.n,
        ]
        for how, of_target in found.items()
        for curves in of_target.values()
        for name, of_level in curves.items()
        for level, row in of_level.items()
    ]
    figures = []
    for how, of_target in found.items():
        figures.append(_curves(how, of_target))
        figures += _examples(how, of_target, arrays)
    columns = ["target", "source", "images", "level", "accuracy", "n"]
    return [
        Section(
            "Accuracy on manipulated images",
            [
                "What accuracy is left when images lose their global layout (patches in "
                "random order), their fine detail (low frequencies only) or their coarse "
                "structure (high frequencies only; the mean colour stays). Manipulated "
                "images are unlike any that a network was trained on, so that a loss shows "
                "what a decision rests on only together with that of other networks. "
                "Intervals are 95 %, over the draw of images."
            ],
            figures,
            [Table(columns, lines, "Accuracy on manipulated images.")],
        )
    ]


def _curves(how: str, of_target: Mapping[str, _Curves]) -> tuple[Figure, str]:
    """Draw accuracy against the level, one panel for each target."""
    levels = {
        level
        for curves in of_target.values()
        for each in curves.values()
        for level in each
    }
    ordered = [_CLEAN, *sorted(levels - {_CLEAN}, key=_number)]
    place = {level: float(i) for i, level in enumerate(ordered)}
    panels, eps = [], {}
    for target, curves in of_target.items():
        series = {}
        for name, of_level in curves.items():
            eps[name] = next(iter(of_level.values())).source.eps
            series[name] = {
                place[level]: Point(row.value, row.low or 0, row.high or 0)
                for level, row in of_level.items()
            }
        panels.append(Panel(target, series))
    what, axis = _NAMES[how]
    figure = draw_panels(
        panels,
        source_colors(eps, eps),
        axis,
        "accuracy (%)",
        {x: level for level, x in place.items()},
    )
    text = f"Accuracy on images with {what}."
    return figure, panel_caption(text, len(panels), MOST_PANELS)


def _number(level: str) -> tuple[float, ...]:
    return tuple(float(end) for end in level.split("-"))


def _examples(
    how: str, of_target: Mapping[str, _Curves], arrays: Arrays
) -> list[tuple[Figure, str]]:
    """Draw a few images as they are and at each level."""
    for curves in of_target.values():
        for of_level in curves.values():
            if values := arrays(next(iter(of_level.values()))):
                images = torch.from_numpy(values["examples"])
                shown = {
                    str(level): images[:, i] for i, level in enumerate(values["levels"])
                }
                title = f"Images with {_NAMES[how][0]}, as a network sees them"
                return [(image_rows(title, shown), f"{title}.")]
    return []
