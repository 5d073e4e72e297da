"""Few training images, and the length of fine-tuning: curves, and robust sources' gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fastadv.reporting.figures.lines import Panel, Point, line_panels
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.cells import Cell, with_most_images
from fastadv.reporting.transfer.comparisons import Comparison
from fastadv.reporting.transfer.findings import (
    brief,
    comparison_cells,
    pair_label,
    published_difference,
    rise_finding,
    verdict,
    wins_finding,
)
from fastadv.reporting.transfer.settings import Setting
from fastadv.reporting.transfer.study import (
    INTERVAL_NOTE,
    Study,
    family_title,
    line_colors,
    line_name,
    make_panels,
    make_table,
    radius,
)


def against_images(study: Study) -> Section | None:
    """Accuracy against the number of training images."""
    cells = study.cells
    name = line_name(cells)
    panels = make_panels(
        study,
        cells,
        lambda c: study.labels[c.setting],
        name,
        lambda c: math.log2(c.n),
        least=2,
    )
    if not panels:
        return None
    titles = {panel.title for panel in panels}
    shown = [cell for cell in cells if study.labels[cell.setting] in titles]
    figure = line_panels(
        panels,
        colors=line_colors(shown, name),
        ticks={math.log2(c.n): str(c.n) for c in shown},
        x_label="training images",
        y_label="accuracy (%)",
    )
    table = study.pivot(
        shown,
        {"arch": lambda c: c.arch, "source": lambda c: c.label},
        lambda c: f"n = {c.n}",
        lambda c: c.n,
    )
    return Section(
        "Few training images",
        [
            "Numbers of images are on a logarithmic scale. " + INTERVAL_NOTE,
            *study.left_out(cells, shown, "one number of images", needs_eps=False),
        ],
        [(figure, "Accuracy against the number of training images.")],
        [table],
        findings=rise_finding(panels, "the fewest to the most images"),
    )


def gain_against_images(study: Study) -> Section | None:
    """Robust - natural against the number of training images."""
    pairs = study.comparisons["images"]
    by_setting: dict[Setting, list[Comparison]] = {}
    for pair in pairs:
        by_setting.setdefault(pair.robust.setting, []).append(pair)
    several = len({pair.robust.arch for pair in pairs}) > 1

    def name(pair: Comparison) -> str:
        label = pair_label(pair)
        return f"{pair.robust.arch}, {label}" if several else label

    panels = []
    for setting, of_setting in by_setting.items():
        series: dict[str, dict[float, Point]] = {}
        published: dict[str, dict[float, float]] = {}
        for pair in of_setting:
            line, x = name(pair), math.log2(pair.robust.n)
            point = Point(pair.difference, pair.low, pair.high)
            series.setdefault(line, {})[x] = point
            theirs = published_difference(study, pair)
            if theirs is not None:
                published.setdefault(line, {})[x] = theirs
        panels.append(Panel(study.labels[setting], series, published))
    if not panels:
        return None
    eps = {name(pair): radius(pair.robust) for pair in pairs}
    figure = line_panels(
        panels,
        colors=source_colors(eps, eps),
        ticks={math.log2(p.robust.n): str(p.robust.n) for p in pairs},
        x_label="training images",
        y_label="robust - standard (points)",
        zero=True,
    )
    lines = [
        {
            "setting": study.labels[pair.robust.setting],
            "arch": pair.robust.arch,
            "source": pair_label(pair),
            "n": pair.robust.n,
        }
        | comparison_cells(study, pair)
        for pair in pairs
    ]
    columns, rows = list(lines[0]), [list(line.values()) for line in lines]
    return Section(
        "Gain with few training images",
        [
            study.test_note,
            "Points without a line through them are of one seed, or of seeds that agree "
            "exactly.",
            *study.left_out(
                study.cells,
                [cell for pair in pairs for cell in (pair.robust, pair.standard)],
                "no pair of a robust and a standard source at two numbers of images",
            ),
        ],
        [(figure, "Robust - standard against the number of training images.")],
        [make_table(columns, rows, "Robust - standard, points of percent.")],
        findings=image_findings(study, pairs),
    )


def image_findings(study: Study, pairs: Sequence[Comparison]) -> list[str]:
    """At the fewest and the most images: who is ahead, and whether that is certain."""
    groups: dict[tuple[Setting, str, str], list[Comparison]] = {}
    for pair in pairs:
        key = (pair.robust.setting, pair.robust.arch, pair_label(pair))
        groups.setdefault(key, []).append(pair)
    lines: dict[Comparison, str] = {}
    fewest = []
    for (setting, arch, label), group in groups.items():
        ordered = sorted(group, key=lambda pair: pair.robust.n)
        fewest.append(ordered[0])
        said = [
            f"with {pair.robust.n} images {verdict(pair)} than standard"
            for pair in dict.fromkeys((ordered[0], ordered[-1]))
        ]
        title = study.labels[setting]
        lines[ordered[0]] = f"{title}, {arch}, {label}: {'; '.join(said)}."
    return brief(f"With the fewest images. {wins_finding(fewest)}", lines)


def by_blocks(study: Study) -> Section | None:
    """Accuracy against the number of blocks that train."""

    def family(cell: Cell) -> Setting:
        return replace(cell.setting, mode="", k_blocks=0)

    cells = [c for c in study.cells if c.setting.mode == "last_k_blocks"]
    ks = sorted({c.setting.k_blocks for c in cells})
    return _over_families(
        study,
        cells,
        family,
        lambda c: float(ks.index(c.setting.k_blocks)),
        {float(i): str(k) if k else "head only" for i, k in enumerate(ks)},
        "Number of trained blocks",
        "trained blocks",
    )


def against_epochs(study: Study) -> Section | None:
    """Accuracy against the length of fine-tuning."""

    def family(cell: Cell) -> Setting:
        return replace(cell.setting, epochs=0)

    cells = [c for c in study.cells if c.epochs]
    return _over_families(
        study,
        cells,
        family,
        lambda c: math.log2(c.epochs),
        {math.log2(c.epochs): str(c.epochs) for c in cells},
        "Length of fine-tuning",
        "epochs",
    )


def _over_families(
    study: Study,
    cells: Sequence[Cell],
    family: Callable[[Cell], Setting],
    place: Callable[[Cell], float],
    ticks: dict[float, str],
    title: str,
    x_label: str,
) -> Section | None:
    """Accuracy of settings that are alike but for what is on the x axis."""
    most = with_most_images(cells, family)
    name, title_of = line_name(most), family_title(most, family)
    panels = make_panels(study, most, title_of, name, place, least=2)
    if not panels:
        return None
    titles = {panel.title for panel in panels}
    shown = [cell for cell in most if title_of(cell) in titles]
    left_out = study.left_out(cells, shown, f"one number of {x_label}", needs_eps=False)
    figure = line_panels(
        panels,
        colors=line_colors(most, name),
        ticks=ticks,
        x_label=x_label,
        y_label="accuracy (%)",
    )
    findings = rise_finding(panels, f"the fewest to the most {x_label}")
    caption = f"Accuracy against the number of {x_label}."
    text = [INTERVAL_NOTE, *left_out]
    return Section(title, text, [(figure, caption)], findings=findings)
