"""How comparisons are worded: findings, and the columns of a table on a pair.

A finding calls a difference significant only after a paired t-test over seeds, corrected
by Holm's method for all comparisons of the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fastadv.reporting.figures.lines import Panel
from fastadv.reporting.transfer.comparisons import Comparison
from fastadv.reporting.transfer.study import FEW, Study, format_p, published_columns
from fastadv.statistics import mean_interval


def wins_finding(found: Sequence[Comparison]) -> str:
    """State how often the robust source is ahead, and how often significantly so."""
    total, tested = len(found), [each for each in found if each.adjusted is not None]
    mean = lead(mean_interval([each.difference for each in found])[0])
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


def comparison_columns(study: Study, each: Comparison) -> dict[str, object]:
    """Return difference, test and published counterpart of a pair, for a table."""
    theirs, unlike = each.published(study.names), each.unlike_published(study.names)
    interval = f" [{each.low:+.1f}, {each.high:+.1f}]" if each.p is not None else ""
    remarks = [each.untested] if each.untested else []
    if theirs is not None and unlike:
        remarks.append(f"not as published: {', '.join(unlike)}")
    return {
        "seeds": len(each.seeds),
        "difference": f"{each.difference:+.2f}{interval}",
        "p": format_p(each.p),
        "p (Holm)": format_p(each.adjusted),
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
    p = format_p(each.adjusted) or ""
    after = f"p {p if p.startswith('<') else f'= {p}'} after correction"
    if each.significant:
        return f"{size} ({after})"
    return f"{size} (not significant with {len(each.seeds)} seeds, {after})"
