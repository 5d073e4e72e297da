"""The flags of every command as one text: names, values, choices and defaults.

The committed list is tests/cli/flags.txt. To write it again after a change that is meant:

    python tests/helpers/flag_list.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import re
import tomllib
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from tyro.extras import get_parser

from fastadv.cli import common
from fastadv.cli.flagrules import make_rules

ROOT = Path(__file__).parents[2]
# Words of the commands below one that calls `parse` itself, by the entry of that.
BELOW = {
    "fastadv.cli.transfer:main": [["sweep"]],
    "fastadv.cli.detect:main": [["train", "--help"], ["eval", "--help"]],
}
LISTED = ROOT / "tests" / "cli" / "flags.txt"


def commands() -> dict[str, type[Any]]:
    """The dataclass of flags of every command, by what is typed."""
    found: dict[str, type[Any]] = {}

    def record(kind: type[Any], argv: Any, prog: str) -> Any:
        found[prog] = kind
        raise SystemExit

    with mock.patch.object(common, "parse", record):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for entry in project["scripts"].values():
            main = importlib.import_module(entry.removesuffix(":main")).main
            if getattr(main, "func", None) is common.run_commands:
                prog, _, kinds = main.args
                found |= {f"{prog} {name}": kind for name, (kind, _) in kinds.items()}
                continue
            for argv in (["--help"], *BELOW.get(entry, ())):
                quiet = contextlib.redirect_stdout(io.StringIO())
                with quiet, contextlib.suppress(SystemExit):
                    main(argv)
    return dict(sorted(found.items()))


def _values(metavar: str | None) -> str:
    """What a flag takes, whether its help mentions None or not."""
    text = re.sub(r"\{None\}\||None,", "", metavar or "")
    return re.sub(r"^\{(\[.*\])\}$", r"\1", text)


def _lines(kind: type[Any]) -> list[str]:
    with warnings.catch_warnings(), make_rules():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = get_parser(kind)
    actions = {action.dest.replace("-", "_"): action for action in parser._actions}
    positional = [action for action in parser._actions if not action.option_strings]
    lines = []
    for field in dataclasses.fields(kind):
        action = actions[field.name]
        words = [*sorted(action.option_strings, key=lambda flag: flag.lstrip("-"))]
        if not words:  # positional, with its place
            words = [f"{positional.index(action)}", field.name.upper()]
        missing = field.default is dataclasses.MISSING
        # A bool is a flag and its opposite, and takes no value.
        values = "" if action.nargs == 0 else _values(action.metavar)
        default = "required" if missing else f"default {field.default!r}"
        more = ", repeatable" if type(action).__name__ == "_AppendAction" else ""
        lines.append(" ".join(filter(None, (*words, values, f"({default}{more})"))))
    return sorted(lines)


def flag_list() -> str:
    """All commands and their flags, one flag a line, sorted."""
    parts = []
    for prog, kind in commands().items():
        parts.append("\n".join([prog, *(f"  {line}" for line in _lines(kind))]))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        text = flag_list()
    LISTED.write_text(text)
