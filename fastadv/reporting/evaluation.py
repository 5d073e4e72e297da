"""The section on evaluations: clean and robust accuracy by source and attack."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from fastadv.reporting.figures.bars import Bar, grouped_bars
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.threats import source_threat, training_label
from fastadv.results.row import AttackRecord, Row
from fastadv.results.settings import TransferSetting
from fastadv.text_tables import format_percent_ci, text_table

CLEAN = "clean images"


@dataclass
class Evaluated:
    """What was measured of one source on the same images.

    Attributes:
        name: Name of the source.
        first: Any row of it.
        accuracy: Rows of the accuracy under each attack; None is clean images.
    """

    name: str
    first: Row
    accuracy: dict[AttackRecord | None, Row] = field(default_factory=dict)


def evaluation_sections(rows: Sequence[Row], names: Mapping[str, str]) -> list[Section]:
    """Make the section of rows of kind "evaluation"; nothing where there are none.

    Args:
        rows: Rows of kind "evaluation", oldest first; of equal ones the newest counts.
        names: Published names of data sets by ours; evaluations have none.
    """
    found = _evaluated(rows)
    if not found:
        return []
    lines = []
    for each in itertools.chain(*found.values()):
        attacked: list[Row | None] = [r for r in each.accuracy.values() if r.attack]
        of_source = [
            each.first.setting_label,
            each.name,
            each.first.source.arch,
            training_label(source_threat(each.first), each.first.source.training),
            _accuracy(each.accuracy.get(None)),
        ]
        for robust in attacked or [None]:
            attack = None if robust is None else str(robust.attack)
            n = (robust or each.first).n
            lines.append([*of_source, attack, _accuracy(robust), n])
    columns = [
        "images", "source", "arch", "training", "clean", "attack", "robust", "n",
    ]  # fmt: skip
    return [
        Section(
            "Clean and robust accuracy",
            [
                "Accuracy on clean images and under attack. An image counts as robust when "
                "it is classified correctly and no attack changes that. Intervals are "
                "95 %, over the draw of test images."
            ],
            [_figure(of_images) for of_images in found.values()],
            [Table(columns, lines, "Accuracy of every source, percent.")],
        )
    ]


def source_summary(rows: Sequence[Row]) -> str:
    """Return a text table of one line per source: clean, under attack, transferred.

    Brackets hold the interval of an evaluation, and the lowest and highest seed of a
    transfer.

    Args:
        rows: Rows of evaluations and transfers; every source has the same columns.
    """
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if isinstance(row.setting, TransferSetting):
            column = f"{row.target.name}, {row.setting.mode}"
        else:
            column = "clean" if row.attack is None else _attack_title(row.attack)
        of_source = found.setdefault(row.source.name, {})
        of_source.setdefault(column, []).append(row)
    lines = []
    for name, of_source in found.items():
        line = [name]
        for of_column in of_source.values():
            values = [row.value for row in of_column]
            ends = min(values), max(values)
            if of_column[0].kind == "evaluation":
                line.append(str(_accuracy(of_column[0])))
            else:
                line.append(format_percent_ci(sum(values) / len(values), *ends))
        lines.append(line)
    return text_table(["source", *next(iter(found.values()))], lines)


def _attack_title(attack: AttackRecord) -> str:
    name = "PGD" if attack.name == "pgd" else str(attack.name)
    steps = f"-{attack.num_steps}" if attack.num_steps else ""
    return f"{name}{steps} {training_label((attack.norm, attack.eps or 0))}"


def _evaluated(rows: Sequence[Row]) -> dict[str, list[Evaluated]]:
    """Collect rows by the images and metric they are of, and by their source."""
    digests: dict[str, set[str | None]] = {}
    for row in rows:
        digests.setdefault(row.source.name, set()).add(row.source.digest)
    found: dict[str, dict[tuple[str, int], Evaluated]] = {}
    for row in rows:
        name = row.source.name
        if len(digests[name]) > 1:
            name = f"{name} {str(row.source.digest)[:6]}"
        of_images = found.setdefault(row.setting_key, {})
        each = of_images.setdefault((name, row.seed), Evaluated(name, row))
        each.accuracy[row.attack] = row
    return {key: list(of_images.values()) for key, of_images in found.items()}


def _figure(found: Sequence[Evaluated]) -> tuple[Figure, str]:
    """Draw one group of bars for clean images and one per attack."""
    groups: dict[str, dict[str, Bar]] = {}
    for each in found:
        for attack, row in sorted(
            each.accuracy.items(), key=lambda a: a[0] is not None
        ):
            label = CLEAN if attack is None else str(attack)
            bar = Bar(row.value, row.low, row.high)
            groups.setdefault(label, {})[each.name] = bar
    eps = {each.name: each.first.source.eps for each in found}
    usual = ("standard", "robust", None)
    other = {e.name for e in found if e.first.source.training not in usual}
    figure = grouped_bars(groups, source_colors(eps, eps, other))
    return figure, f"Accuracy on {found[0].first.setting_label}."


def _accuracy(row: Row | None) -> str | None:
    return None if row is None else format_percent_ci(row.value, row.low, row.high)
