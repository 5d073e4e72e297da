"""Sections on the accuracy of sources on their own data set, against that after transfer."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from fastadv.reporting.figures.lines import Cloud, Panel, draw_panels, panel_caption
from fastadv.reporting.page.html import Section
from fastadv.reporting.threats import threat
from fastadv.reporting.transfer.cells import Cell
from fastadv.reporting.transfer.condition import Condition
from fastadv.reporting.transfer.curves import draw_clouds
from fastadv.reporting.transfer.study import (
    Study,
    arch_colors,
    format_p,
    line_colors,
    make_table,
)
from fastadv.statistics import fit_line

_POINTS = 3  # of a line


def against_source_accuracy(study: Study) -> Section | None:
    """Show transfer against the accuracy of the source, at one radius."""
    groups: dict[tuple[Condition, str], dict[str, list[Cell]]] = {}
    for cell in _known(study):
        by_arch = groups.setdefault((cell.condition, cell.training), {})
        by_arch.setdefault(cell.arch, []).append(cell)
    groups = {key: archs for key, archs in groups.items() if len(archs) >= _POINTS}
    if not groups:
        return None
    drawn = [c for archs in groups.values() for cells in archs.values() for c in cells]
    clouds: dict[str, dict[str, Cloud]] = {}
    shares: dict[str, list[float]] = {}
    lines = []
    for (condition, training), archs in groups.items():
        x = [fmean(c.source_accuracy or 0.0 for c in cells) for cells in archs.values()]
        y = [fmean(cell.mean for cell in cells) for cells in archs.values()]
        line = fit_line(x, y)
        first = next(iter(archs.values()))[0]
        clouds.setdefault(study.title(first), {})[training] = Cloud(
            [*archs], x, y, line
        )
        if line is not None:
            shares.setdefault(training, []).append(line.r2)
            lines.append(
                {
                    "setting": study.labels[condition],
                    "n": first.n,
                    "training": training,
                    "architectures": len(archs),
                    "R^2": f"{line.r2:.2f}",
                    "published R^2": _published_share(study, first),
                    "slope": f"{line.slope:+.2f}",
                    "p of the slope": format_p(line.p),
                }
            )
    findings = [
        f"At one radius ({training}), the accuracy of the source explains {_share(found)} "
        "of the variance of transfer accuracy between architectures."
        for training, found in shares.items()
    ]
    labels = ("source accuracy (%)", "transfer accuracy (%)")
    caption = "Accuracy on the target against accuracy of the source."
    why = (
        "fewer than three architectures of known source accuracy at one radius, or from "
        "scratch"
    )
    return Section(
        "Source accuracy against transfer",
        [
            "At one radius, one point per architecture, the mean of its source runs. "
            "Published checkpoints have the ImageNet accuracy of their paper; published "
            "values of R^2 are of other architectures (Salman et al. 2020, table 2). With "
            "so few architectures a large R^2 is easily chance: the p-values, not "
            "corrected for the number of lines, say so.",
            *study.most_note,
            *study.left_out(study.cells, drawn, why),
        ],
        [
            draw_clouds(
                clouds, line_colors(drawn, lambda c: c.training), labels, caption
            )
        ],
        [make_table(lines, "Least-squares lines, by setting and training.")],
        findings=findings,
    )


def over_all_radii(study: Study) -> Section | None:
    """Show transfer against the accuracy of the source, over all radii of pretraining.

    Source:
        Salman et al. 2020 (2007.08489), figure 5.
    """
    groups: dict[tuple[Condition, str], list[Cell]] = {}
    for cell in _known(study):
        groups.setdefault((cell.condition, cell.arch), []).append(cell)
    groups = {
        key: sorted(cells, key=lambda c: ((c.threat or ("",))[0] or "", c.radius))
        for key, cells in groups.items()
        if len({cell.threat for cell in cells}) >= _POINTS
    }
    if not groups:
        return None
    drawn = [cell for cells in groups.values() for cell in cells]
    panels: dict[str, dict[str, Cloud]] = {}
    theirs: dict[str, dict[str, dict[float, float]]] = {}
    lines, shares, best_is_most_accurate = [], [], 0
    for (condition, arch), cells in groups.items():
        x = [cell.source_accuracy or 0.0 for cell in cells]
        y = [cell.mean for cell in cells]
        line, title = fit_line(x, y), study.title(cells[0])
        panels.setdefault(title, {})[arch] = Cloud(
            [cell.training for cell in cells], x, y, None
        )
        published = {
            at: value
            for at, cell in zip(x, cells, strict=True)
            if (value := cell.published(study.names)) is not None
        }
        theirs.setdefault(title, {})[arch] = published
        best = max(cells, key=lambda c: c.mean)
        accurate = max(cells, key=lambda c: c.source_accuracy or 0.0)
        best_is_most_accurate += best is accurate
        shares += [] if line is None else [line.r2]
        lines.append(
            {
                "setting": study.labels[condition],
                "arch": arch,
                "n": cells[0].n,
                "sources": len(cells),
                "R^2": None if line is None else f"{line.r2:.2f}",
                "slope": None if line is None else f"{line.slope:+.2f}",
                "best transfer": f"{best.label}: {best.mean:.2f}",
                "its source accuracy": f"{best.source_accuracy:.2f}",
                "most accurate source": f"{accurate.label}: {accurate.mean:.2f}",
                "its own accuracy": f"{accurate.source_accuracy:.2f}",
            }
        )
    findings = []
    if shares:
        findings = [
            f"Over all radii of one architecture, the accuracy of the source explains "
            f"{_share(shares)} of the variance of transfer accuracy. In "
            f"{len(groups) - best_is_most_accurate} of {len(groups)} line(s) the source "
            "that transfers best is not the most accurate one. This is not tested."
        ]
    figure = draw_panels(
        [
            Panel(title, clouds=of_panel, published=theirs[title])
            for title, of_panel in panels.items()
        ],
        arch_colors(drawn, lambda c: c.arch),
        "source accuracy (%)",
        "transfer accuracy (%)",
    )
    caption = "Accuracy on the target against accuracy of the source, over all radii."
    return Section(
        "Source accuracy over all radii",
        [
            "One point per source, labelled by how it was trained; the sources of one "
            "architecture share a colour. Among standard networks, more accurate ones "
            "usually transfer better; where robust networks are less accurate and "
            "transfer better, the points do not lie on one rising line.",
            *study.most_note,
            *study.left_out(
                study.cells,
                drawn,
                "fewer than three radii of known source accuracy, or from scratch",
            ),
        ],
        [(figure, panel_caption(caption, len(panels)))],
        [make_table(lines, "Least-squares lines over all radii, by architecture.")],
        findings=findings,
    )


def _known(study: Study) -> list[Cell]:
    """Return the cells whose source has a known training and accuracy."""
    return [
        cell
        for cell in study.most
        if cell.source_accuracy is not None
        and (cell.standard or cell.robust)
        and cell.condition.mode != "scratch"
    ]


def _share(found: Sequence[float]) -> str:
    """Write shares of variance as one R^2, or as their range."""
    low, high = f"{min(found):.2f}", f"{max(found):.2f}"
    if low == high:
        return f"R^2 = {low}"
    return f"R^2 = {low} to {high} ({len(found)} lines)"


def _published_share(study: Study, cell: Cell) -> str | None:
    condition = cell.condition
    if cell.threat is None or condition.downscale:
        return None
    dataset = study.names.get(condition.dataset, condition.dataset)
    shares: dict[object, float] = {}
    found = shares.get((dataset, condition.mode, threat(*cell.threat)))
    return None if found is None else f"{found:.2f}"
