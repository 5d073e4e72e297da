"""The sections on what networks see: input gradients, visualised units, inversions.

The report draws a few pictures of each analysis, the gallery all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure

from fastadv.reporting.figures.gallery import PictureRow, draw_gallery
from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.threats import source_threat, training_label
from fastadv.results.row import Row
from fastadv.results.seeing_settings import (
    GradientSetting,
    InversionSetting,
    VisualizationSetting,
)
from fastadv.results.table import Arrays

_COLUMNS = 8  # Images side by side.
_FEW = 2  # Figures of one analysis in a report.
_MANY = 24  # Figures of one analysis in a gallery.

# Rows of one analysis of several networks: the first row and all rows of each network.
Group = list[list[Row]]
Drawn = list[tuple[Figure, str]]
Values = Mapping[str, np.ndarray]

_START = {
    "noise": "gray with noise",
    "images": "another image",
    "gaussian": "a fitted Gaussian",
}
_OF = {"label": "", "prediction": "\nof the predicted class"}


def gallery_sections(rows: Sequence[Row], arrays: Arrays) -> list[Section]:
    """Make the sections of a gallery: all pictures of networks that rows have.

    Args:
        rows: Rows of a results table.
        arrays: Reads the arrays of a row.
    """
    found: list[Section] = []
    for kind, make in _SECTIONS.items():
        of_kind = [row for row in rows if row.kind == kind]
        if of_kind:
            found += make(of_kind, arrays, _MANY)
    return found


def gradient_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "gradients".

    Args:
        rows: Rows of that kind, oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours; these need none.
        arrays: Reads the arrays of a row.
    """
    return _gradients(rows, arrays, _FEW)


def visualization_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "visualization"; see `gradient_sections`."""
    return _visualization(rows, arrays, _FEW)


def inversion_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "inversion"; see `gradient_sections`."""
    return _inversion(rows, arrays, _FEW)


def _grouped(rows: Sequence[Row]) -> Iterator[Group]:
    """Yield the analyses that show the same of several networks, standard ones first."""
    found: dict[object, dict[object, dict[str, Row]]] = {}
    for row in rows:
        target = row.target.name, row.target.fingerprint, row.seed
        of_network = found.setdefault((*target, row.setting.key()), {})
        name = row.source.name, row.source.digest, row.target.resolution, row.setting
        of_network.setdefault(name, {})[row.metric] = row
    for of_network in found.values():
        group = [list(each.values()) for each in of_network.values()]
        yield sorted(group, key=lambda each: bool(each[0].source.eps))


def _note(row: Row, *lines: str) -> str:
    trained = training_label(source_threat(row), row.source.kind)
    return "\n".join([f"{trained}, {row.target.resolution} px", *lines])


def _value(row: Row) -> str:
    if row.low is None or row.high is None:
        return f"{row.value:.3g}"
    return f"{row.value:.3g} [{row.low:.3g}, {row.high:.3g}]"


def readable(name: str) -> str:
    """Return the first noun of a WordNet identifier such as n01443537, where timm has it."""
    if not re.fullmatch(r"n\d{8}", name):
        return name
    try:
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo("imagenet-22k")
        return str(info.label_name_to_description(name)).partition(",")[0]
    except (ImportError, KeyError):
        return name


def _drawn(
    title: str, caption: str, rows: Sequence[PictureRow], columns: Sequence[str]
) -> Drawn:
    """Draw rows in figures of eight columns; missing images shorten all rows."""
    count = min(len(row.images) for row in rows)
    parts = [
        slice(first, min(first + _COLUMNS, count))
        for first in range(0, count, _COLUMNS)
    ]
    return [
        (draw_gallery(title, [row.part(p) for row in rows], columns[p]), caption)
        for p in parts
    ]


def _with_arrays(group: Group, arrays: Arrays) -> list[tuple[Row, Values]]:
    return [(each[0], values) for each in group if (values := arrays(each[0]))]


# ---- input gradients ----


def _gradients(rows: Sequence[Row], arrays: Arrays, most: int) -> list[Section]:
    figures: Drawn = []
    lines: list[list[object]] = []
    for group in _grouped(rows):
        figures += _gradient_figures(_with_arrays(group, arrays))[:most]
        for of_network in group:
            by_metric = {row.metric: row for row in of_network}
            row = of_network[0]
            numbers = [
                _value(by_metric[metric]) if metric in by_metric else None
                for metric in ("alignment", "cosine")
            ]
            lines.append(
                [
                    row.target.name,
                    row.source.name,
                    row.target.resolution,
                    *numbers,
                    row.n,
                ]
            )
    columns = ["target", "source", "px", "alignment", "cosine", "images"]
    return [
        Section(
            "Input gradients",
            [
                "The gradient of the loss by the pixels says which change of each pixel "
                "raises the loss most. Gradients of robust networks follow the object, those "
                "of standard ones look like noise (Tsipras et al. 2019). The alignment "
                "|<x, g>| / |g| of the normalised image x with the gradient g of the "
                "predicted logit (Etmann et al. 2019) and the cosine |<x, g>| / (|x| |g|) "
                "are means over images with 95 % intervals. The alignment of a linear "
                "network without bias is the distance to its decision boundary."
            ],
            figures,
            [Table(columns, lines, "How much of the image lies along the gradient.")],
        )
    ]


def _gradient_figures(found: Sequence[tuple[Row, Values]]) -> Drawn:
    if not found:
        return []
    first, values = found[0]
    names = first.target.class_names
    rows = [PictureRow("image", first.target.name, values["images"])]
    for row, values in found:
        of = cast(GradientSetting, row.setting).loss_of
        cosines = [f"cosine {each:.2f}" for each in values["cosine"]]
        rows.append(
            PictureRow(
                row.source.name,
                _note(row, f"gradient of the loss{_OF[of]}"),
                values["gradients"],
                cosines[: len(values["gradients"])],
                values["finite"],
            )
        )
    title = "Gradient of the loss with respect to the pixels"
    caption = (
        f"{title}: each clipped to three standard deviations around its mean and scaled to "
        "the range of pixels. Below it, the cosine of image and gradient."
    )
    columns = [readable(names[k]) if names else "" for k in values["classes"]]
    return _drawn(title, caption, rows, columns)


# ---- units and classes ----


def _visualization(rows: Sequence[Row], arrays: Arrays, most: int) -> list[Section]:
    figures: Drawn = []
    lines: list[list[object]] = []
    for group in _grouped(rows):
        figures += _maximised(_with_arrays(group, arrays))[:most]
        for of_network in group:
            values = arrays(of_network[0])
            for row in of_network:
                setting = cast(VisualizationSetting, row.setting)
                unit = row.metric.partition(":")[2]
                names = values["names"].tolist() if values else []
                before = (
                    float(values["before"][names.index(unit)].mean())
                    if unit in names
                    else None
                )
                lines.append(
                    [
                        row.target.name,
                        row.source.name,
                        _layer(setting),
                        readable(unit),
                        setting.start,
                        setting.num_steps,
                        f"{setting.eps:.3g}",
                        None if before is None else f"{before:.3g}",
                        _value(row),
                        row.n,
                    ]
                )
    columns = [
        "target", "source", "layer", "unit", "start", "steps", "l2", "at the start",
        "reached", "images",
    ]  # fmt: skip
    return [
        Section(
            "Units and classes",
            [
                "Images are moved by gradient ascent in an L2 ball until a unit of a layer, "
                "or the log-probability of a class, is large (Engstrom et al. 2019; "
                "Santurkar et al. 2019). What appears is what raises the unit. A unit of one "
                "network has no counterpart in another: only classes can be compared across "
                "networks. "
                "Values are means over starting images, with 95 % intervals of three or more."
            ],
            figures,
            [Table(columns, lines, "What the ascent reached.")],
        )
    ]


def _layer(setting: VisualizationSetting) -> str:
    classes = setting.layer == "log_softmax"
    return "log-probability of class" if classes else setting.layer


def _maximised(found: Sequence[tuple[Row, Values]]) -> Drawn:
    if not found:
        return []
    figures: Drawn = []
    first, values = found[0]
    setting = cast(VisualizationSetting, first.setting)
    names = [readable(name) for name in values["names"].tolist()]
    units, count = values["after"].shape
    of_classes = setting.layer == "log_softmax"
    layer = (
        "log-probabilities of classes" if of_classes else f"units of {setting.layer}"
    )
    caption = (
        f"Images that maximise {layer}, starting from {_START[setting.start]}; the L2 budget "
        "stands beside each row, and below each image the value at the start and the one "
        "that was reached."
    )
    # The longer side of units x starting images becomes the columns.
    across = units >= count
    for i in range(count if across else units):
        which = np.s_[:, i] if across else np.s_[i]
        title = (
            f"{layer}{f', start {i + 1} of {count}' if count > 1 else ''}"
            if across
            else f"{layer}: {names[i]}"
        )
        starts = np.broadcast_to(values["starts"], values["images"].shape)[which]
        rows = [PictureRow("start", _START[setting.start], starts)]
        rows += [_ascended(row, each, which) for row, each in found]
        columns = [name if of_classes else f"unit {name}" for name in names]
        if not across:
            columns = [f"start {k + 1}" for k in range(count)]
        figures += _drawn(title[0].upper() + title[1:], caption, rows, columns)
    return figures


def _ascended(row: Row, values: Values, which: Any) -> PictureRow:
    """Return the images that a network moved, with what they reached."""
    setting = cast(VisualizationSetting | InversionSetting, row.setting)
    before, after = values["before"][which], values["after"][which]
    # Relative distances and log-probabilities end near 0.
    form = ".3g"
    if isinstance(setting, InversionSetting) or setting.layer == "log_softmax":
        form = "z.2f"
    return PictureRow(
        row.source.name,
        _note(row, f"l2 {setting.eps:.3g}, {setting.num_steps} steps"),
        values["images"][which],
        [f"{a:{form}} \u2192 {b:{form}}" for a, b in zip(before, after, strict=True)],
        np.isfinite(after),
    )


# ---- inversion and interpolation ----


def _inversion(rows: Sequence[Row], arrays: Arrays, most: int) -> list[Section]:
    figures: Drawn = []
    lines: list[list[object]] = []
    for group in _grouped(rows):
        found = _with_arrays(group, arrays)
        blends = cast(InversionSetting, group[0][0].setting).blends
        figures += (_inverted if len(blends) == 1 else _between)(found)[:most]
        for of_network in group:
            by_metric = {row.metric: row for row in of_network}
            for metric, row in by_metric.items():
                setting = cast(InversionSetting, row.setting)
                if metric == "image_distance":
                    continue
                blend = float(metric.partition(":")[2] or 1)
                nearer = by_metric.get("image_distance") if blend == 1 else None
                lines.append(
                    [
                        row.target.name,
                        row.source.name,
                        setting.layer,
                        setting.start,
                        setting.num_steps,
                        f"{setting.eps:.3g}",
                        blend,
                        _value(row),
                        None if nearer is None else _value(nearer),
                        row.n,
                    ]
                )
    columns = [
        "target", "source", "layer", "start", "steps", "l2", "share of the target",
        "distance", "distance of the image", "images",
    ]  # fmt: skip
    return [
        Section(
            "Inversion of representations",
            [
                "An image is moved until a network represents it like a target image, or "
                "between two images (Engstrom et al. 2019). If it then looks like the "
                "target, the representation holds what people see; with standard networks "
                "it often looks like the start. The distance |r(x) - r| / |r| is that of "
                "representations. The distance of the image is that of the pixels to the "
                "target, divided by that of the start: it is below 1 where the image came "
                "nearer. Values are means over images, with 95 % intervals."
            ],
            figures,
            [Table(columns, lines, "How near the representation came.")],
        )
    ]


def _inverted(found: Sequence[tuple[Row, Values]]) -> Drawn:
    if not found:
        return []
    first, values = found[0]
    setting = cast(InversionSetting, first.setting)
    start = _START[setting.start]
    rows = [
        PictureRow("target", first.target.name, values["targets"]),
        PictureRow("start", start, values["starts"]),
        *(_ascended(row, each, 0) for row, each in found),
    ]
    title = f"Images whose representation by {setting.layer} is that of the target"
    caption = (
        f"{title}, starting from {start}. Below each image stands the relative distance of "
        "representations at the start and the one that was reached."
    )
    return _drawn(title, caption, rows, [""] * len(values["targets"]))


def _between(found: Sequence[tuple[Row, Values]]) -> Drawn:
    figures: Drawn = []
    for i in range(min((len(values["targets"]) for _, values in found), default=0)):
        rows = []
        for row, values in found:
            moved = _ascended(row, values, np.s_[:, i])
            ends = values["others"][i : i + 1], values["targets"][i : i + 1]
            images = np.concatenate([ends[0], moved.images, ends[1]])
            under = ["", *moved.under, ""]
            seen = np.concatenate([[True], np.isfinite(values["after"][:, i]), [True]])
            rows.append(PictureRow(moved.name, moved.note, images, under, seen))
        setting = cast(InversionSetting, found[0][0].setting)
        columns = [f"{blend:.0%}" for blend in setting.blends]
        title = f"Between two images, by {setting.layer}"
        caption = (
            f"Images whose representation by {setting.layer} lies between those of two "
            f"images, starting from {_START[setting.start]}; above each stands the share of "
            "the target, below it the relative distance at the start and the one that was "
            "reached."
        )
        figures += _drawn(title, caption, rows, ["other image", *columns, "target"])
    return figures


# Kind -> its sections, of rows, arrays and the largest number of figures of an analysis.
_SECTIONS = {
    "gradients": _gradients,
    "visualization": _visualization,
    "inversion": _inversion,
}
