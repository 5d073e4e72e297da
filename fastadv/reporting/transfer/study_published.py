"""Sections that repeat figures of Salman et al. 2020, with the published numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scipy.stats import spearmanr

from fastadv.reporting.figures.bars import MOST_GROUPS, Bar, grouped_bars
from fastadv.reporting.figures.lines import Cloud, panel_caption
from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.literature import (
    Record,
    best_trials,
    headline_accuracy,
    trials,
)
from fastadv.reporting.page.html import Section, Table
from fastadv.reporting.threats import training_label
from fastadv.reporting.transfer.cells import Cell
from fastadv.reporting.transfer.curves import draw_clouds
from fastadv.reporting.transfer.pairs import Comparison, Runs
from fastadv.reporting.transfer.study import (
    Study,
    arch_colors,
    format_interval,
    make_table,
    name_within,
)

_LEAST_RADII = 3
_BEST_ARCH = "best of four"


def across_radii(study: Study) -> Section | None:
    """Show transfer against the accuracy of the source over all radii of a network.

    Source: Salman et al. 2020, figure 5.
    """
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in study.most:
        norm = cell.threat[0] if cell.threat else None
        usual = cell.plain and cell.condition.mode != "scratch"
        if not usual or cell.source_accuracy is None:
            continue
        for wanted in ("l2", "linf") if norm is None else (norm,):
            key = (study.title(cell), cell.arch, wanted)
            groups.setdefault(key, []).append(cell)
    groups = {
        key: sorted(cells, key=lambda cell: cell.radius)
        for key, cells in groups.items()
        if len({cell.threat for cell in cells}) >= _LEAST_RADII
    }
    if not groups:
        return None
    drawn = [cell for cells in groups.values() for cell in cells]
    several = len({norm for _, _, norm in groups}) > 1
    clouds: dict[str, dict[str, Cloud]] = {}
    lines, lead = [], 0
    for (title, arch, norm), cells in groups.items():
        x = [cell.source_accuracy or 0.0 for cell in cells]
        y = [cell.mean for cell in cells]
        name = f"{arch}, {norm}" if several else arch
        clouds.setdefault(title, {})[name] = Cloud(
            [cell.training for cell in cells], x, y, None
        )
        best = max(cells, key=lambda cell: cell.mean)
        lead += best.robust
        rank = spearmanr(x, y).statistic if len(set(y)) > 1 else None
        lines.append(
            {
                "setting": title,
                "arch": arch,
                "norm": norm,
                "radii": len(cells),
                "rank correlation": None if rank is None else f"{rank:+.2f}",
                "most accurate source": cells[x.index(max(x))].training,
                "best for transfer": best.training,
            }
        )
    table = make_table(lines, "Spearman's rank correlation over the radii.")
    figure = draw_clouds(
        clouds,
        arch_colors(drawn, _arch_and_norm(several)),
        ("source accuracy (%)", "transfer accuracy (%)"),
        "Accuracy on the target against accuracy of the source, over radii.",
    )
    return Section(
        "Source accuracy over all radii",
        [
            "One point per radius of pretraining. Among standard networks, a more accurate "
            "source transfers better; over the radii of one architecture, that need not "
            "hold. Correlations over so few points are descriptions, not tests.",
            *study.most_note,
            *study.left_out(
                study.cells,
                drawn,
                "fewer than three radii of known source accuracy, or from scratch",
            ),
        ],
        [figure],
        [table, study.table(drawn)],
        findings=[
            f"A robust source, less accurate itself, has the best mean in {lead} of the "
            f"{len(groups)} series of radii (not tested here)."
        ],
    )


def _arch_and_norm(several: bool) -> Callable[[Cell], str]:
    """Return a function that names the line of a cell as `across_radii` does."""

    def name(cell: Cell) -> str:
        norm = (cell.threat[0] if cell.threat else None) or "l2"
        return f"{cell.arch}, {norm}" if several else cell.arch

    return name


def texture_trained(study: Study) -> Section | None:
    """Show texture-trained sources beside standard and robust ones.

    Source: Salman et al. 2020, figure 8b.
    """
    found = {(c.condition, c.arch, c.n): c for c in study.tests.groups["best"]}
    cells = [
        c
        for c in study.most
        if c.kind == "texture" and (c.condition, c.arch, c.n) in found
    ]
    if not cells:
        return None
    name = name_within(cells, lambda c: c.training)
    groups: dict[str, dict[str, Bar]] = {}
    lines = []
    ahead = 0
    for cell in cells:
        pair = found[cell.condition, cell.arch, cell.n]
        three: dict[str, Runs | Cell]
        three = {"standard": pair.standard, name(cell): cell, "robust": pair.robust}
        label = f"{study.title(cell)}\n{cell.arch}"
        groups.setdefault(label, {}).update(
            {
                key: Bar(*each.interval(), each.published(study.names))
                for key, each in three.items()
            }
        )
        ahead += pair.robust.mean > cell.mean
        lines.append(
            {
                "setting": study.labels[cell.condition],
                "arch": cell.arch,
                "n": cell.n,
                "source": cell.source,
            }
            | {key: format_interval(*each.interval()) for key, each in three.items()}
            | {"published": _decimals(cell.published_record(study.names))}
        )
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    colors = source_colors(names, unknown={name(cell) for cell in cells})
    figure = grouped_bars(groups, colors)
    caption = "Accuracy with standard, texture-trained and robust sources."
    return Section(
        "Texture-trained sources",
        [
            "A network that was trained on stylized images cannot rely on texture. It is a "
            "kind of its own here, and no standard source that robust ones are compared "
            "with. " + study.interval_note,
        ],
        [(figure, panel_caption(caption, len(groups), MOST_GROUPS))],
        [make_table(lines, "Percent.")],
        findings=[
            f"The robust source has a higher mean than the texture-trained one in {ahead} "
            f"of {len(cells)} comparison(s) (not tested here)."
        ],
    )


def published_best(study: Study, found: Sequence[Comparison]) -> list[Table]:
    """Return what was published of the best robust source against the standard one.

    Args:
        study: Knows the published names of data sets.
        found: Comparisons that the section shows.

    Returns:
        A table of the published counterparts of `found`; none where there are none.
    """
    lines: dict[tuple[str, str, str], dict[str, object]] = {}
    for each in found:
        condition = each.condition
        dataset = condition.published(study.names)
        for arch in (each.arch, _BEST_ARCH):
            if not condition.downscale and each.robust.complete:
                line = _published_line(dataset, condition.mode, arch)
                if line is not None:
                    lines[dataset, condition.mode, arch] = line
    if not lines:
        return []
    caption = (
        "Published: Salman et al. 2020, percent. Means are of three trials with the least "
        "and the largest in brackets; learning rate, epoch and the eps of the robust source "
        "were chosen on test images. The best single trial, over all radii and trials, is "
        "from their release. The best of four architectures is their Table 1."
    )
    return [make_table(list(lines.values()), caption)]


def _published_line(dataset: str, mode: str, arch: str) -> dict[str, object] | None:
    key, best = (dataset, mode, arch), None
    if arch == _BEST_ARCH:
        standard, robust = (
            headline_accuracy().get((dataset, mode, k)) for k in ("standard", "robust")
        )
    else:
        standard, robust = (trials().get((*key, k)) for k in ("standard", "robust"))
    if standard is None or robust is None:
        return None
    if key in best_trials():
        record, trained = best_trials()[key]
        best = f"{record.value:.2f} ({training_label(trained)})"
    return {
        "data set": dataset,
        "mode": mode,
        "arch": arch,
        "standard": _with_range(standard),
        "robust": _with_range(robust),
        "robust - standard": f"{robust.value - standard.value:+.2f}",
        "best single trial": best,
    }


def _with_range(record: Record) -> str:
    if record.low is None or record.high is None:
        return f"{record.value:.2f}"
    return f"{record.value:.2f} [{record.low:.2f}, {record.high:.2f}]"


def _decimals(record: Record | None) -> str | None:
    return None if record is None else f"{record.value:.2f}"
