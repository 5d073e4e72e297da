"""The section on the relative decline under attack, against what varies in a sweep.

Zhang et al. 2023 (2106.10989) vary the number of frozen layers, the learning rates of head
and trunk, the number of images per class, and corruptions of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from fastadv.reporting.figures.lines import Panel, Point, draw_panels, panel_caption
from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.condition import Condition
from fastadv.reporting.transfer.study import Study, line_colors, line_name, make_table
from fastadv.reporting.transfer.study_attack import Fall, falls_of


@dataclass(frozen=True)
class _Factor:
    """What varies: its name, its value of a network, and the condition without it."""

    name: str
    value: Callable[[Fall], float | None]
    without: Callable[[Condition], Condition]


def _recipe_value(name: str) -> Callable[[Fall], float | None]:
    def value(fall: Fall) -> float | None:
        found = dict(fall.cell.condition.recipe).get(name)
        return float(found) if found else None

    return value


def _without_recipe(name: str) -> Callable[[Condition], Condition]:
    def without(condition: Condition) -> Condition:
        # The candidates of a learning rate are that rate alone where nothing is chosen.
        left = [pair for pair in condition.recipe if pair[0] not in (name, f"{name}s")]
        return replace(condition, recipe=tuple(left))

    return without


def _blocks(fall: Fall) -> float | None:
    condition = fall.cell.condition
    return condition.k_blocks if condition.mode == "last_k_blocks" else None


def _images_per_class(fall: Fall) -> float | None:
    first = fall.cell.first  # Older rows do not state the number of classes.
    classes = first.target.num_classes or len(first.per_class_total)
    return fall.cell.n / classes if classes else None


def _side(condition: Condition) -> float | None:
    # Where nothing was reduced, the network sees as many pixels as it takes.
    return condition.downscale or condition.resolution or None


_FACTORS = (
    _Factor("trained blocks", _blocks, lambda c: replace(c, k_blocks=0)),
    _Factor("images per class", _images_per_class, lambda c: c),
    _Factor("learning rate of the trunk", _recipe_value("lr"), _without_recipe("lr")),
    _Factor(
        "learning rate of the head",
        _recipe_value("lr_head"),
        _without_recipe("lr_head"),
    ),
    _Factor(
        "side that images are reduced to, pixels",
        lambda fall: _side(fall.cell.condition),
        lambda c: replace(c, downscale=0),
    ),
)


def decline_against_factors(study: Study) -> Section | None:
    """Show the relative decline against each factor that a sweep has varied."""
    cells = [cell for cell in study.cells if cell.attacked]
    falls = [f for f in falls_of(cells) if f.plain and f.decline is not None]
    if not falls:
        return None
    name = line_name(cells)
    colors = line_colors(cells, name)
    figures = []
    lines: list[dict[str, object]] = []
    for factor in _FACTORS:
        panels = _panels(study, falls, factor, name)
        if not panels:
            continue
        figure = draw_panels(panels, colors, factor.name, "relative decline (%)")
        text = f"Relative decline under attack against the {factor.name}."
        figures.append((figure, panel_caption(text, len(panels))))
        lines += [
            {
                "factor": factor.name,
                "setting": panel.title,
                "source": source,
                "value": f"{x:g}",
                "relative decline": f"{point.y:.1f}",
            }
            for panel in panels
            for source, points in panel.series.items()
            for x, point in sorted(points.items())
        ]
    if not figures:
        return None
    return Section(
        "Decline against what varies",
        [
            "The share of the clean accuracy that the attack takes away, of networks that "
            "were tuned on images as they are, and that differ in one choice alone. "
            "Vertical lines are 95 % intervals over seeds, of three or more."
        ],
        figures,
        [make_table(lines, "Percent; means over seeds.")],
    )


def _panels(
    study: Study, falls: Sequence[Fall], factor: _Factor, name: Callable[..., str]
) -> list[Panel]:
    """Return a panel for each setting in which the factor has several values."""
    groups: dict[Hashable, dict[str, dict[float, Point]]] = {}
    titles: dict[Hashable, str] = {}
    for fall in falls:
        value = factor.value(fall)
        if value is None or fall.decline is None:
            continue
        cell = fall.cell
        condition = factor.without(cell.condition)
        n = 0 if factor.value is _images_per_class else cell.n
        key = (condition, n, str(fall.attack))
        parts = [condition.target, str(fall.attack)]
        if factor.value is not _blocks:
            parts.insert(1, cell.condition.trains)
        if n:
            parts.append(f"{n} images")
        titles.setdefault(key, ", ".join(parts))
        line = groups.setdefault(key, {}).setdefault(name(cell), {})
        line[value] = Point(*fall.decline)
    return [
        Panel(titles[key], several)
        for key, of_source in groups.items()
        if (several := {k: v for k, v in of_source.items() if len(v) > 1})
    ]
