"""The section on evaluations: clean and robust accuracy by source and attack."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from fastadv.reporting.figures.bars import Bar, grouped_bars
from fastadv.reporting.figures.lines import Panel, Point, draw_panels, panel_caption
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.literature import Judged, judged_accuracy
from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.threats import source_threat, threat, training_label
from fastadv.results.row import AttackRecord, Row
from fastadv.results.settings import TransferSetting
from fastadv.text_tables import format_percent_ci, text_table

CLEAN = "clean images"
IMAGENET_CLASSES = 1000
_FEW_RADII = 3  # fewer are no curve


# What was measured of a source, by its name and the seed: a row under each attack, and
# under None that of clean images.
Evaluated = dict[tuple[str, int], dict[AttackRecord | None, Row]]


def evaluation_sections(rows: Sequence[Row], names: Mapping[str, str]) -> list[Section]:
    """Make the section of rows of kind "evaluation"; nothing where there are none.

    Rows are oldest first; of equal ones the newest counts.
    """
    found = _evaluated(rows)
    if not found:
        return []
    lines = []
    for (name, _), measured in itertools.chain(*(e.items() for e in found.values())):
        first = next(iter(measured.values()))
        attacked: list[Row | None] = [row for row in measured.values() if row.attack]
        of_source = [
            _images(first),
            name,
            first.source.arch,
            training_label(source_threat(first), first.source.training),
            _accuracy(measured.get(None)),
        ]
        for robust in attacked or [None]:
            attack = None if robust is None else str(robust.attack)
            n = (robust or first).n
            lines.append([*of_source, attack, _accuracy(robust), n])
    columns = [
        "images", "source", "arch", "training", "clean", "attack", "robust", "n",
    ]  # fmt: skip
    published = _published(found, names)
    return [
        Section(
            "Clean and robust accuracy",
            [
                "Accuracy on clean images and under attack. An image counts as robust when "
                "it is classified correctly and no attack changes that. Intervals are "
                "95 %, over the draw of test images. A number that is called doubtful may "
                "be higher than the truth: the words in brackets name what was found."
            ],
            [
                *[_figure(of_images) for of_images in found.values()],
                *_curves(found),
            ],
            [Table(columns, lines, "Accuracy of every source, percent."), *published],
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


def _evaluated(rows: Sequence[Row]) -> dict[str, Evaluated]:
    """Collect rows by the images and metric they are of, and by their source."""
    digests: dict[str, set[str | None]] = {}
    for row in rows:
        digests.setdefault(row.source.name, set()).add(row.source.digest)
    found: dict[str, Evaluated] = {}
    for row in rows:
        name = row.source.name
        if len(digests[name]) > 1:
            name = f"{name} {str(row.source.digest)[:6]}"
        of_images = found.setdefault(row.setting_key, {})
        of_images.setdefault((name, row.seed), {})[row.attack] = row
    return found


def _images(row: Row) -> str:
    """Return what a row measured, with the metric where that is not the accuracy."""
    own = "" if row.metric == "top1" else f", {row.metric}"
    return f"{row.setting_label}{own}"


def _figure(found: Evaluated) -> tuple[Figure, str]:
    """Draw one group of bars for clean images and one per attack."""
    groups: dict[str, dict[str, Bar]] = {}
    sources = {name: next(iter(m.values())).source for (name, _), m in found.items()}
    for (name, _), measured in found.items():
        for attack, row in sorted(measured.items(), key=lambda a: a[0] is not None):
            if attack is not None and _is_of_grid(attack):
                continue  # the curves show it
            label = CLEAN if attack is None else str(attack)
            record = _judged(row)
            alike = record is not None and not _other_attack(row, record)
            value = record.value if record is not None and alike else None
            bar = Bar(row.value, row.low, row.high, value)
            groups.setdefault(label, {})[name] = bar
    eps = {name: source.eps for name, source in sources.items()}
    usual = ("standard", "robust", None)
    other = {name for name, each in sources.items() if each.training not in usual}
    figure = grouped_bars(groups, source_colors(eps, eps, other))
    return figure, f"Accuracy on {_images(row)}."


def _curves(found: Mapping[str, Evaluated]) -> list[tuple[Figure, str]]:
    """Draw accuracy against the radius where an attack was made at several radii."""
    panels: dict[str, dict[str, dict[float, Point]]] = {}
    eps: dict[str, float | None] = {}
    for of_images in found.values():
        for (name, _), measured in of_images.items():
            alike: dict[str, list[Row]] = {}
            for attack, row in measured.items():
                if attack is not None:
                    alike.setdefault(_kind_of_attack(attack), []).append(row)
            for kind, rows in alike.items():
                if len(rows) < _FEW_RADII:
                    continue
                clean = measured.get(None)
                title = f"{_images(rows[0])}, {kind}"
                line = panels.setdefault(title, {}).setdefault(name, {})
                eps[name] = rows[0].source.eps
                for row in [*rows, *([clean] if clean else [])]:
                    radius = row.attack.eps if row.attack else 0.0
                    low, high = row.low, row.high
                    line[radius or 0.0] = Point(
                        row.value,
                        row.value if low is None else low,
                        row.value if high is None else high,
                    )
    if not panels:
        return []
    drawn = [Panel(title, series) for title, series in panels.items()]
    figure = draw_panels(drawn, source_colors(eps, eps), "radius", "accuracy (%)")
    caption = (
        "Accuracy against the radius of the attack, with 95 % intervals over test images. "
        "An image that falls within a radius counts as fallen within every larger one."
    )
    return [(figure, panel_caption(caption, len(drawn)))]


def _is_of_grid(attack: AttackRecord) -> bool:
    return any(option.name == "after_radii" for option in attack.options)


def _kind_of_attack(attack: AttackRecord) -> str:
    """Return what radii of one grid have in common."""
    name = "PGD" if attack.name == "pgd" else str(attack.name)
    steps = f"-{attack.num_steps}" if attack.num_steps else ""
    return f"{name}{steps}, {attack.norm}"


def _published(found: Mapping[str, Evaluated], names: Mapping[str, str]) -> list[Table]:
    """Make the table of published accuracies beside ours; none where there are none."""
    lines: list[list[object]] = []
    for of_images in found.values():
        for (name, _), measured in of_images.items():
            for attack, row in measured.items():
                if (record := _judged(row)) is None:
                    continue
                of = CLEAN if attack is None else str(attack)
                differs = "; ".join(_differences(row, record, names))
                value = f"{record.value:.2f}%"
                line = [name, of, _accuracy(row), value, record.by]
                lines.append([*line, differs or "nothing that is known"])
    columns = ["source", "accuracy", "ours", "published", "by", "what differs"]
    caption = (
        "Published accuracies of the same networks, percent. Salman et al. state that of all "
        "50,000 validation images of ImageNet, RobustBench that of a fixed list of 5,000 of "
        "them, under AutoAttack within linf 4/255; nothing was selected on them."
    )
    return [Table(columns, lines, caption)] if lines else []


def _judged(row: Row) -> Judged | None:
    """Return the published accuracy of the source of a row, clean or attacked as the row."""
    if row.target.num_classes != IMAGENET_CLASSES:
        return None
    source = row.source
    for given in (source.given, source.path, source.name):
        for record in judged_accuracy(given or ""):
            if (record.attack is None) == (row.attack is None):
                return record
    return None


def _differences(row: Row, record: Judged, names: Mapping[str, str]) -> list[str]:
    """Say in what our measurement differs from the published one, as far as it is known."""
    target = row.target
    found = _other_attack(row, record)
    if not names.get(target.name, target.name).lower().startswith("imagenet"):
        found.append(f"images of {target.name}")
    if target.downscale is not None:
        found.append(f"images reduced to {target.downscale} px")
    if row.n is not None and row.n != record.images:
        found.append(f"{row.n:,} images instead of {record.images:,}")
    return found


def _other_attack(row: Row, record: Judged) -> list[str]:
    """Say in what the attack of a row differs from that of a published accuracy."""
    attack = row.attack
    if attack is None:
        return []
    found = []
    if attack.name != record.attack:
        found.append(f"attack {attack.name} instead of {record.attack}")
    ours = threat(attack.norm, attack.eps or 0.0)
    if ours != record.threat:
        radius = f"{training_label(ours)} instead of {training_label(record.threat)}"
        found.append(f"within {radius}")
    return found


def _accuracy(row: Row | None) -> str | None:
    """Return the value of a row as text, behind the reasons to doubt it."""
    if row is None:
        return None
    text = format_percent_ci(row.value, row.low, row.high)
    doubts = ", ".join(flag.replace("_", " ") for flag in row.flags)
    return f"doubtful ({doubts}): {text}" if doubts else text
