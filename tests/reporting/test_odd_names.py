"""Names that are no text, no line, or a formula: rows are written and reports are made."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from result_rows import TARGET, transfer_row

from fastadv.reporting.page.export import export_sections
from fastadv.reporting.page.html import Section, Table, write_report
from fastadv.results.export import write_rows
from fastadv.results.table import ResultsTable

NAMES = (
    "caf\udce9",  # a file name that is not UTF-8, as Python reads it
    "red\x1b[31m",
    "nul\x00",
    "\ufffe",
    "two\r\nlines",
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3+cmd|x",
    "@SUM(A1)",
    "\t=1",
    r"50% & \input{x}",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_with_any_name_is_written_and_read(name: str, tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results")
    target = replace(TARGET, name=name, class_names=(name, "b"))
    table.append([transfer_row(target=target)])
    [row] = table.rows()
    assert row.target.name == name.replace("\udce9", r"\xe9")
    assert row.target.class_names == (row.target.name, "b")
    path = tmp_path / "rows.csv"
    write_rows(table.arrow(), path)
    with open(path, encoding="utf-8", newline="") as file:
        [found] = csv.DictReader(file)
    assert found["target.name"].lstrip("'") == row.target.name
    assert found["target.name"][0] not in "=+-@\t"


@pytest.mark.parametrize("name", NAMES)
def test_reports_and_exports_with_any_name(name: str, tmp_path: Path) -> None:
    figure = Figure()
    axes = figure.add_subplot(title=name.replace("$", ""))
    axes.bar([0, 1], [1, 2])
    axes.set_xticks([0, 1], [name, "b"], parse_math=False)
    table = Table([name, "value"], [[name, "-3.2 % [-4.0, 1.5]"], ["plain", 2.0]])
    section = Section("Odd", text=[name], figures=[(figure, name)], tables=[table])
    write_report(tmp_path / "r.html", name, [section])
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "plain" in page
    assert not any(character in page for character in "\x00\x1b\ufffe")
    export_sections([section], tmp_path / "files")
    rows = (tmp_path / "files" / "odd.csv").read_text("utf-8").splitlines()
    assert len(rows) == 3
    assert next(csv.reader(rows[1:]))[0][:1] not in ("=", "+", "-", "@")
    assert next(csv.reader(rows[1:]))[1] == "-3.2 % [-4.0, 1.5]"
    lines = (tmp_path / "files" / "odd.tex").read_text("utf-8").splitlines()
    assert sum(line.endswith(r"\\") for line in lines) == 3
