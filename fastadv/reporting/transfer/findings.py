"""How comparisons are worded: findings, and the columns of a table on a pair.

A finding calls a difference significant only after a paired test and Holm's correction for
the family that the test is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from fastadv.errors import first_few
from fastadv.groups import grouped
from fastadv.reporting.figures.lines import Panel
from fastadv.reporting.transfer.comparisons import way
from fastadv.reporting.transfer.condition import condition_labels
from fastadv.reporting.transfer.pairs import Comparison
from fastadv.reporting.transfer.study import FEW, Study, format_p, published_columns
from fastadv.statistics.across import sets_lead
from fastadv.statistics.power import wins_needed


def wins_finding(found: Sequence[Comparison]) -> str:
    """State how often the robust source is ahead, and how often significantly so."""
    total, tested = len(found), [each for each in found if each.adjusted is not None]
    mean = lead(fmean(each.difference for each in found))
    if total == 1:
        text = f"The robust source is {mean} in the one comparison there is. "
    else:
        ahead = sum(each.difference > 0 for each in found)
        behind = sum(each.difference < 0 for each in found)
        text = (
            f"The robust source is ahead in {ahead} of {total} comparisons and behind in "
            f"{behind}; on average it is {mean}. "
        )
    untested = {each.untested for each in found} - {""}
    if not tested:
        return text + f"This is {' or '.join(sorted(untested))}."
    up = sum(each.significant and each.difference > 0 for each in tested)
    down = sum(each.significant and each.difference < 0 for each in tested)
    if up + down:
        text += f"Significant: {up} in its favour, {down} against it."
    else:
        most = max(len(each.seeds) for each in tested)
        of = "The difference is not" if total == 1 else "None of the differences is"
        text += f"{of} significant at this sample size ({most} seeds)."
    if untested:
        count = total - len(tested)
        text += f" {count} of {total}: {' or '.join(sorted(untested))}."
    return text


def lead(points: float) -> str:
    """Describe a difference in points of percent."""
    size = f"{abs(points):.1f}"
    if float(size) == 0:
        return "level (less than 0.05 points apart)"
    return f"{size} points {'ahead' if points > 0 else 'behind'}"


def rise_finding(panels: Iterable[Panel], span: str) -> list[str]:
    """State in how many lines accuracy rises from one end to the other, and by how much.

    `span` names the two ends, such as "the smallest to the largest network".
    """
    rises = [
        points[max(points)].y - points[min(points)].y
        for panel in panels
        for points in panel.series.values()
        if len(points) > 1
    ]
    if not rises:
        return []
    mean, lines = sum(rises) / len(rises), "line" if len(rises) == 1 else "lines"
    return [
        f"From {span}, accuracy rises in {sum(r > 0 for r in rises)} and falls in "
        f"{sum(r < 0 for r in rises)} of {len(rises)} {lines}, by {mean:+.1f} points on "
        "average. This is not tested."
    ]


def primary_findings(study: Study) -> list[str]:
    """State on how many targets the best robust radius is certainly better or worse."""
    found = study.tests.primary
    if not found:
        return []
    if len(found) == 1:
        [each] = found
        return [
            f"Primary test ({study.labels[each.condition]}, {each.arch}): "
            f"{each.robust.first.training} is {verdict(each)} than standard training."
        ]
    trains = found[0].condition.trains
    names = {each: each.condition.target for each in found}
    up = [names[e] for e in found if e.significant and e.difference > 0]
    down = [names[e] for e in found if e.significant and e.difference < 0]
    untested = [names[e] for e in found if e.adjusted is None]
    open_ = len(found) - len(up) - len(down) - len(untested)
    chosen = {
        "val": "the best robust radius (chosen on validation images)",
        "test": "the best robust radius (chosen on the test images, which flatters it)",
        "": "the robust source",
    }[max((each.by for each in found), key=("", "val", "test").index)]
    parts = [
        f"significantly better on {len(up)}{_listed(up)}",
        f"significantly worse on {len(down)}{_listed(down)}",
        f"neither on {open_}",
    ]
    parts += [f"not tested on {len(untested)}{_listed(untested)}"] * bool(untested)
    return [
        f"Primary tests ({trains}): compared with standard training, {chosen} is "
        f"{', '.join(parts)} of {len(found)} target(s), after Holm's correction for "
        f"{study.tests.counted} p-value(s)."
    ]


def _listed(names: Sequence[str]) -> str:
    return f" ({first_few(names, FEW)})" if names else ""


def sets_findings(found: Sequence[Comparison]) -> list[str]:
    """Sum up the leads across data sets, once for each way to transfer.

    Architectures are averaged first: they share the test images, and often more.
    """
    ways = grouped(found, lambda each: way(each.condition))
    titles = condition_labels(
        replace(condition, dataset="all data sets") for condition in ways
    )
    lines = []
    for condition, of_way in ways.items():
        by_target = grouped(of_way, lambda each: each.condition.target)
        if len(by_target) < 2:
            continue
        of_sets = list(by_target.values())
        lead_of = [fmean(each.difference for each in of_set) for of_set in of_sets]
        found_ = sets_lead(lead_of)
        title = titles[replace(condition, dataset="all data sets")]
        text = (
            f"Across data sets ({title.removeprefix('all data sets, ')}), robust sources "
            f"are ahead on {found_.ahead} of {len(lead_of)} and behind on {found_.behind}"
        )
        text += f", {found_.ties} tied" * bool(found_.ties)
        text += f"; the mean lead is {found_.mean:+.2f} points"
        if any(each.by == "test" for of_set in of_sets for each in of_set):
            text += (
                ". The radius was chosen on the test images, which flatters it, so this "
                "is not tested."
            )
        elif found_.low is None or found_.high is None:
            text += ", without an interval."
        else:
            text += (
                f", 95 % interval over data sets [{found_.low:+.2f}, {found_.high:+.2f}]. "
                f"Sign test {_p_text(found_.sign_p)}{' without ties' * bool(found_.ties)}, "
                f"Wilcoxon's signed-rank test {_p_text(found_.rank_p)}."
            )
            if wins_needed(len(lead_of) - found_.ties) is None:
                text += " So few data sets cannot reach p < 0.05 in the sign test."
        lines.append(text)
    return lines


def _p_text(p: float | None) -> str:
    text = format_p(p) or "not possible"
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def test_columns(each: Comparison) -> dict[str, object]:
    """Return difference, test and what the test covers, for a table."""
    low, high, over = each.estimate.low, each.estimate.high, each.estimate.over
    interval = ""
    if low is not None and high is not None:
        interval = f" [{low:+.1f}, {high:+.1f}]"
    seeds, runs = len(each.seeds), [len(side.cells) for side in each.key]
    covered = {
        "seeds": f"{seeds} seed{'s' * (seeds > 1)}",
        "source runs": f"{runs[0]}+{runs[1]} runs",
        "test images": "images",
    }
    return {
        "over": ", ".join(covered[factor] for factor in over or ["seeds"]),
        "difference": f"{each.difference:+.2f}{interval}",
        "p": format_p(each.p),
        "p (Holm)": format_p(each.adjusted),
    }


def comparison_columns(study: Study, each: Comparison) -> dict[str, object]:
    """Return difference, test and published counterpart of a pair, for a table."""
    theirs, unlike = each.published(study.names), each.unlike_published(study.names)
    remarks = [each.untested] if each.untested else []
    remarks += [each.refused] if each.refused else []
    if theirs is not None and unlike:
        remarks.append(f"not as published: {', '.join(unlike)}")
    return {
        **test_columns(each),
        **published_columns(each.difference, theirs, "+"),
        "remarks": "; ".join(remarks) or None,
    }


def published_finding(study: Study, found: Sequence[Comparison]) -> list[str]:
    """State how often published differences of the same conditions have our sign."""
    both = [
        (each, theirs)
        for each in found
        if (theirs := each.published(study.names)) is not None
    ]
    if not both:
        return []
    # Rounded: the mean of differences that cancel out is 0 but for the last digits.
    signs = [round(each.difference, 9) * round(theirs, 9) for each, theirs in both]
    text = (
        f"Of these comparisons {len(both)} have a published counterpart; in "
        f"{sum(sign > 0 for sign in signs)} of those our difference has the published "
        f"sign, in {sum(sign < 0 for sign in signs)} the other one"
    )
    zeros = signs.count(0)
    text += f", in {zeros} ours or theirs is exactly 0." if zeros else "."
    unlike = [word for each, _ in both for word in each.unlike_published(study.names)]
    if unlike:
        text += (
            " Compare directions, not levels: ours differ from the published experiments "
            f"({', '.join(dict.fromkeys(unlike))})."
        )
    return [text]


def brief(summary: str, lines: Mapping[Comparison, str]) -> list[str]:
    """Return all lines where they are few; else the summary and the significant ones."""
    if len(lines) <= FEW:
        return [summary, *lines.values()]
    certain = [line for each, line in lines.items() if each.significant]
    more = len(certain) - FEW
    left_out = [f"{more} more significant one(s) are in the table."] if more > 0 else []
    return [summary, *certain[:FEW], *left_out]


def verdict(each: Comparison) -> str:
    """State how far apart the two are and how certain that is; "than" can follow."""
    size = f"{abs(each.difference):.1f} points "
    size += "higher" if each.difference >= 0 else "lower"
    if each.adjusted is None:
        return f"{size} ({each.untested})"
    after = f"{_p_text(each.adjusted)} after correction"
    if each.significant:
        return f"{size} ({after})"
    return f"{size} (not significant with {len(each.seeds)} seeds, {after})"
