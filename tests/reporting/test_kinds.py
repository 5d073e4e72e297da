"""The report and the results table: typed rows of every kind, and no word of theirs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_results import synthetic_rows, typed

from fastadv.cli import report as command
from fastadv.reporting import Section, report_sections
from fastadv.reporting.sections import SECTIONS
from fastadv.reporting.transfer.cells import make_cells, transfer_setting
from fastadv.results.row import (
    AttackRecord,
    Defect,
    Departure,
    Row,
    SourceRecord,
    TargetRecord,
)
from fastadv.results.settings import KINDS, EvaluationSetting
from fastadv.results.table import ResultsTable


def reworded(row: Row) -> Row:
    """The same row, every text for people replaced."""
    return replace(
        row,
        setting_label="something else entirely; 3 instead of 4",
        departures=tuple(
            replace(d, ours="a; b", published="c instead of d") for d in row.departures
        ),
        defects=tuple(
            replace(d, text="lr 1 instead of 2; resolution 7") for d in row.defects
        ),
    )


def departing(rows: list[Row]) -> list[Row]:
    departed = (Departure(name="lrs", ours="0.1", published="0.01"),)
    flawed = (Defect(code="selected_on_test", text="epoch chosen on the test set"),)
    return [
        replace(row, departures=departed, defects=flawed) if i % 2 else row
        for i, row in enumerate(rows)
    ]


def test_no_word_of_a_row_decides_what_is_compared() -> None:
    rows = departing(typed(synthetic_rows()))
    plain, other = make_cells(rows), make_cells(map(reworded, rows))
    assert len(plain) > 30
    for a, b in zip(plain, other, strict=True):
        assert (a.condition, a.source, a.n, a.threat) == (
            b.condition,
            b.source,
            b.n,
            b.threat,
        )
        assert (a.values, a.interval()) == (b.values, b.interval())
        assert list(a.attacked) == list(b.attacked)
    pages = [
        [(s.title, s.findings, [t.rows for t in s.tables]) for s in report_sections(r)]
        for r in (rows, [reworded(row) for row in rows])
    ]
    # Tables quote how an experiment departs from the published one, and do no more.
    ours, theirs = "lrs 0.1 instead of 0.01", "lrs a; b instead of c instead of d"
    assert ours in str(pages[0])
    assert str(pages[0]) == str(pages[1]).replace(theirs, ours)


def test_rows_of_one_setting_key_are_of_one_condition() -> None:
    """The writer's key and the report's grouping separate the same experiments."""
    rows = [row for row in typed(synthetic_rows()) if row.attack is None]
    one = rows[-1]
    setting = transfer_setting(one)
    changed = [
        replace(one, setting=replace(setting, **{name: value}), setting_key="")
        for name, value in (
            ("k_blocks", 2),
            ("epochs", 7),
            ("weight_decay", 0.1),
            ("precision", "bf16"),
            ("normal_head", True),
            ("chosen_lr", 0.5),  # nothing was chosen: it is part of the setting
            ("chosen_epoch", 3),  # it never is
            ("num_available", 9),
        )
    ]
    everything = [*rows, *changed]
    conditions = {
        row.setting_key: cell.condition
        for cell in make_cells([replace(r, identity=None) for r in everything])
        for row in cell.rows.values()
    }
    assert len(conditions) == len(set(conditions.values()))
    assert len({row.setting_key for row in changed} - {one.setting_key}) == 6
    assert {row.setting_key for row in everything} == set(conditions)


def test_a_setting_without_its_clean_row_is_no_experiment() -> None:
    rows = [row for row in typed(synthetic_rows()) if row.attack is not None]
    assert make_cells(rows) == []


# ---- kinds ----


def evaluated(name: str, eps: float, attack: AttackRecord | None, value: float) -> Row:
    return Row(
        identity=f"{name}{attack}",
        experiment=name,
        source=SourceRecord(
            name=name, digest=name, arch="resnet18", norm="l2", eps=eps
        ),
        target=TargetRecord(name="shapetex", resolution=32),
        setting=EvaluationSetting(num_images=480),
        attack=attack,
        value=value,
        low=value - 2,
        high=value + 1,
        n=480,
    )


PGD = AttackRecord(name="pgd", norm="l2", eps=1.0, num_steps=20)
AUTO = AttackRecord(name="autoattack", norm="l2", eps=1.0)
EVALUATIONS = [
    evaluated(name, eps, attack, value)
    for (name, eps), (attack, value) in itertools.product(
        (("standard", 0.0), ("robust", 1.0)), ((None, 90.0), (PGD, 30.0), (AUTO, 20.0))
    )
]


def test_evaluations_are_shown_by_source_and_attack() -> None:
    [section] = report_sections(EVALUATIONS)
    assert section.title == "Clean and robust accuracy"
    [table] = section.tables
    lines = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(line["source"], line["attack"], line["robust"]) for line in lines] == [
        (name, str(attack), f"{value:.1f}% [{value - 2:.1f}, {value + 1:.1f}]")
        for name in ("standard", "robust")
        for attack, value in ((PGD, 30.0), (AUTO, 20.0))
    ]
    assert {line["clean"] for line in lines} == {"90.0% [88.0, 91.0]"}
    assert [line["training"] for line in lines] == ["standard"] * 2 + ["l2 1"] * 2
    [(figure, caption)] = section.figures
    assert caption == "Accuracy on shapetex, 480 test images."
    heights = sorted(patch.get_height() for patch in figure.axes[0].patches)  # type: ignore[attr-defined]
    assert heights == [20.0, 20.0, 30.0, 30.0, 90.0, 90.0]
    # Clean accuracy alone is a line, too, and the newest of equal rows counts.
    [section] = report_sections([EVALUATIONS[0], replace(EVALUATIONS[0], value=91.0)])
    [line] = section.tables[0].rows
    assert line[4] == "91.0% [88.0, 91.0]"
    assert line[5] is None


def judged(
    given: str, attack: AttackRecord | None, value: float, **target: object
) -> Row:
    row = evaluated(given, 0.0, attack, value)
    about = {"name": "imagenet", "num_classes": 1000} | target
    found = replace(
        row,
        source=replace(row.source, given=given),
        target=TargetRecord(**about),  # type: ignore[arg-type]
        n=50_000 if attack is None else 5_000,
    )
    return replace(found, setting_key="", setting_label="")


LINF = AttackRecord(name="autoattack", norm="linf", eps=4 / 255)


def test_published_accuracies_stand_beside_evaluations() -> None:
    r18 = "salman2020:resnet18_linf_eps4.0"
    rows = [
        judged(r18, None, 52.5),
        judged(r18, LINF, 25.5),
        judged("robustbench:Salman2020Do_R50", PGD, 40.0, name="mine", downscale=32),
        judged("/files/resnet18_l2_eps3.ckpt", None, 53.0),
        judged("/files/resnet18_l2_eps3.ckpt", LINF, 20.0),  # not published
        judged("robustbench:Engstrom2019Robustness", None, 60.0),  # of another entry
        judged("runs/mine", None, 50.0),
        judged(r18, None, 50.0, name="ten", num_classes=10),
    ]
    [section] = report_sections(rows)
    _, published = section.tables
    lines = [dict(zip(published.columns, row, strict=True)) for row in published.rows]
    assert [(line["source"], line["published"], line["by"]) for line in lines] == [
        (r18, "52.49%", "Salman et al. 2020"),
        (r18, "25.32%", "RobustBench"),
        ("/files/resnet18_l2_eps3.ckpt", "53.12%", "Salman et al. 2020"),
        ("robustbench:Salman2020Do_R50", "34.96%", "RobustBench"),
    ]
    assert [line["what differs"] for line in lines] == [
        "nothing that is known",
        "nothing that is known",
        "nothing that is known",
        "attack pgd instead of autoattack; within l2 1 instead of linf 4/255; images of "
        "mine; images reduced to 32 px",
    ]
    assert "fixed list of 5,000" in published.caption
    # A diamond is drawn where norm, radius and attack agree.
    marks = [
        line.get_ydata()[0]
        for figure, _ in section.figures
        for line in figure.axes[0].lines
        if line.get_marker() == "D"
    ]
    assert sorted(marks) == [25.32, 52.49, 53.12]
    # Fewer images are said.
    [section] = report_sections([replace(rows[0], n=1000)])
    [[*_, differs]] = section.tables[1].rows
    assert differs == "1,000 images instead of 50,000"
    # Tables of other networks have none of it.
    [section] = report_sections(rows[-2:])
    assert len(section.tables) == 1


def test_other_images_are_another_figure_and_other_weights_another_source() -> None:
    fewer = EvaluationSetting(num_images=100)
    rows = [
        *EVALUATIONS,
        replace(EVALUATIONS[0], setting=fewer, setting_key="", setting_label=""),
        replace(EVALUATIONS[0], source=replace(EVALUATIONS[0].source, digest="other")),
    ]
    [section] = report_sections(rows)
    assert len(section.figures) == 2
    names = {str(row[1]) for row in section.tables[0].rows}
    assert names == {"standard standa", "standard other", "robust"}


def test_a_table_of_two_kinds_has_the_sections_of_both(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results")
    table.append([*EVALUATIONS, *typed(synthetic_rows())])
    page = tmp_path / "report.html"
    assert command.main([str(table.path), "-o", str(page)]) == 0
    text = page.read_text()
    titles = ("Clean and robust accuracy", "Robust against standard", "All numbers")
    places = [text.index(f"<h2>{title}</h2>") for title in titles]
    assert places == sorted(places)


def test_a_new_kind_needs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(SECTIONS) == set(KINDS)
    kinds = {"evaluation": lambda rows, names, arrays: [Section(f"{len(rows)} rows")]}
    monkeypatch.setattr("fastadv.reporting.sections.SECTIONS", kinds)
    assert [s.title for s in report_sections(EVALUATIONS)] == ["6 rows"]
    assert report_sections(typed(synthetic_rows())) == []


def test_a_transfer_is_asked_for_by_its_type() -> None:
    with pytest.raises(TypeError, match="a row of kind 'evaluation' is no transfer"):
        make_cells(EVALUATIONS)
