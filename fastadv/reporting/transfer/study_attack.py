"""The section on robust accuracy after transfer: what of robustness, or its lack, moves.

Zhang et al. 2023 (2106.10989) compare a source, the network fine-tuned from it, and a
network trained from scratch on the target by their relative decline under attack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from fastadv.groups import grouped
from fastadv.reporting.figures.lines import Cloud
from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.transfer.cells import (
    Cell,
    seeds_interval,
    with_most_images,
)
from fastadv.reporting.transfer.curves import draw_clouds
from fastadv.reporting.transfer.study import (
    Study,
    format_interval,
    line_colors,
    line_name,
    make_table,
)
from fastadv.results.row import AttackRecord, Row
from fastadv.statistics import mean_interval
from fastadv.statistics.crossed import LEAST_SEEDS

# Columns of the comparison of Zhang et al., by the mode that they are measured in.
_MODELS = {
    "own": "source on its own data",
    "fixed_feature": "source with a new head",
    "last_k_blocks": "fine-tuned in part",
    "full_network": "fine-tuned",
    "scratch": "from scratch",
}


@dataclass(frozen=True)
class Fall:
    """Clean and robust accuracy of one cell under one attack, of the same seeds.

    Attributes:
        cell: The cell.
        attack: The attack.
        clean: Mean clean accuracy and its 95 % interval, percent.
        robust: Mean robust accuracy and its 95 % interval, percent.
        decline: Share of the clean accuracy that the attack takes away, mean over seeds
            and 95 % t-interval, percent; None where a clean accuracy is 0.
    """

    cell: Cell
    attack: AttackRecord
    clean: tuple[float, float, float]
    robust: tuple[float, float, float]
    decline: tuple[float, float, float] | None

    @property
    def points(self) -> float:
        """The clean less the robust accuracy, in points."""
        return self.clean[0] - self.robust[0]

    @property
    def plain(self) -> bool:
        """Whether the network was tuned on images as they are."""
        return not self.cell.condition.method

    @property
    def scratch(self) -> bool:
        """Whether the network was trained on the target alone."""
        return self.cell.condition.mode == "scratch"


def under_attack(study: Study) -> Section | None:
    """Show robust accuracy of the transferred models, where it was measured."""
    cells = [c for c in study.cells if c.attacked]
    if not cells:
        return None
    falls = falls_of(cells)
    drawn, name = with_most_images(cells), line_name(cells)
    attacks = list(dict.fromkeys(str(attack) for c in drawn for attack in c.attacked))
    several = len(attacks) > 1
    clouds: dict[str, dict[str, Cloud]] = {}
    for fall in falls:
        if (cell := fall.cell) in drawn:
            title = study.title(cell) + (f", {fall.attack}" if several else "")
            cloud = Cloud([name(cell)], [fall.clean[0]], [fall.robust[0]], None)
            clouds.setdefault(title, {})[name(cell)] = cloud
    models, missing = _models(falls, study.evaluations)
    under = "attack" if several else attacks[0]
    labels = ("clean accuracy (%)", f"under {under} (%)")
    caption = "Robust against clean accuracy, one point per source."
    return Section(
        "Robust accuracy after transfer",
        [
            "Accuracy of the transferred models under attack. " + study.interval_note,
            "The relative decline is the share of the clean accuracy that the attack "
            "takes away; its interval, of three seeds or more, is over seeds alone.",
            *missing,
            *study.left_out(study.cells, cells, "not attacked", needs_eps=False),
        ],
        [draw_clouds(clouds, line_colors(cells, name), labels, caption)],
        [_all(study, falls), *models],
        findings=_findings(falls),
    )


def falls_of(cells: Iterable[Cell]) -> list[Fall]:
    """Return clean and robust accuracy of every cell under each of its attacks."""
    found = []
    for cell in cells:
        for attack, pairs in cell.attacked.items():
            # Of the same seeds: others may not have been attacked.
            clean, robust = zip(*pairs.values(), strict=True)
            shares = [
                100 * (a.value - b.value) / a.value
                for a, b in pairs.values()
                if a.value > 0
            ]
            decline = mean_interval(shares) if len(shares) == len(pairs) else None
            both = seeds_interval(clean), seeds_interval(robust)
            found.append(Fall(cell, attack, *both, decline))
    return found


def _all(study: Study, falls: Iterable[Fall]) -> Table:
    lines = [
        study.place(fall.cell)
        | {
            "seeds": len(fall.cell.attacked[fall.attack]),
            "clean": format_interval(*fall.clean),
            "robust": format_interval(*fall.robust),
            "relative decline": _decline(fall),
            "attack": str(fall.attack),
        }
        for fall in falls
    ]
    return make_table(lines, "Percent.")


def _decline(fall: Fall) -> str | None:
    if fall.decline is None:
        return None
    if len(fall.cell.attacked[fall.attack]) < LEAST_SEEDS:
        return f"{fall.decline[0]:.1f}"
    return format_interval(*fall.decline)


def _target(fall: Fall) -> Hashable:
    """Return what networks share that saw the same images, whatever they began as."""
    condition = fall.cell.condition
    images = (condition.target, condition.downscale, condition.resolution)
    return (*images, condition.protocol, fall.cell.arch, fall.cell.n, str(fall.attack))


def _condition(fall: Fall) -> Hashable:
    """Return what networks share that only differ in their source."""
    return fall.cell.condition, fall.cell.arch, fall.cell.n, str(fall.attack)


def own_decline(
    evaluations: Iterable[Row], digest: str | None, attack: AttackRecord
) -> float | None:
    """Return the relative decline of a network on the data it was trained for.

    Args:
        evaluations: Rows of kind "evaluation", oldest first; the newest counts.
        digest: The weights of the network.
        attack: The attack; norm, radius, steps and their length have to be its.

    Returns:
        Share of the clean accuracy that the attack takes away, in percent; None if that
        was not measured.
    """
    clean: dict[str | None, Row] = {}
    found = None
    for row in evaluations:
        if row.source.digest != digest or digest is None or row.metric != "top1":
            continue
        if row.attack is None:
            clean[row.experiment] = row
        elif _same_attack(row.attack, attack) and row.experiment in clean:
            before = clean[row.experiment]
            if before.n == row.n and before.value > 0:
                found = 100 * (before.value - row.value) / before.value
    return found


def _same_attack(one: AttackRecord, other: AttackRecord) -> bool:
    """Return whether two attacks share name, norm, radius, steps and their length."""
    names = ("name", "norm", "num_steps")
    sizes = ("eps", "step_size")
    return all(getattr(one, n) == getattr(other, n) for n in names) and all(
        math.isclose(getattr(one, n) or 0, getattr(other, n) or 0, rel_tol=1e-4)
        for n in sizes
    )


def own_command(row: Row, results: str = "TABLE") -> str:
    """Return the command that measures the source of an attacked row on its own data."""
    attack, source = row.attack, row.source
    if attack is None:
        raise ValueError("the row is of clean images; give one under attack")
    size = "" if attack.step_size is None else f" --step-size {attack.step_size:.6g}"
    return (
        f"fastadv-eval --checkpoint {source.given or source.name} --data ITS_DATA "
        f"--norm {attack.norm} --eps {attack.eps or 0:.6g} "
        f"--num-steps {attack.num_steps}{size} --results {results}"
    )


def _models(
    falls: Iterable[Fall], evaluations: Sequence[Row]
) -> tuple[list[Table], list[str]]:
    """Make the table of source, fine-tuned network and network from scratch.

    Returns:
        The table, if there is one, and a sentence on sources that were not measured on
        their own data, if there are any.
    """
    plain = [fall for fall in falls if fall.plain and fall.decline is not None]
    scratch = grouped((fall for fall in plain if fall.scratch), _target)
    lines: dict[Hashable, dict[str, object]] = {}
    values: dict[Hashable, dict[str, list[float]]] = {}
    absent: dict[str, str] = {}
    for fall in plain:
        condition, cell = fall.cell.condition, fall.cell
        if fall.scratch:
            continue
        key = (_target(fall), cell.label)
        lines[key] = {
            "target": condition.target,
            "arch": cell.arch,
            "source": cell.label,
            "n": cell.n,
            "attack": str(fall.attack),
        }
        base = [_mean(other) for other in scratch.get(_target(fall), ())]
        of_line = values.setdefault(key, {"scratch": base})
        of_line.setdefault(condition.mode, []).append(_mean(fall))
        own = own_decline(evaluations, cell.first.source.digest, fall.attack)
        of_line["own"] = [] if own is None else [own]
        if own is None:
            attacked = next(iter(cell.attacked[fall.attack].values()))[1]
            absent.setdefault(cell.source, own_command(attacked))
    rows = [
        lines[key]
        | {
            title: f"{fmean(found):.1f}" if (found := of_line.get(mode)) else None
            for mode, title in _MODELS.items()
        }
        for key, of_line in values.items()
        if sum(map(bool, of_line.values())) > 1
    ]
    caption = (
        "Relative decline under attack, percent: of a source on its own data and with a new "
        "head, of networks fine-tuned from it, and of one from scratch on the same target. "
        "Means over seeds and settings."
    )
    missing = []
    if rows and absent:
        missing.append(
            f"{len(absent)} source(s) were not measured on their own data under the same "
            f"attack; this does it: {next(iter(absent.values()))}"
        )
    return [make_table(rows, caption)] if rows else [], missing


def _mean(fall: Fall) -> float:
    return fall.decline[0] if fall.decline is not None else 0.0


def _findings(falls: Iterable[Fall]) -> list[str]:
    """Compare like with like: networks that were tuned plainly, where both sides are."""
    plain = [fall for fall in falls if fall.plain and fall.decline is not None]
    tuned = [fall for fall in plain if not fall.scratch]
    found = [
        _compared(
            {
                "robust sources": [f for f in tuned if f.cell.robust],
                "standard sources": [f for f in tuned if f.cell.standard],
            },
            _condition,
        ),
        _compared(
            {
                "standard sources": [
                    f
                    for f in tuned
                    if f.cell.standard and f.cell.condition.mode != "fixed_feature"
                ],
                "random weights (from scratch)": [f for f in plain if f.scratch],
            },
            _target,
        ),
    ]
    return [finding for finding in found if finding]


def _compared(
    sides: dict[str, list[Fall]], place: Callable[[Fall], Hashable]
) -> str | None:
    """Say how far accuracy falls on two sides, over the places that both have."""
    groups = [grouped(falls, place) for falls in sides.values()]
    shared = [key for key in groups[0] if key in groups[1]]
    if not shared:
        return None
    phrases = []
    for name, of_side in zip(sides, groups, strict=True):
        share = fmean(fmean(map(_mean, of_side[key])) for key in shared)
        points = fmean(fmean(f.points for f in of_side[key]) for key in shared)
        phrases.append(f"{share:.1f} % of it ({points:.1f} points) with {name}")
    return (
        f"Under attack, accuracy falls by {' and by '.join(phrases)}, on average over the "
        f"same {len(shared)} setting(s). This is not tested."
    )
