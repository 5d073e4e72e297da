"""fastadv-report: write what a results table shows as one HTML file."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from fastadv.cli import common
from fastadv.errors import ConfigError, DataError, unknown_name

if TYPE_CHECKING:
    from fastadv.reporting import Section

PROG = "fastadv-report"


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Draw what a results table shows, beside the published numbers.

    Figures without data are left out. The HTML file is complete in itself.
    """

    results: Annotated[str, Positional, arg(metavar="RESULTS")]
    """Results table: a directory of Parquet files."""
    out: Annotated[str, arg(aliases=["-o"])] = "report.html"
    """HTML file to write; an existing one is replaced."""
    export: str | None = None
    """Folder for every figure as PNG and SVG and every table as CSV and LaTeX."""
    gallery: str | None = None
    """HTML file for a second page, of all pictures of what networks see."""
    title: str = "Transfer of robust and standard models"
    """Heading of the report."""
    compare: tuple[str, ...] = ()
    """Published names of your data sets, as MINE=PUBLISHED, for example
    pets=oxford_pets."""
    examples: str | None = None
    """Data set that the sources were trained on; adversarial examples of them are added to
    the report."""
    json: bool = False
    """Print the findings as JSON."""


def make_report(
    command: ReportCommand, made_by: Sequence[str], first: Sequence[Section] = ()
) -> tuple[Path, list[Section]]:
    """Write the report; its last section shows the command that makes it again.

    Args:
        command: The flags.
        made_by: Words of the command line that makes the report.
        first: Sections to put before those of the results table.

    Returns:
        The path of the HTML file, and the sections in it.
    """
    from fastadv.environment import provenance
    from fastadv.reporting import report_sections, write_report
    from fastadv.reporting.page.export import export_sections
    from fastadv.results.table import ResultsTable

    table = ResultsTable.existing(command.results)
    rows = table.rows()
    if not rows:
        raise DataError(f"the results table at {table.path} is empty")
    names = _names(command.compare, {row.target.name for row in rows})
    sections = [*first, *report_sections(rows, names, table.arrays)]
    if command.examples is not None:
        from fastadv.reporting.examples import example_section

        sections.insert(-1, example_section(rows, command.examples))
    again = shlex.join(made_by)
    sections[-1:] = [replace(section, command=again) for section in sections[-1:]]
    times = [row.time for row in rows if row.time]
    facts = provenance()
    about: dict[str, object] = {
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "results": command.results,
        "rows": len(rows),
        "first": str(min(times))[:16],
        "last": str(max(times))[:16],
        "fastadv": facts["fastadv"],
        "commit": facts.get("commit"),
    }
    path = write_report(command.out, command.title, sections, about)
    if command.gallery is not None:
        from fastadv.reporting.seeing import gallery_sections

        if not (pictures := gallery_sections(rows, table.arrays)):
            raise DataError(
                f"`gallery={command.gallery}`: {table.path} has no pictures; "
                "fastadv-analyze gradients, visualization and inversion make them"
            )
        pictures[-1] = replace(pictures[-1], command=again)
        write_report(command.gallery, "What networks see", pictures, about)
    if command.export is not None:
        export_sections(sections, Path(command.export).expanduser())
    return path, sections


def _names(pairs: Sequence[str], ours: Collection[str]) -> dict[str, str]:
    """Return the published name of each data set of `ours` that --compare names."""
    from fastadv.reporting.literature import published_datasets

    known = published_datasets()
    names = {}
    for pair in pairs:
        mine, equals, published = pair.partition("=")
        if not (mine and equals and published):
            raise ConfigError(f"--compare {pair} must be MINE=PUBLISHED")
        if published not in known:
            raise ConfigError(
                f"--compare {pair}: "
                f"{unknown_name('published data set', published, known)}"
            )
        if mine not in ours:
            raise ConfigError(f"--compare: {unknown_name('data set', mine, ours)}")
        names[mine] = published
    return names


def _body(argv: list[str]) -> None:
    command = common.parse(ReportCommand, argv, PROG)
    path, sections = make_report(command, [PROG, *argv])
    found = {s.title: list(s.findings) for s in sections if s.findings}
    lines = [f"{s.title}: {finding}" for s in sections for finding in s.findings]
    pages = {"report": str(path.resolve())}
    if command.gallery is not None:
        pages["gallery"] = str(Path(command.gallery).resolve())
    text = "\n".join([*lines, *(f"{name}: {page}" for name, page in pages.items())])
    common.show(command, pages | {"report": str(path), "findings": found}, text)


main = functools.partial(common.run, PROG, _body)

if __name__ == "__main__":
    raise SystemExit(main())
