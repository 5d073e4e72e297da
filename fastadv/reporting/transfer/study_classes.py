"""The section on what one number hides: accuracy by class."""

from __future__ import annotations

from statistics import fmean

from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.transfer.pairs import Comparison, Runs
from fastadv.reporting.transfer.study import Study
from fastadv.statistics import wilson

_PER_CLASS_TABLES = 8
Count = tuple[float, float]  # correct test images of a class, and all of them


def per_class(study: Study) -> Section | None:
    """Show accuracy by class, standard and robust."""
    found = [
        each
        for each in study.tests.groups["best"]
        if _counts(each.standard) and _counts(each.robust)
    ]
    if not found:
        return None
    ahead = behind = apart = classes = 0
    tables = []
    for each in found[:_PER_CLASS_TABLES]:
        tables.append(_class_table(study, each))
        differences = [float(str(row[-1])) for row in tables[-1].rows]
        ahead += sum(difference > 0 for difference in differences)
        behind += sum(difference < 0 for difference in differences)
        classes += len(differences)
        pairs = zip(_counts(each.robust), _counts(each.standard), strict=True)
        apart += sum(_apart(ours, theirs) for ours, theirs in pairs)
    text = [
        "Means over seeds. Every seed is tested on the same images, so intervals are of "
        "the images of a class, counted once."
    ]
    if len(found) > len(tables):
        text.append(f"{len(found) - len(tables)} more comparisons are left out here.")
    text += study.most_note
    text += study.left_out(study.cells, found, "no pair with counts by class")
    finding = (
        f"The robust source is ahead in {ahead} and behind in {behind} of the {classes} "
        f"classes of {len(tables)} comparison(s); in {apart} the 95 % intervals of both "
        "do not overlap (not corrected for the number of classes)."
    )
    return Section("By class", text, tables=tables, findings=[finding])


def _class_table(study: Study, each: Comparison) -> Table:
    standard, robust = _counts(each.standard), _counts(each.robust)
    names = each.robust.first.first.target.class_names
    rows = []
    for number, (ours, theirs) in enumerate(zip(robust, standard, strict=True)):
        if ours[1] and theirs[1]:
            a, b = (100 * right / total for right, total in (theirs, ours))
            name = names[number] if names else str(number)
            rows.append(
                [name, f"{theirs[1]:g}", f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}"]
            )
    columns = ["class", "test images", "standard", each.robust.label, "difference"]
    caption = f"{study.title(each)}, {each.arch}: accuracy by class, percent."
    return Table(columns, rows, caption)


def _counts(runs: Runs) -> list[Count]:
    """Return correct and all test images of each class, means over seeds and source runs."""
    every = [row for cell in runs.cells for row in cell.rows.values()]
    rows = [row for row in every if row.per_class_total]
    if not rows:
        return []
    right = zip(*(row.per_class_correct for row in rows), strict=True)
    total = zip(*(row.per_class_total for row in rows), strict=True)
    return [(fmean(a), fmean(b)) for a, b in zip(right, total, strict=True)]


def _apart(a: Count, b: Count) -> bool:
    """Return whether the intervals of both shares do not overlap."""
    (low_a, high_a), (low_b, high_b) = wilson(*a), wilson(*b)
    return bool(a[1] and b[1]) and (low_a > high_b or low_b > high_a)
