"""Few training images: curves, the gain of robust sources, and how much trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastadv.reporting.cells import (
    Cell,
    Comparison,
    Setting,
    compare_pair,
    corrected,
)
from fastadv.reporting.html import Section
from fastadv.reporting.lines import Panel, Point, line_panels
from fastadv.reporting.study import (
    INTERVAL_NOTE,
    TEST_NOTE,
    Study,
    brief,
    format_p,
    line_colors,
    line_name,
    make_panels,
    make_table,
    published_difference,
    verdict,
    wins_finding,
)


def against_images(study: Study) -> Section | None:
    """Accuracy against the number of training images."""
    places = _image_places(study)
    if places is None:
        return None
    place, ticks = places
    cells = [c for c in study.cells if c.threat is not None]
    panels = make_panels(study, cells, line_name(cells), lambda c: place[c.n], least=2)
    if not panels:
        return None
    titles = {panel.title for panel in panels}
    shown = [cell for cell in cells if study.labels[cell.setting] in titles]
    figure = line_panels(
        panels,
        colors=line_colors(cells),
        ticks=ticks,
        x_label="training images",
        y_label="accuracy (%)",
    )
    return Section(
        "Few training images",
        ["Numbers of images are evenly spaced, not to scale. " + INTERVAL_NOTE],
        [(figure, "Accuracy against the number of training images.")],
        [study.table(shown)],
        findings=[],
    )


def gain_against_images(study: Study) -> Section | None:
    """Robust - natural against the number of training images."""
    places = _image_places(study)
    if places is None:
        return None
    place, ticks = places
    pairs = image_pairs(study.cells)
    by_setting: dict[Setting, list[Comparison]] = {}
    for pair in pairs:
        by_setting.setdefault(pair.robust.setting, []).append(pair)
    name = line_name([pair.robust for pair in pairs])
    panels = []
    for setting, of_setting in by_setting.items():
        if len({pair.robust.n for pair in of_setting}) < 2:
            continue
        series: dict[str, dict[float, Point]] = {}
        published: dict[str, dict[float, float]] = {}
        for pair in of_setting:
            line, x = name(pair.robust), place[pair.robust.n]
            point = Point(pair.difference, pair.low, pair.high)
            series.setdefault(line, {})[x] = point
            theirs = published_difference(study, pair)
            if theirs is not None:
                published.setdefault(line, {})[x] = theirs
        panels.append(Panel(study.labels[setting], series, published))
    if not panels:
        return None
    figure = line_panels(
        panels,
        colors=line_colors([pair.robust for pair in pairs]),
        ticks=ticks,
        x_label="training images",
        y_label="robust - natural (points)",
        zero=True,
    )
    shown = [
        p for p in pairs if study.labels[p.robust.setting] in {q.title for q in panels}
    ]
    rows = []
    for pair in shown:
        theirs = published_difference(study, pair)
        rows.append(
            [
                study.labels[pair.robust.setting],
                pair.robust.arch,
                pair.robust.label,
                pair.robust.n,
                len(pair.seeds),
                f"{pair.difference:+.2f}",
                format_p(pair.p),
                format_p(pair.adjusted),
                None if theirs is None else f"{theirs:+.2f}",
                None if theirs is None else f"{pair.difference - theirs:+.2f}",
            ]
        )
    columns = [
        "setting", "arch", "source", "n", "seeds", "robust - natural", "p", "p (Holm)",
        "published", "ours - published",
    ]  # fmt: skip
    return Section(
        "Gain with few training images",
        [TEST_NOTE],
        [(figure, "Robust - natural against the number of training images.")],
        [make_table(columns, rows, "Points of percent.")],
        findings=image_findings(shown, study.labels),
    )


def image_pairs(cells: Sequence[Cell]) -> list[Comparison]:
    """Every robust source against the standard one, where images vary in number."""
    sizes: dict[Setting, set[int]] = {}
    for cell in cells:
        sizes.setdefault(cell.setting, set()).add(cell.n)
    standard = {
        (c.setting, c.arch, c.n): c
        for c in cells
        if c.threat is not None and not c.robust and c.setting.mode != "scratch"
    }
    pairs = []
    for cell in cells:
        peer = standard.get((cell.setting, cell.arch, cell.n))
        if cell.robust and peer is not None and len(sizes[cell.setting]) > 1:
            pair = compare_pair(cell, peer)
            if pair is not None:
                pairs.append(pair)
    return corrected(pairs)


def image_findings(
    pairs: Sequence[Comparison], labels: Mapping[Setting, str]
) -> list[str]:
    """At the fewest and the most images: who is ahead, and whether that is certain."""
    groups: dict[tuple[Setting, str, str], list[Comparison]] = {}
    for pair in pairs:
        key = (pair.robust.setting, pair.robust.arch, pair.robust.label)
        groups.setdefault(key, []).append(pair)
    lines: dict[Comparison, str] = {}
    fewest = []
    for (setting, arch, label), group in groups.items():
        ordered = sorted(group, key=lambda pair: pair.robust.n)
        fewest.append(ordered[0])
        said = [
            f"with {pair.robust.n} images {verdict(pair)} than natural"
            for pair in dict.fromkeys((ordered[0], ordered[-1]))
        ]
        lines[ordered[0]] = f"{labels[setting]}, {arch}, {label}: {'; '.join(said)}."
    return brief(f"With the fewest images. {wins_finding(fewest)}", lines)


def by_blocks(study: Study) -> Section | None:
    """Accuracy against the number of blocks that train."""
    cells = [
        c
        for c in study.most
        if c.setting.mode == "last_k_blocks" and c.threat is not None
    ]
    ks = sorted({c.setting.k_blocks for c in cells})
    if len(ks) < 2:
        return None
    name = line_name(cells)
    series: dict[str, dict[str, dict[float, Point]]] = {}
    for cell in cells:
        of_line = series.setdefault(cell.setting.dataset, {}).setdefault(name(cell), {})
        of_line[float(ks.index(cell.setting.k_blocks))] = Point(*cell.interval())
    figure = line_panels(
        [Panel(dataset, lines) for dataset, lines in series.items()],
        colors=line_colors(cells),
        ticks={float(i): str(k) for i, k in enumerate(ks)},
        x_label="blocks that train",
        y_label="accuracy (%)",
    )
    return Section(
        "Number of trained blocks",
        [INTERVAL_NOTE],
        [(figure, "Accuracy against the number of blocks that train beside the head.")],
    )


def _image_places(study: Study) -> tuple[dict[int, float], dict[float, str]] | None:
    """Place of each number of training images; None if no setting has several."""
    sizes: dict[Setting, set[int]] = {}
    for cell in study.cells:
        sizes.setdefault(cell.setting, set()).add(cell.n)
    several = {n for found in sizes.values() if len(found) > 1 for n in found}
    if not several:
        return None
    everything = sorted({cell.n for cell in study.cells})
    place = {n: float(i) for i, n in enumerate(everything)}
    return place, {x: str(n) for n, x in place.items()}
