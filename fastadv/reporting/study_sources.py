"""Robust against standard sources: bars, radii, widths, source accuracy, granularity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure

from fastadv.reporting.bars import comparison_bars
from fastadv.reporting.cells import (
    Cell,
    Comparison,
    Setting,
    compare,
)
from fastadv.reporting.html import Section, Table
from fastadv.reporting.lines import Cloud, Panel, Point, cloud_panels, line_panels
from fastadv.reporting.study import (
    INTERVAL_NOTE,
    TEST_NOTE,
    Study,
    arch_colors,
    brief,
    format_p,
    format_value,
    label_colors,
    make_panels,
    make_table,
    published_difference,
    radius,
    verdict,
    wins_finding,
)
from fastadv.statistics import fit_line

_WIDTHS = ("resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4")


def robust_and_standard(study: Study) -> Section | None:
    """Bars of the best robust source beside the standard one."""
    found = compare(study.most)
    if not found:
        return None
    labels, archs = study.labels, {c.robust.arch for c in found}
    groups = {}
    for each in found:
        label = labels[each.robust.setting].replace(", ", "\n")
        groups[f"{label}\n{each.robust.arch}" if len(archs) > 1 else label] = each
    figure = comparison_bars(groups, study.published)
    columns = [
        "setting", "arch", "standard", "robust", "source", "seeds", "difference",
        "95 % interval", "p", "p (Holm)", "published difference", "ours - published",
    ]  # fmt: skip
    rows = []
    for each in found:
        theirs = published_difference(study, each)
        rows.append(
            [
                labels[each.robust.setting],
                each.robust.arch,
                format_value(each.standard),
                format_value(each.robust),
                each.robust.label,
                len(each.seeds),
                f"{each.difference:+.2f}",
                f"{each.low:+.2f} to {each.high:+.2f}" if each.p is not None else None,
                format_p(each.p),
                format_p(each.adjusted),
                None if theirs is None else f"{theirs:+.2f}",
                None if theirs is None else f"{each.difference - theirs:+.2f}",
            ]
        )
    return Section(
        "Robust against standard",
        [_chosen_by(found), TEST_NOTE, INTERVAL_NOTE],
        [(figure, "Accuracy with standard and robust sources.")],
        [make_table(columns, rows, "Robust against standard sources, percent.")],
        findings=[wins_finding(found), *published_finding(study, found)],
    )


def _chosen_by(found: Sequence[Comparison]) -> str:
    by = {each.by for each in found}
    if "test" in by:
        return (
            "Of several robust sources the best is shown; where nothing was held out it "
            "was chosen on the test images, which flatters it."
        )
    if "val" in by:
        return "Of several robust sources the one best on validation images is shown."
    return "The one robust source of each architecture beside the standard one."


def published_finding(study: Study, found: Sequence[Comparison]) -> list[str]:
    """Whether published differences of the same settings point the same way."""
    pairs = [(each, published_difference(study, each)) for each in found]
    both = [(each, theirs) for each, theirs in pairs if theirs is not None]
    if not both:
        return []
    same = sum((each.difference > 0) == (theirs > 0) for each, theirs in both)
    return [
        f"Of {len(both)} comparison(s) with a published counterpart, {same} point(s) the "
        "same way. The published sources were trained on ImageNet at 224 px; compare "
        "directions, not levels, unless yours are those."
    ]


def against_eps(study: Study) -> Section | None:
    """Accuracy against the radius of pretraining."""
    cells = [
        c for c in study.most if c.threat is not None and c.setting.mode != "scratch"
    ]
    shown: list[Cell] = []
    findings: list[str] = []
    figures: list[tuple[Figure, str]] = []
    for norm in ("l2", "linf"):
        of_norm = [c for c in cells if c.threat and c.threat[0] in (norm, None)]
        radii = sorted({c.threat[1] for c in of_norm if c.threat})
        if len(radii) < 3:
            continue
        place = {eps: float(i) for i, eps in enumerate(radii)}
        panels = make_panels(
            study, of_norm, lambda c: c.arch, partial(_place, place), least=3
        )
        if not panels:
            continue
        scale = 255 if norm == "linf" else 1
        ticks = {place[eps]: f"{eps * scale:.3g}" for eps in radii}
        unit = "eps of pretraining, " + ("linf, /255" if scale > 1 else "l2")
        figure = line_panels(
            panels,
            colors=arch_colors(of_norm),
            ticks=ticks,
            x_label=unit,
            y_label="accuracy (%)",
        )
        figures.append(
            (figure, f"Accuracy against the radius of pretraining ({norm}).")
        )
        shown += of_norm
        findings += eps_findings(of_norm, study.labels)
    if not figures:
        return None
    table = study.table(shown)
    text = [
        "Radii are evenly spaced, not to scale. " + INTERVAL_NOTE,
        "The best radius is chosen on validation images, and its lead over standard "
        "training tested on the test images. " + TEST_NOTE,
    ]
    return Section("Accuracy against eps", text, figures, [table], findings=findings)


def eps_findings(cells: Sequence[Cell], labels: Mapping[Setting, str]) -> list[str]:
    """Whether the best radius differs from none: of all, and which certainly do."""
    found = compare(cells)
    if not found:
        return []
    chosen = {
        each: f"{labels[each.robust.setting]}, {each.robust.arch}: {each.robust.label} "
        f"is {verdict(each)} than standard training."
        for each in found
    }
    return brief(f"Best radius against none. {wins_finding(found)}", chosen)


def by_width(study: Study) -> Section | None:
    """Accuracy against the width of ResNets."""
    cells = [c for c in study.most if c.arch in _WIDTHS and c.threat is not None]
    archs = [a for a in _WIDTHS if any(c.arch == a for c in cells)]
    if len(archs) < 2:
        return None
    place = {arch: float(i) for i, arch in enumerate(archs)}
    panels = make_panels(
        study, cells, lambda c: c.label, lambda c: place[c.arch], least=2
    )
    if not panels:
        return None
    figure = line_panels(
        panels,
        colors=label_colors(cells),
        ticks={x: arch.replace("wide_resnet", "wrn") for arch, x in place.items()},
        x_label="architecture, by size",
        y_label="accuracy (%)",
    )
    ends = [
        points[max(points)].y - points[min(points)].y
        for panel in panels
        for points in panel.series.values()
        if len(points) == len(archs)
    ]
    findings = []
    if ends:
        findings.append(
            f"From {archs[0]} to {archs[-1]} accuracy rises in "
            f"{sum(end > 0 for end in ends)} of {len(ends)} lines, by "
            f"{sum(ends) / len(ends):+.1f} points on average; not tested."
        )
    return Section(
        "Width",
        [INTERVAL_NOTE],
        [(figure, "Accuracy by architecture, standard and robust sources.")],
        findings=findings,
    )


def against_source_accuracy(study: Study) -> Section | None:
    """Transfer against the accuracy of the source, at one radius."""
    groups: dict[tuple[Setting, str], list[Cell]] = {}
    for cell in study.most:
        if cell.source_accuracy is not None and cell.threat is not None:
            groups.setdefault((cell.setting, cell.label), []).append(cell)
    groups = {key: cells for key, cells in groups.items() if len(cells) >= 3}
    if not groups:
        return None
    panels: dict[str, dict[str, Cloud]] = {}
    shares: dict[str, list[float]] = {}
    rows = []
    for (setting, threat), cells in groups.items():
        x = [cell.source_accuracy or 0.0 for cell in cells]
        y = [cell.mean for cell in cells]
        line = fit_line(x, y)
        cloud = Cloud([cell.arch for cell in cells], x, y, line)
        panels.setdefault(study.labels[setting], {})[threat] = cloud
        if line is not None:
            shares.setdefault(threat, []).append(line.r2)
            rows.append(
                [
                    study.labels[setting],
                    threat,
                    len(cells),
                    f"{line.r2:.2f}",
                    f"{line.slope:+.2f}",
                    format_p(line.p),
                ]
            )
    findings = [
        f"{threat}: R^2 from {min(found):.2f} to {max(found):.2f} over {len(found)} "
        "setting(s)."
        if len(found) > 1
        else f"{threat}: R^2 = {found[0]:.2f}."
        for threat, found in shares.items()
    ]
    figure = cloud_panels(
        panels,
        colors=label_colors([c for cells in groups.values() for c in cells]),
        x_label="source accuracy (%)",
        y_label="transfer accuracy (%)",
    )
    columns = ["setting", "threat", "architectures", "R^2", "slope", "p of the slope"]
    return Section(
        "Source accuracy against transfer",
        [
            "At one radius, one point per architecture. Published checkpoints have the "
            "ImageNet accuracy of their paper. With so few architectures a large R^2 is "
            "easily chance: the p-values, not corrected for the number of lines, say so."
        ],
        [(figure, "Accuracy on the target against accuracy of the source.")],
        [Table(columns, rows, "Least-squares lines, by setting and threat.")],
        findings=findings,
    )


def by_granularity(study: Study) -> Section | None:
    """What robust sources gain when targets are reduced to fewer pixels first."""
    found = compare(study.most)
    reduced = {str(c.robust.setting) for c in found if c.robust.setting.downscale}
    found = [c for c in found if str(c.robust.setting) in reduced]
    sides = sorted(
        {c.robust.setting.downscale for c in found}, key=lambda s: (s == 0, s)
    )
    if len(sides) < 2:
        return None
    place = {side: float(i) for i, side in enumerate(sides)}
    series: dict[str, dict[str, dict[float, Point]]] = {}
    for each in found:
        short, arch = str(each.robust.setting), each.robust.arch
        point = Point(each.difference, each.low, each.high)
        points = series.setdefault(short, {}).setdefault(arch, {})
        points[place[each.robust.setting.downscale]] = point
    panels = [
        Panel(title, of_arch)
        for title, of_arch in series.items()
        if any(len(points) > 1 for points in of_arch.values())
    ]
    if not panels:
        return None
    figure = line_panels(
        panels,
        colors=arch_colors([c.robust for c in found]),
        ticks={x: f"{side} px" if side else "native" for side, x in place.items()},
        x_label="images reduced to",
        y_label="robust - standard (points)",
        zero=True,
    )
    findings = []
    for side in sides:
        of_side = [c for c in found if c.robust.setting.downscale == side]
        what = f"Reduced to {side} px" if side else "Native images"
        findings.append(f"{what}: {wins_finding(of_side)}")
    return Section(
        "Granularity",
        [_chosen_by(found), TEST_NOTE],
        [(figure, "Lead of robust sources by the side images were reduced to.")],
        findings=findings,
    )


def _place(place: Mapping[float, float], cell: Cell) -> float:
    return place[radius(cell)]
