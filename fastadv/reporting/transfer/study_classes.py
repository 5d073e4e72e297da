"""What one number per model hides: robustness after transfer, and single classes."""

from __future__ import annotations

import json
from statistics import fmean

from fastadv.reporting.figures.lines import Cloud, cloud_panels
from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.transfer.cells import (
    Cell,
    seeds_interval,
    with_most_images,
)
from fastadv.reporting.transfer.study import (
    INTERVAL_NOTE,
    Study,
    format_interval,
    line_colors,
    line_name,
)
from fastadv.statistics import wilson

_PER_CLASS_TABLES = 8


def under_attack(study: Study) -> Section | None:
    """Robust accuracy of the transferred models, where it was measured."""
    cells = [c for c in study.cells if c.attacked]
    if not cells:
        return None
    drawn, name = with_most_images(cells), line_name(cells)
    attacks = list(dict.fromkeys(_attack(a) for c in drawn for a in c.attacked))
    several = len(attacks) > 1
    clouds: dict[str, dict[str, Cloud]] = {}
    drops: dict[bool, list[float]] = {False: [], True: []}
    rows = []
    for cell in cells:
        for attack, of_attack in cell.attacked.items():
            found = list(of_attack.values())
            robust = seeds_interval(found, "robust_value", "robust_ci")
            # Of the same seeds: others may not have been attacked.
            clean = seeds_interval(found, "value", "ci")
            said = _attack(attack)
            rows.append(
                [
                    study.labels[cell.setting],
                    cell.arch,
                    cell.label,
                    cell.n,
                    len(found),
                    format_interval(*clean),
                    format_interval(*robust),
                    said,
                ]
            )
            if cell in drawn:
                title = study.title(cell) + (f", {said}" if several else "")
                cloud = Cloud([name(cell)], [clean[0]], [robust[0]], None)
                clouds.setdefault(title, {})[name(cell)] = cloud
            if cell.threat is not None:
                drops[cell.robust].append(clean[0] - robust[0])
    figure = cloud_panels(
        clouds,
        colors=line_colors(cells, name),
        x_label="clean accuracy (%)",
        y_label=f"under {'attack' if several else attacks[0]} (%)",
    )
    falls = [
        f"{sum(found) / len(found):.1f} points with {'robust' if robust else 'standard'} "
        f"sources ({len(found)} measured)"
        for robust, found in drops.items()
        if found
    ]
    columns = ["setting", "arch", "source", "n", "seeds", "clean", "robust", "attack"]
    return Section(
        "Robust accuracy after transfer",
        [
            "Accuracy of the transferred models under attack. " + INTERVAL_NOTE,
            *study.left_out(study.cells, cells, "not attacked", needs_eps=False),
        ],
        [(figure, "Robust against clean accuracy, one point per source.")],
        [Table(columns, rows, "Percent.")],
        findings=[
            f"Under attack, accuracy falls by {' and by '.join(falls)} on average. This is "
            "not tested."
        ]
        if falls
        else [],
    )


def _attack(attack: str) -> str:
    """An attack of the results table in words."""
    found = json.loads(attack or "{}")
    norm, eps = found.get("norm", ""), found.get("eps")
    if eps is None:
        return attack
    pixels = f"{eps * 255:.4g}/255" if norm == "linf" else f"{eps:g}"
    steps = f", {found['num_steps']} steps" if "num_steps" in found else ""
    return f"{norm} {pixels}{steps}"


def per_class(study: Study) -> Section | None:
    """Accuracy by class, standard and robust."""
    found = [
        each
        for each in study.comparisons["best"]
        if _counts(each.standard) and _counts(each.robust)
    ]
    tables: list[Table] = []
    ahead = behind = apart = classes = 0
    for each in found[:_PER_CLASS_TABLES]:
        standard, robust = _counts(each.standard), _counts(each.robust)
        names = next(iter(each.robust.rows.values())).get("class_names") or [
            str(i) for i in range(len(standard))
        ]
        rows = []
        for name, ours, theirs in zip(names, robust, standard, strict=True):
            if ours[1] and theirs[1]:
                a, b = (100 * right / total for right, total in (theirs, ours))
                rows.append(
                    [name, f"{theirs[1]:g}", f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}"]
                )
        title = f"{study.title(each.robust)}, {each.robust.arch}"
        columns = [
            "class",
            "test images",
            "standard",
            each.robust.label,
            "difference",
        ]
        tables.append(Table(columns, rows, f"{title}: accuracy by class, percent."))
        apart += sum(
            _apart(ours, theirs) for ours, theirs in zip(robust, standard, strict=True)
        )
        ahead += sum(float(row[4]) > 0 for row in rows)
        behind += sum(float(row[4]) < 0 for row in rows)
        classes += len(rows)
    if not tables:
        return None
    left_out = len(found) - len(tables)
    text = [
        "Means over seeds. Every seed is tested on the same images, so intervals are of "
        "the images of a class, counted once."
    ]
    if left_out:
        text.append(f"{left_out} more comparisons are left out here.")
    shown = [cell for each in found for cell in (each.robust, each.standard)]
    text += study.most_note
    text += study.left_out(study.cells, shown, "no pair with counts by class")
    finding = (
        f"The robust source is ahead in {ahead} and behind in {behind} of the {classes} "
        f"classes of {len(tables)} comparison(s); in {apart} the 95 % intervals of both "
        "do not overlap (not corrected for the number of classes)."
    )
    return Section("By class", text, tables=tables, findings=[finding])


def _counts(cell: Cell) -> list[tuple[float, float]]:
    """(right, all) test images of each class, means over seeds."""
    rows = [r for r in cell.rows.values() if r.get("per_class_total")]
    if not rows:
        return []
    right = zip(*(r["per_class_correct"] for r in rows), strict=True)
    total = zip(*(r["per_class_total"] for r in rows), strict=True)
    return [(fmean(a), fmean(b)) for a, b in zip(right, total, strict=True)]


def _apart(a: tuple[float, float], b: tuple[float, float]) -> bool:
    (low_a, high_a), (low_b, high_b) = wilson(*a), wilson(*b)
    return bool(a[1] and b[1]) and (low_a > high_b or low_b > high_a)
