"""Sections on sources: robust and standard, radius, width, source accuracy, granularity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from matplotlib.figure import Figure

from fastadv.groups import grouped
from fastadv.reporting.figures.bars import MOST_GROUPS, Bar, grouped_bars
from fastadv.reporting.figures.lines import Cloud, panel_caption
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.literature import shares_explained
from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.threats import threat
from fastadv.reporting.transfer.cells import Cell
from fastadv.reporting.transfer.comparisons import native, with_sides
from fastadv.reporting.transfer.curves import Axis, draw_clouds, draw_curves, even_axis
from fastadv.reporting.transfer.findings import (
    brief,
    comparison_columns,
    primary_findings,
    published_finding,
    rise_finding,
    sets_findings,
    test_columns,
    verdict,
    wins_finding,
)
from fastadv.reporting.transfer.forecast import forecast_text
from fastadv.reporting.transfer.pairs import Comparison
from fastadv.reporting.transfer.study import (
    Study,
    arch_colors,
    family_title,
    format_interval,
    format_p,
    line_colors,
    make_table,
    name_within,
)
from fastadv.reporting.transfer.study_published import published_best
from fastadv.statistics import fit_line

_WIDTHS = ("resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4")


def robust_and_standard(study: Study) -> Section | None:
    """Show bars of the best robust source beside the standard one."""
    found = study.tests.groups["best"]
    if not found:
        return None
    labels, several = study.labels, len({each.arch for each in found}) > 1
    groups = {}
    for each in found:
        parts = [*labels[each.condition].split(", "), f"n = {each.n}"]
        sides = {"standard": each.standard, "robust": each.robust}
        groups["\n".join(parts + [each.arch] * several)] = {
            name: Bar(*side.interval(), side.published(study.names))
            for name, side in sides.items()
        }
    lines = [
        {
            "setting": labels[each.condition],
            "arch": each.arch,
            "n": each.n,
            "standard": format_interval(*each.standard.interval()),
            "robust": format_interval(*each.robust.interval()),
            "source": each.robust.label,
        }
        | comparison_columns(study, each)
        for each in found
    ]
    why = "no robust and standard source to pair, or from scratch"
    caption = "Accuracy with standard and robust sources."
    figure = grouped_bars(groups, source_colors(["standard", "robust"]))
    return Section(
        "Robust against standard",
        [
            _chosen_by(found),
            study.test_note,
            *forecast_text(study.tests.primary),
            study.interval_note,
            *study.most_note,
            *study.left_out(study.cells, found, why),
        ],
        [(figure, panel_caption(caption, len(groups), MOST_GROUPS))],
        [
            make_table(lines, "Robust against standard sources, percent."),
            *_primary_table(study),
            *published_best(study, found),
        ],
        findings=[
            *primary_findings(study),
            *sets_findings(found),
            *([] if len(found) == 1 else [wins_finding(found)]),
            *published_finding(study, found),
        ],
    )


def _primary_table(study: Study) -> list[Table]:
    """Return the table of primary tests; none for a single one that is shown anyway."""
    found = study.tests.primary
    shown = {each.key for each in study.tests.groups["best"]}
    if len(found) == 1 and found[0].key in shown:
        return []
    lines = [
        {
            "setting": study.labels[each.condition],
            "arch": each.arch,
            "n": each.n,
            "source": each.robust.first.training,
        }
        | test_columns(each)
        for each in found
    ]
    caption = (
        "Primary tests, one per target: robust - standard, points of percent. All other "
        "differences of this page are exploratory."
    )
    return [make_table(lines, caption)]


def _chosen_by(found: Sequence[Comparison]) -> str:
    by = {each.by for each in found}
    if "test" in by:
        return (
            "Of several radii the best is shown; where nothing was held out it was "
            "chosen on the test images, which flatters it."
        )
    if "val" in by:
        return "Of several radii the one best on validation images is shown."
    return "The one robust source of each architecture beside the standard one."


def against_eps(study: Study) -> Section | None:
    """Show accuracy against the radius of pretraining."""
    cells = [c for c in study.most if c.plain and c.condition.mode != "scratch"]
    drawn: list[Cell] = []
    best: dict[str, list[Comparison]] = {}
    figures: list[tuple[Figure, str]] = []
    labels: dict[str, tuple[str, Callable[[float], str]]] = {
        "l2": ("l2", "{:.3g}".format),
        "linf": ("linf, /255", lambda eps: f"{eps * 255:.3g}"),
    }
    for norm, (unit, label) in labels.items():
        of_norm = [c for c in cells if c.threat and c.threat[0] in (norm, None)]
        name = name_within(of_norm, lambda c: c.arch)
        axis = even_axis(
            f"eps of pretraining, {unit}",
            attrgetter("radius"),
            sorted({c.radius for c in of_norm}),
            label,
        )
        found = draw_curves(
            study, of_norm, axis, study.title, name, arch_colors, least=3
        )
        if found is None:
            continue
        caption = f"Accuracy against the radius of pretraining ({norm})."
        figures.append(found.captioned(caption))
        drawn += [c for c in found.items if c not in drawn]
        best[norm] = [
            c for c in study.tests.groups[norm] if c.robust.first in found.items
        ]
    if not figures:
        return None
    table = study.pivot(
        drawn,
        {"arch": lambda c: c.arch, "n": lambda c: c.n},
        name_within(drawn, lambda c: c.training),
        lambda c: ((c.threat and c.threat[0]) or "", c.radius, c.label),
    )
    text = [
        "Radii are evenly spaced, not to scale. " + study.interval_note,
        "The best radius is chosen on validation images where there are any, and its lead "
        "over standard training tested on the test images. " + study.more_tests,
        *study.most_note,
        *study.left_out(study.cells, drawn, "fewer than three radii, or from scratch"),
    ]
    findings = []
    for norm, leads in best.items():
        chosen = {
            each: f"{study.title(each)}, {each.arch}: {each.robust.label} is "
            f"{verdict(each)} than standard training."
            for each in leads
        }
        if leads:
            start = f"Best {norm} radius against none. {wins_finding(leads)}"
            findings += brief(start, chosen)
    return Section("Accuracy against eps", text, figures, [table], findings=findings)


def by_width(study: Study) -> Section | None:
    """Show accuracy against the width of ResNets."""
    cells = [c for c in study.most if c.arch in _WIDTHS and c.threat is not None]
    archs = [a for a in _WIDTHS if any(c.arch == a for c in cells)]
    name = name_within(cells, lambda c: c.training)
    axis = even_axis(
        "architecture, by size",
        lambda c: c.arch,
        archs,
        lambda arch: arch.replace("wide_resnet", "wrn"),
    )
    drawn = draw_curves(study, cells, axis, study.title, name)
    if drawn is None:
        return None
    why = "no ResNets of several widths"
    return Section(
        "Width",
        [
            study.interval_note,
            *study.most_note,
            *study.left_out(study.cells, drawn.items, why),
        ],
        [drawn.captioned("Accuracy by architecture, standard and robust sources.")],
        findings=rise_finding(drawn.panels, "the smallest to the largest network"),
    )


def against_source_accuracy(study: Study) -> Section | None:
    """Show transfer against the accuracy of the source, at one radius."""
    known = [
        cell
        for cell in study.most
        if cell.source_accuracy is not None
        and cell.threat is not None
        and cell.condition.mode != "scratch"
    ]
    groups = {
        key: cells
        for key, cells in grouped(known, lambda c: (c.condition, c.training)).items()
        if len({cell.arch for cell in cells}) >= 3
    }
    if not groups:
        return None
    drawn = [cell for cells in groups.values() for cell in cells]
    name = name_within(drawn, lambda c: c.arch)
    clouds: dict[str, dict[str, Cloud]] = {}
    shares: dict[str, list[float]] = {}
    lines = []
    for (condition, trained), cells in groups.items():
        x = [cell.source_accuracy or 0.0 for cell in cells]
        y = [cell.mean for cell in cells]
        line = fit_line(x, y)
        cloud = Cloud(list(map(name, cells)), x, y, line)
        clouds.setdefault(study.title(cells[0]), {})[trained] = cloud
        if line is not None:
            shares.setdefault(trained, []).append(line.r2)
            lines.append(
                {
                    "setting": study.labels[condition],
                    "n": cells[0].n,
                    "threat": trained,
                    "architectures": len({cell.arch for cell in cells}),
                    "R^2": f"{line.r2:.2f}",
                    "published R^2": _published_share(study, cells[0]),
                    "slope": f"{line.slope:+.2f}",
                    "p of the slope": format_p(line.p),
                }
            )
    findings = [
        f"{trained}: R^2 from {min(found):.2f} to {max(found):.2f} over {len(found)} "
        "setting(s)."
        if len(found) > 1
        else f"{trained}: R^2 = {found[0]:.2f}."
        for trained, found in shares.items()
    ]
    colors = line_colors(drawn, lambda c: c.training)
    labels = ("source accuracy (%)", "transfer accuracy (%)")
    caption = "Accuracy on the target against accuracy of the source."
    why = (
        "fewer than three architectures of known source accuracy at one radius, or from "
        "scratch"
    )
    return Section(
        "Source accuracy against transfer",
        [
            "At one radius, one point per architecture. Published checkpoints have the "
            "ImageNet accuracy of their paper. With so few architectures a large R^2 is "
            "easily chance: the p-values, not corrected for the number of lines, say so. "
            "The published R^2 are over six networks (densenet161, mnasnet1_0, mobilenet_v2, "
            "resnext50_32x4d, shufflenet_v2_x1_0, vgg16_bn).",
            *study.most_note,
            *study.left_out(study.cells, drawn, why),
        ],
        [draw_clouds(clouds, colors, labels, caption)],
        [make_table(lines, "Least-squares lines, by setting and threat.")],
        findings=findings,
    )


def _published_share(study: Study, cell: Cell) -> str | None:
    """Return the published R^2 at the radius of a cell, on native images."""
    condition = cell.condition
    usual = cell.plain and not condition.downscale and cell.complete
    if cell.threat is None or not usual:
        return None
    dataset = condition.published(study.names)
    share = shares_explained().get((dataset, condition.mode, threat(*cell.threat)))
    return None if share is None else f"{share:.2f}"


def by_granularity(study: Study) -> Section | None:
    """Show what robust sources gain when targets are reduced to fewer pixels first."""
    cells, found = with_sides(study.cells), study.tests.groups["sides"]
    sides = sorted(
        {c.condition.downscale for c in found}, key=lambda side: (side == 0, side)
    )
    axis: Axis[Comparison] = even_axis(
        "images reduced to",
        lambda c: c.condition.downscale,
        sides,
        lambda side: f"{side} px" if side else "native",
    )
    panel, arch = family_title(cells, native), attrgetter("arch")
    drawn = draw_curves(study, found, axis, panel, arch, arch_colors)
    if drawn is None:
        return None
    findings = []
    for side in sides:
        of_side = [c for c in found if c.condition.downscale == side]
        what = f"Reduced to {side} px" if side else "Native images"
        findings.append(f"{what}: {wins_finding(of_side)}")
    return Section(
        "Granularity",
        [
            _chosen_by(found),
            study.more_tests,
            *study.left_out(cells, found, "no robust and standard source to pair"),
        ],
        [drawn.captioned("Lead of robust sources by the side images were reduced to.")],
        findings=findings,
    )
