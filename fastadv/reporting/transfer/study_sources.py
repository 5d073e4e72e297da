"""Robust against standard sources: bars, radii, widths, source accuracy, granularity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from fastadv.reporting.figures.bars import comparison_bars
from fastadv.reporting.figures.lines import (
    Cloud,
    Panel,
    Point,
    cloud_panels,
    line_panels,
)
from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.transfer.cells import Cell
from fastadv.reporting.transfer.comparisons import Comparison, native, with_sides
from fastadv.reporting.transfer.findings import (
    brief,
    comparison_cells,
    pair_label,
    published_difference,
    rise_finding,
    unlike_published,
    verdict,
    wins_finding,
)
from fastadv.reporting.transfer.settings import Setting
from fastadv.reporting.transfer.study import (
    INTERVAL_NOTE,
    Study,
    arch_colors,
    family_title,
    format_p,
    format_value,
    line_colors,
    make_panels,
    make_table,
    name_within,
    radius,
)
from fastadv.statistics import fit_line

_WIDTHS = ("resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4")


def robust_and_standard(study: Study) -> Section | None:
    """Bars of the best robust source beside the standard one."""
    found = study.comparisons["best"]
    if not found:
        return None
    labels, archs = study.labels, {c.robust.arch for c in found}
    groups = {}
    for each in found:
        words = [*labels[each.robust.setting].split(", "), f"n = {each.robust.n}"]
        if len(archs) > 1:
            words.append(each.robust.arch)
        groups["\n".join(words)] = each
    figure = comparison_bars(groups, study.published)
    lines = [
        {
            "setting": labels[each.robust.setting],
            "arch": each.robust.arch,
            "n": each.robust.n,
            "standard": format_value(each.standard),
            "robust": format_value(each.robust),
            "source": pair_label(each),
        }
        | comparison_cells(study, each)
        for each in found
    ]
    columns, rows = list(lines[0]), [list(line.values()) for line in lines]
    return Section(
        "Robust against standard",
        [
            _chosen_by(found),
            study.test_note,
            INTERVAL_NOTE,
            *study.most_note,
            *study.left_out(
                study.cells,
                [cell for each in found for cell in (each.robust, each.standard)],
                "no robust and standard source to pair, or from scratch",
            ),
        ],
        [(figure, "Accuracy with standard and robust sources.")],
        [make_table(columns, rows, "Robust against standard sources, percent.")],
        findings=[wins_finding(found), *published_finding(study, found)],
    )


def _chosen_by(found: Sequence[Comparison]) -> str:
    by = {each.by for each in found}
    if "test" in by:
        return (
            "Of several sources the best is shown; where nothing was held out it was "
            "chosen on the test images, which flatters it."
        )
    if "val" in by:
        return "Of several sources the one best on validation images is shown."
    return "The one robust source of each architecture beside the standard one."


def published_finding(study: Study, found: Sequence[Comparison]) -> list[str]:
    """Whether published differences of the same settings point the same way."""
    pairs = [(each, published_difference(study, each)) for each in found]
    both = [(each, theirs) for each, theirs in pairs if theirs is not None]
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
    unlike = unlike_published(study, [each for each, _ in both])
    if unlike:
        text += (
            " Compare directions, not levels: ours differ from the published experiments "
            f"({unlike})."
        )
    return [text]


def against_eps(study: Study) -> Section | None:
    """Accuracy against the radius of pretraining."""
    cells = [
        c for c in study.most if c.threat is not None and c.setting.mode != "scratch"
    ]
    shown: list[Cell] = []
    best: dict[str, list[Comparison]] = {}
    figures: list[tuple[Figure, str]] = []
    for norm in ("l2", "linf"):
        of_norm = [c for c in cells if c.threat and c.threat[0] in (norm, None)]
        radii = sorted({radius(c) for c in of_norm})
        place = {eps: float(i) for i, eps in enumerate(radii)}
        name = name_within(of_norm, lambda c: c.arch)
        panels = make_panels(
            study,
            of_norm,
            study.title,
            name,
            lambda c, place=place: place[radius(c)],  # type: ignore[misc]
            least=3,
        )
        if not panels:
            continue
        scale = 255 if norm == "linf" else 1
        ticks = {place[eps]: f"{eps * scale:.3g}" for eps in radii}
        unit = "eps of pretraining, " + ("linf, /255" if scale > 1 else "l2")
        figure = line_panels(
            panels,
            colors=arch_colors(map(name, of_norm)),
            ticks=ticks,
            x_label=unit,
            y_label="accuracy (%)",
        )
        caption = f"Accuracy against the radius of pretraining ({norm})."
        figures.append((figure, caption))
        titles = {panel.title for panel in panels}
        drawn = [c for c in of_norm if study.title(c) in titles]
        shown += [c for c in drawn if c not in shown]
        best[norm] = [c for c in study.comparisons[norm] if c.robust in drawn]
    if not figures:
        return None
    table = study.pivot(
        shown,
        {"arch": lambda c: c.arch, "n": lambda c: c.n},
        name_within(shown, lambda c: c.training),
        lambda c: ((c.threat and c.threat[0]) or "", radius(c), c.label),
    )
    text = [
        "Radii are evenly spaced, not to scale. " + INTERVAL_NOTE,
        "The best radius is chosen on validation images where there are any, and its lead "
        "over standard training tested on the test images. " + study.test_note,
        *study.most_note,
        *study.left_out(study.cells, shown, "fewer than three radii, or from scratch"),
    ]
    findings = eps_findings(study, best)
    return Section("Accuracy against eps", text, figures, [table], findings=findings)


def eps_findings(study: Study, best: Mapping[str, Sequence[Comparison]]) -> list[str]:
    """By norm, whether the best radius differs from none, and which certainly do."""
    findings = []
    for norm, found in best.items():
        if not found:
            continue
        chosen = {
            each: f"{study.title(each.robust)}, {each.robust.arch}: {pair_label(each)} "
            f"is {verdict(each)} than standard training."
            for each in found
        }
        start = f"Best {norm} radius against none. {wins_finding(found)}"
        findings += brief(start, chosen)
    return findings


def by_width(study: Study) -> Section | None:
    """Accuracy against the width of ResNets."""
    cells = [c for c in study.most if c.arch in _WIDTHS and c.threat is not None]
    archs = [a for a in _WIDTHS if any(c.arch == a for c in cells)]
    if len(archs) < 2:
        return None
    place = {arch: float(i) for i, arch in enumerate(archs)}
    name = name_within(cells, lambda c: c.training)
    panels = make_panels(
        study,
        cells,
        study.title,
        name,
        lambda c: place[c.arch],
        least=2,
    )
    if not panels:
        return None
    figure = line_panels(
        panels,
        colors=line_colors(cells, name),
        ticks={x: arch.replace("wide_resnet", "wrn") for arch, x in place.items()},
        x_label="architecture, by size",
        y_label="accuracy (%)",
    )
    titles = {panel.title for panel in panels}
    shown = [cell for cell in cells if study.title(cell) in titles]
    return Section(
        "Width",
        [
            INTERVAL_NOTE,
            *study.most_note,
            *study.left_out(study.cells, shown, "no ResNets of several widths"),
        ],
        [(figure, "Accuracy by architecture, standard and robust sources.")],
        findings=rise_finding(panels, "the smallest to the largest network"),
    )


def against_source_accuracy(study: Study) -> Section | None:
    """Transfer against the accuracy of the source, at one radius."""
    groups: dict[tuple[Setting, str], list[Cell]] = {}
    for cell in study.most:
        known = cell.source_accuracy is not None and cell.threat is not None
        if known and cell.setting.mode != "scratch":
            groups.setdefault((cell.setting, cell.training), []).append(cell)
    groups = {key: cells for key, cells in groups.items() if len(cells) >= 3}
    if not groups:
        return None
    drawn = [cell for cells in groups.values() for cell in cells]
    name = name_within(drawn, lambda c: c.arch)
    panels: dict[str, dict[str, Cloud]] = {}
    shares: dict[str, list[float]] = {}
    rows = []
    for (setting, threat), cells in groups.items():
        x = [cell.source_accuracy or 0.0 for cell in cells]
        y = [cell.mean for cell in cells]
        line = fit_line(x, y)
        cloud = Cloud(list(map(name, cells)), x, y, line)
        panels.setdefault(study.title(cells[0]), {})[threat] = cloud
        if line is not None:
            shares.setdefault(threat, []).append(line.r2)
            rows.append(
                [
                    study.labels[setting],
                    cells[0].n,
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
        colors=line_colors(drawn, lambda c: c.training),
        x_label="source accuracy (%)",
        y_label="transfer accuracy (%)",
    )
    columns = [
        "setting", "n", "threat", "architectures", "R^2", "slope", "p of the slope",
    ]  # fmt: skip
    return Section(
        "Source accuracy against transfer",
        [
            "At one radius, one point per architecture. Published checkpoints have the "
            "ImageNet accuracy of their paper. With so few architectures a large R^2 is "
            "easily chance: the p-values, not corrected for the number of lines, say so.",
            *study.most_note,
            *study.left_out(
                study.cells,
                drawn,
                "fewer than three architectures of known source accuracy at one radius, or "
                "from scratch",
            ),
        ],
        [(figure, "Accuracy on the target against accuracy of the source.")],
        [Table(columns, rows, "Least-squares lines, by setting and threat.")],
        findings=findings,
    )


def by_granularity(study: Study) -> Section | None:
    """What robust sources gain when targets are reduced to fewer pixels first."""
    cells, found = with_sides(study.cells), study.comparisons["sides"]
    sides = sorted(
        {c.robust.setting.downscale for c in found}, key=lambda s: (s == 0, s)
    )
    if len(sides) < 2:
        return None
    title = family_title(cells, native)
    place = {side: float(i) for i, side in enumerate(sides)}
    series: dict[str, dict[str, dict[float, Point]]] = {}
    for each in found:
        point = Point(each.difference, each.low, each.high)
        of_panel = series.setdefault(title(each.robust), {})
        points = of_panel.setdefault(each.robust.arch, {})
        points[place[each.robust.setting.downscale]] = point
    panels = [
        Panel(heading, of_arch)
        for heading, of_arch in series.items()
        if len({x for points in of_arch.values() for x in points}) > 1
    ]
    if not panels:
        return None
    figure = line_panels(
        panels,
        colors=arch_colors(c.robust.arch for c in found),
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
        [
            _chosen_by(found),
            study.test_note,
            *study.left_out(
                cells,
                [cell for each in found for cell in (each.robust, each.standard)],
                "no robust and standard source to pair",
            ),
        ],
        [(figure, "Lead of robust sources by the side images were reduced to.")],
        findings=findings,
    )
