"""What a report says of the same pair in every section, and what it leaves out."""

from __future__ import annotations

import itertools
import re

import pytest
from synthetic_results import row, typed

from fastadv.reporting.figures.palette import source_colors
from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.findings import published_finding
from fastadv.reporting.transfer.sections import study_sections
from fastadv.reporting.transfer.study import Study
from fastadv.statistics import holm


def sections(rows: list[dict[str, object]]) -> dict[str, Section]:
    return {s.title: s for s in study_sections(Study(make_cells(typed(rows)), {}))}


def test_one_pair_has_one_p_value_in_all_sections() -> None:
    """Three radii, two numbers of images, two sides: asked for by four sections."""
    noise = [0.0, 1.0, 3.0, 2.0]
    rows = [
        row(
            source=f"s{eps}",
            source_eps=eps,
            num_pool=n,
            downscale=side,
            seed=seed,
            value=50 + (2 + 0.02 * n**0.5 * seed * eps if eps else 0) + noise[seed],
        )
        for eps, n, side, seed in itertools.product(
            (0.0, 0.5, 1.0), (100, 400), (None, 32), range(4)
        )
    ]
    study = Study(make_cells(typed(rows)), {})
    raw: dict[object, float] = {}
    adjusted: dict[object, set[float | None]] = {}
    for found in (study.tests.primary, *study.tests.groups.values()):
        for each in found:
            if each.p is not None:
                raw[each.key] = each.p
            adjusted.setdefault(each.key, set()).add(each.adjusted)
    assert {len(values) for values in adjusted.values()} == {1}
    # Two radii and two sides with either number of images; each once, whoever asks.
    assert len(raw) == 8
    # Native images with all training images are primary: the better of two radii.
    [primary] = study.tests.primary
    assert primary.adjusted == pytest.approx(min(1, 2 * raw[primary.key]))
    # Of the others, the better radius on reduced images was chosen among two, too.
    rest = {key: p for key, p in raw.items() if key != primary.key}
    expected = dict(zip(rest, holm([*rest.values(), 1.0]), strict=False))
    expected[primary.key] = primary.adjusted
    assert {pair: {p} for pair, p in expected.items()} == adjusted
    made = {s.title: s for s in study_sections(study)}
    text = made["Robust against standard"].text[1]
    assert "Holm's correction counts 2 p-value(s)" in text
    assert "corrected for 8 p-value(s) of their own" in text
    assert "counts 8 p-value(s)" in made["Accuracy against eps"].text[1]
    # The words of two sections on the same pair.
    main = made["Robust against standard"].tables[0]
    gain = made["Gain with few training images"].tables[0]
    shared = ("setting", "n", "source", "difference", "p", "p (Holm)")

    def said(table: object) -> set[tuple[object, ...]]:
        places = [list(table.columns).index(name) for name in shared]  # type: ignore[attr-defined]
        return {tuple(line[i] for i in places) for line in table.rows}  # type: ignore[attr-defined]

    assert len(said(main)) == 2
    assert said(main) <= said(gain)
    best = study.tests.groups["best"]
    certain = sum(each.significant for each in best)
    [eps] = [
        f for f in made["Accuracy against eps"].findings if f.startswith("Best l2")
    ]
    counted = re.search(r"Significant: (\d) in its favour", eps)
    assert (int(counted[1]) if counted else 0) == certain
    assert made["Robust against standard"].findings[1] in eps


def test_sources_of_unknown_eps_are_drawn_or_named() -> None:
    rows = [
        row(
            source=source,
            source_eps=eps,
            arch="resnet18" if eps is not None else "timm/other",
            num_pool=n,
            seed=seed,
            value=50 + n / 100 + seed,
        )
        for source, eps in (("a", 0.0), ("half", 0.5), ("one", 1.0), ("package", None))
        for n in (100, 400)
        for seed in range(2)
    ]
    rows += [
        r | {"mode": "full_network", "source": "a", "source_eps": 0.0} for r in rows[:2]
    ]
    made = sections(rows)
    few = made["Few training images"]
    [ax] = few.figures[0][0].axes
    assert len(ax.lines) == 4
    legend = [text.get_text() for text in few.figures[0][0].legends[0].get_texts()]
    name = "package (eps unknown)"
    assert legend == ["standard", "l2 0.5", "l2 1", name]
    assert ax.lines[-1].get_color() == source_colors([name], None, [name])[name]
    assert [line[2] for line in few.tables[0].rows][-1] == name
    assert few.text[1:] == [
        "Left out (one number of images): synthetic_set, full network."
    ]
    for title in (
        "Robust against standard",
        "Accuracy against eps",
        "Gain with few training images",
    ):
        [text] = [t for t in made[title].text if "Left out" in t]
        assert text.startswith("Left out (eps unknown): package. Left out ("), title
        assert text.endswith("): synthetic_set, full network."), title
        note = "Of every setting only the most training images are shown here."
        assert (note in made[title].text) == (not title.startswith("Gain"))
    # Nothing is said where nothing is left out.
    whole = sections([r for r in rows if r["source"] != "package"][:12])
    assert not [t for s in whole.values() for t in s.text if "Left out" in t]


@pytest.mark.parametrize(
    ("lead", "words"),
    [
        (
            -3.0,
            "in 0 of those our difference has the published sign, in 1 the other one.",
        ),
        (
            0.0,
            "in 0 of those our difference has the published sign, in 0 the other one, in "
            "1 ours or theirs is exactly 0.",
        ),
        (
            2.0,
            "in 1 of those our difference has the published sign, in 0 the other one.",
        ),
    ],
)
def test_no_difference_has_no_sign(lead: float, words: str) -> None:
    rows = [
        row(dataset="aircraft", source_eps=eps, seed=seed, value=50 + d * (eps > 0))
        for eps in (0.0, 0.5)
        # The mean is 0 but for rounding.
        for seed, d in enumerate((lead + 0.1, lead + 0.2, lead - 0.3))
    ]
    study = Study(make_cells(typed(rows)), {})
    [text] = published_finding(study, study.tests.groups["best"])
    assert words in text


def test_networks_from_scratch_have_nothing_of_their_source() -> None:
    rows = [
        row(
            arch=arch,
            source=arch,
            source_accuracy=accuracy,
            mode=mode,
            value=accuracy / 2,
        )
        for arch, accuracy in (("resnet18", 60.0), ("resnet50", 70.0), ("vgg", 65.0))
        for mode in ("fixed_feature", "scratch")
    ]
    section = sections(rows)["Source accuracy against transfer"]
    assert [line[0] for line in section.tables[0].rows] == [
        "synthetic_set, fixed features"
    ]
    assert "from scratch): synthetic_set, from scratch, resnet18;" in section.text[-1]
