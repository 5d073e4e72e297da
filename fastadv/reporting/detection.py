"""The section on detection: average precision clean, attacked and corrupted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TypeAlias, cast

from fastadv.reporting.figures.bars import MOST_GROUPS, Bar, grouped_bars
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.literature import read_published
from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.threats import source_threat, training_label
from fastadv.results.detection_settings import DetectionSetting
from fastadv.results.row import Row
from fastadv.results.table import Arrays
from fastadv.statistics.intervals import mean_interval
from fastadv.text_tables import format_percent_ci

# Metrics of all classes, as columns.
_METRICS = {
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "box_ap75": "box AP75",
    "box_ap_small": "small",
    "box_ap_medium": "medium",
    "box_ap_large": "large",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "mask_ap75": "mask AP75",
}
_TASKS = {"detection": "detection", "instance_segmentation": "instance segmentation"}

# What is one line of a table: the target, the training of the detector, and the source.
Place: TypeAlias = tuple[str, str, str]
Values: TypeAlias = dict[str, dict[int, Row]]  # by metric and seed


def detection_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "detection".

    Args:
        rows: Rows of that kind, oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours.
        arrays: Reads the arrays of a row; detection needs none.
    """
    clean: dict[Place, Values] = {}
    attacked: dict[tuple[Place, str], Values] = {}
    corrupted: dict[Place, dict[tuple[str, int], Values]] = {}
    eps: dict[str, float | None] = {}
    for row in rows:
        place, setting = _place(row), _setting(row)
        eps[_source(row)] = row.source.eps
        if row.attack is not None:
            what = f"{row.attack}, {row.attack.objective} loss"
            if setting.corruption is not None:
                what += f", on images with {setting.corruption} {setting.severity}"
            values = attacked.setdefault((place, what), {})
        elif setting.corruption is not None and setting.severity is not None:
            kinds = corrupted.setdefault(place, {})
            values = kinds.setdefault((setting.corruption, setting.severity), {})
        else:
            values = clean.setdefault(place, {})
        values.setdefault(row.metric, {})[row.seed] = row
    tables = [_table(clean), *_attacked(attacked, clean), *_corrupted(corrupted, clean)]
    tables += [*_per_class(clean), _published(clean, rows, names)]
    figures = []
    bars: dict[str, dict[str, Bar]] = {}
    for (target, trained, source), values in clean.items():
        for metric in ("box_ap", "mask_ap"):
            if metric in values:
                group = f"{target}: {_METRICS[metric]}, {trained}"
                value, low, high = _summary(values[metric])
                bars.setdefault(group, {})[source] = Bar(value, low, high)
    if bars:
        shown = dict(list(bars.items())[:MOST_GROUPS])
        figure = grouped_bars(shown, source_colors(eps, eps), "average precision (%)")
        figures.append((figure, "Average precision of boxes and masks by source."))
    return [
        Section(
            "Detection and instance segmentation",
            [
                "AP is COCO's average precision, the mean over ten thresholds of the "
                "intersection over union from 0.5 to 0.95 and over classes; small, medium "
                "and large objects are those below 32 x 32, below 96 x 96 and above. With "
                "one or two seeds, intervals are 95 % over the draw of test images; from "
                "three seeds on, they are 95 % over seeds, and values are means.",
                "Attacks maximise the losses of the detector within a ball around each "
                "image and keep their last iterate, so that they bound robustness from "
                "above only.",
            ],
            figures,
            [table for table in tables if table.rows],
        )
    ]


def _setting(row: Row) -> DetectionSetting:
    return cast(DetectionSetting, row.setting)


def _source(row: Row) -> str:
    """Return the network that the backbone began as, and how that was trained."""
    if _setting(row).scratch:
        return f"{row.source.name}, from scratch"
    trained = training_label(source_threat(row), row.source.kind)
    return f"{row.source.name}, {trained}"


def _place(row: Row) -> Place:
    setting = _setting(row)
    plain = DetectionSetting(
        **{
            name: value
            for name, value in vars(setting).items()
            if name not in ("corruption", "severity", "num_train")
        }
    )
    images = "" if setting.num_images is None else f" ({setting.num_images} images)"
    return row.target.name + images, plain.label(), _source(row)


def _summary(by_seed: Mapping[int, Row]) -> tuple[float, float | None, float | None]:
    """Return the mean over seeds, and its interval: over images if there are few seeds."""
    rows = list(by_seed.values())
    if len(rows) == 1:
        return rows[0].value, rows[0].low, rows[0].high
    if len(rows) == 2:
        return fmean(row.value for row in rows), None, None
    return mean_interval([row.value for row in rows])


def _cell(values: Values, metric: str) -> str | None:
    found = values.get(metric)
    return None if not found else format_percent_ci(*_summary(found))


def _table(clean: Mapping[Place, Values]) -> Table:
    metrics = [m for m in _METRICS if any(m in values for values in clean.values())]
    lines: list[list[object]] = []
    for (target, trained, source), values in clean.items():
        seeds = values.get("box_ap", {})
        cells = [_cell(values, metric) for metric in metrics]
        images = next((row.n for row in seeds.values()), None)
        lines.append([target, source, *cells, len(seeds), images, trained])
    columns = ["target", "source", *(_METRICS[m] for m in metrics)]
    columns += ["seeds", "images", "detector"]
    return Table(columns, lines, "Average precision on images as they are, percent.")


def _attacked(
    attacked: Mapping[tuple[Place, str], Values], clean: Mapping[Place, Values]
) -> Iterable[Table]:
    attacks = dict.fromkeys(attack for _, attack in attacked)
    lines: list[list[object]] = []
    for attack in attacks:
        under = {place: v for (place, name), v in attacked.items() if name == attack}
        for (target, trained, source), values in under.items():
            plain = clean.get((target, trained, source), {})
            lines.append(
                [
                    target,
                    source,
                    attack,
                    *(
                        _cell(of, metric)
                        for metric in ("box_ap", "box_ap50", "mask_ap")
                        for of in (plain, values)
                    ),
                    trained,
                ]
            )
    columns = ["target", "source", "attack"]
    for name in ("box AP", "box AP50", "mask AP"):
        columns += [name, f"{name} attacked"]
    columns.append("detector")
    yield Table(columns, lines, "Average precision under attack, percent.")


def _corrupted(
    corrupted: Mapping[Place, Mapping[tuple[str, int], Values]],
    clean: Mapping[Place, Values],
) -> Iterable[Table]:
    """Make the tables of the mean over corruptions, and of each kind."""
    lines: list[list[object]] = []
    kinds: list[list[object]] = []
    for place, conditions in corrupted.items():
        target, trained, source = place
        by_kind: dict[str, list[float]] = {}
        for (kind, _severity), values in conditions.items():
            if "box_ap" in values:
                by_kind.setdefault(kind, []).append(_summary(values["box_ap"])[0])
        if not by_kind:
            continue
        mean = fmean(value for each in by_kind.values() for value in each)
        plain = clean.get(place, {}).get("box_ap")
        whole = None if plain is None else _summary(plain)[0]
        share = None if not whole else f"{100 * mean / whole:.0f}%"
        severities = {severity for _, severity in conditions}
        lines.append(
            [
                target,
                source,
                None if whole is None else format_percent_ci(whole),
                format_percent_ci(mean),
                share,
                len(by_kind),
                ", ".join(map(str, sorted(severities))),
                trained,
            ]
        )
        kinds += [
            [target, source, kind.replace("_", " "), format_percent_ci(fmean(each))]
            for kind, each in by_kind.items()
        ]
    columns = ["target", "source", "as they are", "corrupted", "share", "corruptions"]
    columns += ["severities", "detector"]
    yield Table(
        columns,
        lines,
        "Box AP under corruption, percent: the mean over corruptions and severities, and "
        "its share of the AP of images as they are (mPC and rPC of Michaelis et al. 2019).",
    )
    title = "Box AP under each corruption, mean over severities, percent."
    yield Table(["target", "source", "corruption", "box AP"], kinds, title)


def _per_class(clean: Mapping[Place, Values]) -> Iterable[Table]:
    lines: list[list[object]] = []
    for (target, trained, source), values in clean.items():
        names = [m.partition(":")[2] for m in values if m.startswith("box_ap:")]
        for name in names if len(names) > 1 else ():
            cells = [_cell(values, f"{what}_ap:{name}") for what in ("box", "mask")]
            lines.append([target, source, name, *cells, trained])
    columns = ["target", "source", "class", "box AP", "mask AP", "detector"]
    yield Table(columns, lines, "Average precision of each class, percent.")


def _published(
    clean: Mapping[Place, Values], rows: Sequence[Row], names: Mapping[str, str]
) -> Table:
    """Make the table of published average precisions, with ours on those data sets."""
    published: dict[tuple[str, str, str], dict[str, str]] = {}
    for line in read_published("salman2020_detection"):
        if "table" in line["table"]:
            key = line["dataset"], line["task"], line["metric"]
            published.setdefault(key, {})[line["source_network"]] = line["value"]
    ours: dict[tuple[str, str, str], list[str]] = {}
    targets = {
        row.target.name: names.get(row.target.name, row.target.name) for row in rows
    }
    masked = {place for place, values in clean.items() if "mask_ap" in values}
    for place, values in clean.items():
        name = targets.get(place[0], place[0]).lower()
        data = next((d for d in ("voc", "coco") if name.startswith(d)), "")
        task = "instance_segmentation" if place in masked else "detection"
        for metric in ("box_ap", "mask_ap"):
            if cell := _cell(values, metric):
                ours.setdefault((data, task, metric), []).append(f"{place[2]}: {cell}")
    lines = [
        [
            data.upper(),
            _TASKS[task],
            _METRICS[metric],
            f"{float(value['standard']):.2f}",
            f"{float(value['robust']):.2f}",
            f"{float(value['robust']) - float(value['standard']):+.2f}",
            "; ".join(ours.get((data, task, metric), [])) or None,
        ]
        for (data, task, metric), value in published.items()
    ]
    columns = ["data", "task", "metric", "standard", "robust", "difference", "ours"]
    return Table(
        columns,
        lines,
        "Published average precisions of Salman et al. 2020 (figure 4: Detectron2, one "
        "network per line, robust is the best l2 radius), percent. Ours stand beside them "
        "where the data set is VOC or COCO.",
    )
