"""Sections on what is trained with: number of images, blocks that train, epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fastadv.groups import grouped
from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.cells import Cell, with_most_images
from fastadv.reporting.transfer.condition import Condition
from fastadv.reporting.transfer.curves import Axis, draw_curves, even_axis, log_axis
from fastadv.reporting.transfer.findings import (
    brief,
    comparison_columns,
    rise_finding,
    verdict,
    wins_finding,
)
from fastadv.reporting.transfer.pairs import Comparison
from fastadv.reporting.transfer.study import (
    Item,
    Study,
    family_title,
    line_name,
    make_table,
)


def against_images(study: Study) -> Section | None:
    """Show accuracy against the number of training images."""
    axis = log_axis("training images", lambda c: c.n, study.cells)
    name = line_name(study.cells)
    drawn = draw_curves(
        study, study.cells, axis, lambda c: study.labels[c.condition], name
    )
    if drawn is None:
        return None
    why = "one number of images"
    table = study.pivot(
        drawn.items,
        {"arch": lambda c: c.arch, "source": lambda c: c.label},
        lambda c: f"n = {c.n}",
        lambda c: c.n,
    )
    return Section(
        "Few training images",
        [
            "Numbers of images are on a logarithmic scale. " + study.interval_note,
            *study.left_out(study.cells, drawn.items, why, needs_eps=False),
        ],
        [drawn.captioned("Accuracy against the number of training images.")],
        [table],
        findings=rise_finding(drawn.panels, "the fewest to the most images"),
    )


def gain_against_images(study: Study) -> Section | None:
    """Show robust - standard against the number of training images."""
    pairs = study.tests.groups["images"]
    several = len({pair.arch for pair in pairs}) > 1

    def name(pair: Comparison) -> str:
        return f"{pair.arch}, {pair.label}" if several else pair.label

    axis = log_axis("training images", lambda pair: pair.n, pairs)
    drawn = draw_curves(
        study, pairs, axis, lambda pair: study.labels[pair.condition], name
    )
    if drawn is None:
        return None
    lines = [study.place(pair) | comparison_columns(study, pair) for pair in pairs]
    why = "no pair of a robust and a standard source at two numbers of images"
    return Section(
        "Gain with few training images",
        [
            study.more_tests,
            "Points without a vertical line have no interval: they are of fewer than "
            "three seeds, or of seeds that agree exactly.",
            *study.left_out(study.cells, pairs, why),
        ],
        [drawn.captioned("Robust - standard against the number of training images.")],
        [make_table(lines, "Robust - standard, points of percent.")],
        findings=_image_findings(study, pairs),
    )


def _image_findings(study: Study, pairs: Sequence[Comparison]) -> list[str]:
    """Say who is ahead with the fewest and the most images, and how certain that is."""
    groups = grouped(
        pairs, lambda p: f"{study.labels[p.condition]}, {p.arch}, {p.label}"
    )
    lines: dict[Comparison, str] = {}
    for title, group in groups.items():
        ordered = sorted(group, key=lambda pair: pair.n)
        fewest = ordered[0]
        parts = [
            f"with {pair.n} images {verdict(pair)} than standard"
            for pair in dict.fromkeys((fewest, ordered[-1]))
        ]
        lines[fewest] = f"{title}: {'; '.join(parts)}."
    return brief(f"With the fewest images. {wins_finding([*lines])}", lines)


def by_blocks(study: Study) -> Section | None:
    """Show accuracy against the number of blocks that train."""
    cells = [c for c in study.cells if c.condition.mode == "last_k_blocks"]
    axis = even_axis(
        "trained blocks",
        lambda c: c.condition.k_blocks,
        sorted({c.condition.k_blocks for c in cells}),
        lambda k: str(k) if k else "head only",
    )
    return _over_families(
        study,
        cells,
        lambda item: replace(item.condition, mode="", k_blocks=0),
        axis,
        "Number of trained blocks",
    )


def against_epochs(study: Study) -> Section | None:
    """Show accuracy against the length of fine-tuning."""
    cells = [c for c in study.cells if c.epochs]
    return _over_families(
        study,
        cells,
        lambda item: replace(item.condition, epochs=0),
        log_axis("epochs", lambda c: c.epochs, cells),
        "Length of fine-tuning",
    )


def _over_families(
    study: Study,
    cells: Sequence[Cell],
    family: Callable[[Item], Condition],
    axis: Axis[Cell],
    title: str,
) -> Section | None:
    """Show accuracy under conditions that are alike but for what is on the x axis."""
    most = with_most_images(cells, family)
    drawn = draw_curves(study, most, axis, family_title(most, family), line_name(most))
    if drawn is None:
        return None
    why = f"one number of {axis.label}"
    left_out = study.left_out(cells, drawn.items, why, needs_eps=False)
    return Section(
        title,
        [study.interval_note, *left_out],
        [drawn.captioned(f"Accuracy against the number of {axis.label}.")],
        findings=rise_finding(drawn.panels, f"the fewest to the most {axis.label}"),
    )
