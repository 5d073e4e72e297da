"""The section on influence: which training images predictions rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure

from fastadv.reporting.figures.lines import Panel, Point, draw_panels
from fastadv.reporting.figures.matrices import Matrix, draw_matrices
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.figures.pictures import image_rows
from fastadv.reporting.literature import read_published
from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.threats import threat, training_label
from fastadv.results.analysis_settings import InfluenceSetting
from fastadv.results.row import Row
from fastadv.results.table import Arrays
from fastadv.statistics import wilson
from fastadv.text_tables import format_percent_ci

_PUBLISHED = {
    "published, standard": "#767676",
    "published, l2 3": "#a3a3a3",
}
_RANKS = (1, 2, 3, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


def influence_sections(
    rows: Sequence[Row], names: Mapping[str, str], arrays: Arrays
) -> list[Section]:
    """Make the section of rows of kind "influence".

    Args:
        rows: Rows of that kind, oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours; influence needs none.
        arrays: Reads the arrays of a row.
    """
    # Source -> metric -> row, of each data set and setting.
    found: dict[object, dict[str, dict[str, Row]]] = {}
    for row in rows:
        of_images = found.setdefault((row.target, row.setting, row.seed), {})
        of_images.setdefault(row.source.name, {})[row.metric] = row
    lines = []
    figures: list[tuple[Figure, str]] = []
    for of_images in found.values():
        sources = {name: next(iter(each.values())) for name, each in of_images.items()}
        for name, each in of_images.items():
            lines.append(
                [
                    sources[name].target.name,
                    name,
                    _percent(each.get("same_class_top1")),
                    _percent(each.get("same_class_3_of_5")),
                    _chance(arrays(sources[name])),
                    sources[name].setting.label(),
                ]
            )
        figures += _figures(sources, arrays)
    top, of_five = (
        _published(f"share_{metric}_same_class")
        for metric in ("most_influential", "at_least_3_of_top5")
    )
    for (name, first), (_, second) in zip(top, of_five, strict=True):
        shares = f"{first['value']}%", f"{second['value']}%"
        lines.append(
            [first["dataset"], name, *shares, 10.0, f"{first['images']} images"]
        )
    columns = [
        "target", "source", "most influential of the same class",
        "at least 3 of the top 5", "by chance", "images",
    ]  # fmt: skip
    return [
        Section(
            "Influence of training images",
            [
                "The influence of a training image on a test image estimates by how much "
                "the loss of the latter would grow if the former were left out of "
                "training, through the last layer alone (Koh and Liang 2017). Utrera et "
                "al. 2021 find that the most influential images of a robust source "
                "are more often of the class of the test image. Intervals are 95 %, over "
                "the draw of test images. By chance is the share of training images of "
                "that class."
            ],
            figures,
            [Table(columns, lines, "Most influential training images, percent.")],
        )
    ]


def _published(metric: str, queries: str = "test") -> list[tuple[str, dict[str, str]]]:
    """Return published numbers with the names of their sources."""
    found = []
    for each in read_published("utrera2021_influence"):
        if each["metric"] == metric and each["queries"] == queries:
            training = training_label(threat(each["norm"], each["eps"]))
            name = f"{each['architecture']} {training}, {each['dataset']} (published)"
            found.append((name, each))
    return found


def _published_curves(queries: str) -> dict[str, dict[float, Point]]:
    found: dict[str, dict[float, Point]] = {}
    for metric in ("share_most_influential_same_class", "share_rank_r_same_class"):
        for _, each in _published(metric, queries):
            value = float(each["value"])
            name = training_label(threat(each["norm"], each["eps"]))
            curve = found.setdefault(f"published, {name}", {})
            curve[float(each.get("rank") or 1)] = Point(value, value, value)
    return found


def _percent(row: Row | None) -> str | None:
    return None if row is None else format_percent_ci(row.value, row.low, row.high)


def _chance(found: Mapping[str, np.ndarray]) -> float | None:
    if not found:
        return None
    counts = np.bincount(found["train_labels"])
    return round(100 * float(counts[found["labels"]].mean() / counts.sum()), 1)


def _figures(sources: Mapping[str, Row], arrays: Arrays) -> list[tuple[Figure, str]]:
    found = {name: values for name, row in sources.items() if (values := arrays(row))}
    if not found:
        return []
    eps = {name: row.source.eps for name, row in sources.items()}
    first = next(iter(sources.values()))
    curves = {}
    for name, values in found.items():
        shares, n = values["share_by_rank"], len(values["labels"])
        curves[name] = {
            float(rank): Point(
                100 * float(shares[rank - 1]),
                *(100 * end for end in wilson(float(shares[rank - 1]) * n, n)),
            )
            for rank in _RANKS
            if rank <= len(shares)
        }
    curves |= _published_curves(cast(InfluenceSetting, first.setting).queries)
    panel = Panel(first.target.name, curves)
    labels = "rank of the training image by influence", "same class, percent"
    maps = [
        Matrix(name, values["map"], "test images", "training images")
        for name, values in found.items()
    ]
    figures = [
        (
            draw_panels([panel], source_colors(eps, eps) | _PUBLISHED, *labels),
            "Share of test images whose training image of each rank is of their class. "
            "Published: ResNet-50, CIFAR-10, 3,200 training images (Utrera et al. 2021).",
        ),
        (
            draw_matrices(maps, _scale(maps), "influence, relative"),
            "Influence of training images (columns) on test images (rows), both "
            "sorted by class. Each row is divided by its largest value; helpful is blue.",
        ),
    ]
    pairs = {name: torch.from_numpy(each["pairs"]) for name, each in found.items()}
    title = "Test images, and the most helpful training image of each source"
    shown = {"test image": next(iter(pairs.values()))[:, 0]}
    shown |= {name: each[:, 1] for name, each in pairs.items()}
    figures.append((image_rows(title, shown), f"{title}."))
    return figures


def _scale(maps: Sequence[Matrix]) -> tuple[float, float]:
    largest = max(float(np.quantile(np.abs(each.values), 0.99)) for each in maps)
    return -(largest or 1), largest or 1
