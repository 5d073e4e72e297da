"""What one number per model hides: robustness after transfer, and single classes."""

from __future__ import annotations

from fastadv.reporting.cells import (
    Cell,
    compare,
)
from fastadv.reporting.html import Section, Table
from fastadv.reporting.study import (
    INTERVAL_NOTE,
    Study,
    format_value,
)
from fastadv.statistics import mean_interval, wilson

_PER_CLASS_TABLES = 8


def under_attack(study: Study) -> Section | None:
    """Robust accuracy of the transferred models, where it was measured."""
    rows = []
    for cell in study.cells:
        found = [r for r in cell.rows.values() if r.get("robust_value") is not None]
        if found:
            mean, low, high = mean_interval([float(r["robust_value"]) for r in found])
            if len(found) == 1:
                low, high = found[0]["robust_ci_low"], found[0]["robust_ci_high"]
            rows.append(
                [
                    study.labels[cell.setting],
                    cell.arch,
                    cell.label,
                    cell.n,
                    len(found),
                    format_value(cell),
                    f"{mean:.2f} [{low:.1f}, {high:.1f}]",
                    found[0]["attack"],
                ]
            )
    if not rows:
        return None
    columns = ["setting", "arch", "source", "n", "seeds", "clean", "robust", "attack"]
    return Section(
        "Robust accuracy after transfer",
        ["Accuracy of the transferred models under attack. " + INTERVAL_NOTE],
        tables=[Table(columns, rows, "Percent.")],
    )


def per_class(study: Study) -> Section | None:
    """Accuracy by class, standard and robust."""
    found = [
        each
        for each in compare(study.most)
        if _counts(each.standard) and _counts(each.robust)
    ]
    tables: list[Table] = []
    ahead = apart = classes = 0
    for each in found[:_PER_CLASS_TABLES]:
        standard, robust = _counts(each.standard), _counts(each.robust)
        names = next(iter(each.robust.rows.values())).get("class_names") or [
            str(i) for i in range(len(standard))
        ]
        rows = []
        for name, ours, theirs in zip(names, robust, standard, strict=True):
            if ours[1] and theirs[1]:
                a, b = (100 * right / total for right, total in (theirs, ours))
                rows.append([name, theirs[1], f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}"])
        title = f"{study.labels[each.robust.setting]}, {each.robust.arch}"
        columns = [
            "class",
            "test decisions",
            "standard",
            each.robust.label,
            "difference",
        ]
        tables.append(Table(columns, rows, f"{title}: accuracy by class, percent."))
        apart += sum(
            _apart(ours, theirs) for ours, theirs in zip(robust, standard, strict=True)
        )
        ahead += sum(float(row[4]) > 0 for row in rows)
        classes += len(rows)
    if not tables:
        return None
    left_out = len(found) - len(tables)
    text = ["Decisions of all seeds together; a test image counts once per seed."]
    if left_out:
        text.append(f"{left_out} more comparison(s) are left out here.")
    finding = (
        f"The robust source is ahead in {ahead} of {classes} classes of {len(tables)} "
        f"comparison(s); in {apart} the 95 % intervals of both do not overlap (not "
        "corrected)."
    )
    return Section("By class", text, tables=tables, findings=[finding])


def _counts(cell: Cell) -> list[tuple[int, int]]:
    """(right, all) of each class, over seeds."""
    rows = [r for r in cell.rows.values() if r.get("per_class_total")]
    if not rows:
        return []
    right = zip(*(r["per_class_correct"] for r in rows), strict=True)
    total = zip(*(r["per_class_total"] for r in rows), strict=True)
    return [(sum(a), sum(b)) for a, b in zip(right, total, strict=True)]


def _apart(a: tuple[int, int], b: tuple[int, int]) -> bool:
    (low_a, high_a), (low_b, high_b) = wilson(*a), wilson(*b)
    return bool(a[1] and b[1]) and (low_a > high_b or low_b > high_a)
