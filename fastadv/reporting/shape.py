"""The section on shape and texture: which cue decisions follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastadv.reporting.figures.bars import Bar, grouped_bars
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.literature import read_published
from fastadv.reporting.page.html import Section, Table
from fastadv.results.row import Row
from fastadv.results.table import Arrays
from fastadv.text_tables import format_percent_ci

# Metrics of images whose shape and texture are of known classes, as columns.
_ACCURACIES = {
    "shape_accuracy": "right by the shape",
    "texture_accuracy": "right by the texture",
    "agreeing_accuracy": "cues agree",
    "plain_accuracy": "as they are",
}


def shape_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "shape".

    Args:
        rows: Rows of that kind, oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours; shape needs none.
        arrays: Reads the arrays of a row; shape needs none.
    """
    found: dict[str, dict[str, dict[str, Row]]] = {}
    for row in rows:
        of_images = found.setdefault(row.setting_label, {})
        of_images.setdefault(row.source.name, {})[row.metric] = row
    lines: list[list[object]] = []
    bars: dict[str, dict[str, Bar]] = {}
    eps: dict[str, float | None] = {}
    for label, of_source in found.items():
        shares = {
            name: each["shape_share"]
            for name, each in of_source.items()
            if "shape_share" in each
        }
        eps |= {name: row.source.eps for name, row in shares.items()}
        for name, row in shares.items():
            bars.setdefault(label, {})[name] = Bar(row.value, row.low, row.high)
        for name, row in shares.items():
            cued = of_source[name].get("cued_share")
            lines.append(
                [
                    name,
                    format_percent_ci(row.value, row.low, row.high),
                    None if cued is None else f"{cued.value:.1f}%",
                    row.n,
                    label,
                ]
            )
    for each in read_published("geirhos2019_shape"):
        name, share = each["architecture"], float(each["value"])
        lines.append([f"{name} (published)", f"{share:.1f}%", None, None, None])
    accuracies = _accuracies(found)
    figure = grouped_bars(bars, source_colors(eps, eps), "shape decisions (%)")
    columns = ["source", "shape", "for either cue", "decisions", "images"]
    return [
        Section(
            "Shape or texture",
            [
                "Images have the shape of one category and the texture of another. Of the "
                "decisions for either, the share for the shape is the shape bias (Geirhos "
                "et al. 2019): people decided by shape, networks trained on ImageNet mostly "
                "by texture. Intervals are 95 %, over "
                "the draw of images. Shares of networks that know other categories are of "
                "other images and cannot be compared."
            ],
            [(figure, "Share of shape decisions among those for either cue.")],
            [
                Table(
                    columns,
                    lines,
                    "Decisions for the shape among those for either cue.",
                ),
                *accuracies,
            ],
        )
    ]


def _accuracies(found: Mapping[str, Mapping[str, Mapping[str, Row]]]) -> list[Table]:
    """Return the table of accuracies by each cue, where images have any."""
    lines: list[list[object]] = []
    for label, of_source in found.items():
        for name, of_metric in of_source.items():
            shares = [
                row and format_percent_ci(row.value, row.low, row.high)
                for row in map(of_metric.get, _ACCURACIES)
            ]
            if any(shares):
                lines.append([name, *shares, label])
    if not lines:
        return []
    columns = ["source", *_ACCURACIES.values(), "images"]
    title = (
        "Decisions by one cue, whatever the other is, and on images without conflict."
    )
    return [Table(columns, lines, title)]
