"""How Sphinx builds these pages: `make docs`, or sphinx-build -W docs site.

The pages are the Markdown files of this folder. The reference of the Python interface and
that of the commands are made here, from docstrings and from `--help-all`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from pathlib import Path
from typing import Any

from fastadv import __version__
from fastadv.cli.main import COMMANDS

HERE = Path(__file__).parent
PACKAGES = (
    "attacks",
    "models",
    "data",
    "training",
    "evaluation",
    "transfer",
    "results",
    "reporting",
    "loops",
)

project, author, release = "fastadv", "fastadv developers", __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["studies/results", "studies/logs"]
html_theme = "furo"
html_title = f"fastadv {release}"
default_role = "code"
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]
nitpicky = False


def api_page() -> str:
    """Return the page that lists what each package offers."""
    lines = [
        "# Python interface",
        "",
        "Each name is imported from the package it stands under, on first use.",
    ]
    seen: list[object] = []
    for name in PACKAGES:
        module = importlib.import_module(f"fastadv.{name}")
        lines += ["", f"## fastadv.{name}", "", str(module.__doc__).strip(), ""]
        for each in sorted(module.__all__, key=str.lower):
            found = getattr(module, each)
            kind = "autoclass" if isinstance(found, type) else "autofunction"
            if not callable(found) or found in seen:  # a value, or in two packages
                continue
            seen.append(found)
            lines += ["```{eval-rst}", f".. {kind}:: fastadv.{name}.{each}"]
            if kind == "autoclass":
                lines += ["   :members:"]
            lines += ["```", ""]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Return the page of every command with all of its flags."""
    lines = [
        "# Commands",
        "",
        "`fastadv COMMAND` and `fastadv-COMMAND` are the same. These are all their flags.",
    ]
    for name in COMMANDS:
        main = importlib.import_module(f"fastadv.cli.{name}").main
        text = _printed(main, ["--help"])
        has_commands = "COMMAND" in text.splitlines()[0]
        if not has_commands:
            text = _printed(main, ["--help-all"])
        lines += ["", f"## fastadv-{name}", "", "```text", text, "```"]
        for word in has_commands * re.findall(
            r"^  ([a-z][a-z-]*) ", text, flags=re.MULTILINE
        ):
            told = _printed(main, [word, "--help-all"])
            lines += ["", f"### fastadv-{name} {word}", "", "```text", told, "```"]
    return "\n".join(lines) + "\n"


def _printed(main: object, words: list[str]) -> str:
    """Return what a command prints on 80 columns, without colours."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(words)  # type: ignore[operator]
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).rstrip()


def outside(app: object, name: str, source: list[str]) -> None:
    """Name files of the repository that are no pages, instead of linking to them."""
    source[0] = re.sub(
        r"\[([^\]]+)\]\(((?:\.\./)+[^)\s]+|[\w./-]+\.(?:yaml|txt|html|csv)|\w+/?)\)",
        lambda found: found[1] if found[1].startswith("`") else f"`{found[1]}`",
        source[0],
    )


def plain_stars(app: object, what: str, name: str, it: object, *rest: Any) -> None:
    """Keep the stars of docstrings, which reStructuredText takes for emphasis."""
    lines = rest[-1]
    lines[:] = [re.sub(r"`[^`]*`|\*", _escaped, line) for line in lines]


def _escaped(found: re.Match[str]) -> str:
    return "\\*" if found[0] == "*" else found[0]


def setup(app: Any) -> None:
    """Write the generated pages before Sphinx reads the folder."""
    app.connect("autodoc-process-docstring", plain_stars)
    app.connect("source-read", outside)
    made = HERE / "reference"
    made.mkdir(exist_ok=True)
    (made / "api.md").write_text(api_page())
    (made / "commands.md").write_text(commands_page())
    changes = (HERE.parent / "CHANGELOG.md").read_text()
    (made / "changelog.md").write_text(changes.replace("](docs/", "](../"))
