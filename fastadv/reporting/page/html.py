"""One self-contained HTML file: text, figures and tables, readable offline for years.

Styles, figures (inline SVG) and the script that sorts tables are all inside the file;
it loads nothing, and its content policy forbids it to. The caller writes the sections;
the page around them is the template `report.html` beside this file.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.text import Text

from fastadv.files import write_atomic
from fastadv.reporting.figures.palette import THEMED, house_style
from fastadv.text_tables import cell_number, format_cell, numeric_columns

# What XML cannot hold: control characters, surrogates (names that are no UTF-8), U+FFFE.
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NO_GLYPH = re.compile(rf"[\t\r]|{_NO_XML.pattern}")


@dataclass(frozen=True)
class Table:
    """A table that readers can sort by a click on a column.

    Attributes:
        columns: Titles of the columns.
        rows: Cells, as many per row as there are columns; None is shown as `-`.
        caption: What the table shows.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    def __post_init__(self) -> None:
        self.alignment()

    def alignment(self) -> list[str]:
        """Return `right` for each column of numbers, and `left` for every other one."""
        numeric = numeric_columns(self.columns, self.rows)
        return ["right" if right else "left" for right in numeric]


@dataclass(frozen=True)
class Section:
    """One part of a report: text, findings, figures, tables and commands.

    Attributes:
        title: Heading of the section.
        text: Paragraphs of plain text.
        figures: Pairs of figure and caption, which screen readers read aloud, too.
        tables: Tables, shown after the figures.
        command: Shell commands that reproduce the section; empty for none.
        findings: Sentences on what figures and tables show; set off above them.
    """

    title: str
    text: Sequence[str] = ()
    figures: Sequence[tuple[Figure, str]] = ()
    tables: Sequence[Table] = ()
    command: str = ""
    findings: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.text, str):
            raise TypeError(
                f"text of section {self.title!r} is one string; give a list of "
                "paragraphs"
            )


def write_report(
    path: str | PathLike[str],
    title: str,
    sections: Sequence[Section],
    about: Mapping[str, object] | None = None,
) -> Path:
    """Write a report, whole or not at all; a file that was there is replaced.

    Args:
        path: Path of the HTML file; missing folders are made.
        title: Heading of the page.
        sections: Sections in reading order.
        about: Where the numbers come from, shown below the title: time, versions,
            machine, commit. Entries that are None are left out.

    Returns:
        The path of the file.

    Raises:
        OutputError: The file cannot be written.

    Example:
        >>> table = Table(["source", "top1"], [["standard", 61.5], ["l2 3", 70.25]])
        >>> write_report("report.html", "Transfer", [Section("Pets", tables=[table])])
        PosixPath('report.html')
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = format_cell
    environment.filters["sort_key"] = cell_number
    source = files("fastadv.reporting.page").joinpath("report.html").read_text("utf-8")
    drawn = [
        [
            (Markup(inline_svg(figure, f"s{number}f{index}-", caption)), caption)
            for index, (figure, caption) in enumerate(section.figures)
        ]
        for number, section in enumerate(sections)
    ]
    page = environment.from_string(source).render(
        title=title,
        about={k: v for k, v in (about or {}).items() if v is not None},
        sections=list(zip(sections, drawn, strict=True)),
    )
    write_atomic(path, _NO_XML.sub(" ", page).encode())
    return Path(path)


@contextlib.contextmanager
def printable_texts(figure: Figure) -> Iterator[None]:
    """Draw a figure in the block without surrogates and control characters in its texts.

    No file can hold those, and texts of ticks are only made as they are drawn.
    """
    set_text = Text.set_text

    def set_printable(text: Text, said: Any) -> None:
        set_text(text, None if said is None else _NO_GLYPH.sub(" ", str(said)))

    for text in figure.findobj(Text):
        set_printable(text, text.get_text())
    try:
        Text.set_text = set_printable  # type: ignore[method-assign,assignment]
        yield
    finally:
        Text.set_text = set_text  # type: ignore[method-assign]


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """Draw a figure as an SVG element that lives inside a page.

    Colours of `palette.THEMED` become CSS variables; size is left to the page.

    Args:
        figure: A figure in the style of the report.
        prefix: Text before every id, so that figures of one page do not collide.
        label: Text for screen readers.
    """
    buffer = io.BytesIO()
    with house_style(), printable_texts(figure):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    drawn = buffer.getvalue().decode("utf-8", "replace")
    root = ElementTree.fromstring(_NO_XML.sub(" ", drawn))
    # matplotlib's own <style> would apply to every figure of the page.
    for parent in list(root.iter()):
        parent[:] = [child for child in parent if not child.tag.endswith("}style")]
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {
            _local(key): _adapt(_local(key), value, prefix)
            for key, value in element.attrib.items()
        }
    width = float(root.attrib.pop("width").removesuffix("pt"))
    del root.attrib["height"]
    style = f"--width: {width * 96 / 72:.0f}px"
    root.attrib |= {"role": "img", "aria-label": label, "style": style}
    return ElementTree.tostring(root, encoding="unicode", method="html")


def _local(name: Any) -> str:
    """Remove the namespace of a tag or attribute: HTML knows SVG by its tag alone."""
    return str(name).rpartition("}")[2]


def _adapt(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return prefix + value
    if key == "href" and value.startswith("#"):
        return f"#{prefix}{value[1:]}"
    if key == "style":
        for color, variable in THEMED.items():
            value = value.replace(color, f"var({variable})")
    return value.replace("url(#", f"url(#{prefix}")
