"""Figures and tables of a report as files of their own: PNG, SVG, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fastadv.files import write_atomic
from fastadv.reporting.figures.palette import house_style
from fastadv.reporting.page.html import Section, Table, printable_texts
from fastadv.text_tables import format_cell

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


_NUMERIC = re.compile(r"[-+]?[\d.][\d.,\s%()\[\]~<>e/-]*")  # -3.2 % [-4.0, 1.5]


def export_sections(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG, every table as CSV and LaTeX.

    Args:
        sections: Sections of a report; files are named by their titles.
        folder: Folder for the files, made if it is missing; files of the same names are
            replaced.

    Returns:
        Paths of the files.

    Raises:
        OutputError: A file cannot be written.
    """
    written = []
    for section in sections:
        stem = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
        for number, (figure, _) in enumerate(section.figures, start=1):
            name = stem if len(section.figures) == 1 else f"{stem}-{number}"
            for kind in ("png", "svg"):
                written.append(folder / f"{name}.{kind}")
                write_atomic(written[-1], _drawn(figure, kind))
        for number, table in enumerate(section.tables, start=1):
            name = stem if len(section.tables) == 1 else f"{stem}-{number}"
            for kind, text in (("csv", _csv(table)), ("tex", _latex(table))):
                written.append(folder / f"{name}.{kind}")
                write_atomic(written[-1], text.encode("utf-8", errors="replace"))
    return written


def _drawn(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    with house_style(), printable_texts(figure):
        # White: a file of its own has no page behind it.
        figure.savefig(buffer, format=kind, dpi=200, facecolor="white")
    return buffer.getvalue()


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_csv_cell(cell) for cell in table.columns])
    writer.writerows([_csv_cell(cell) for cell in row] for row in table.rows)
    return buffer.getvalue()


def _csv_cell(cell: object) -> object:
    """Return a cell that no spreadsheet takes for a formula and no reader for two rows."""
    if not isinstance(cell, str):
        return "" if cell is None else cell
    text = format_cell(cell)
    is_formula = text[:1] in ("=", "+", "-", "@") and not _NUMERIC.fullmatch(text)
    return f"'{text}" if is_formula else text


def _latex(table: Table) -> str:
    """Return a table in LaTeX, for the package booktabs."""
    head, *rows = (
        " & ".join(format_cell(cell).translate(_LATEX) for cell in row) + r" \\"
        for row in (table.columns, *table.rows)
    )
    align = "".join(each[0] for each in table.alignment())
    begin = rf"\begin{{tabular}}{{{align}}}"
    caption = ["% " + " ".join(table.caption.split())] if table.caption else []
    body = [r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*caption, begin, *body]) + "\n"
