"""fastadv: every command under one name, `fastadv train` for fastadv-train."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from fastadv import __version__
from fastadv.errors import EXIT_OK, EXIT_USAGE, unknown_name

COMMANDS = (
    "train",
    "eval",
    "transfer",
    "analyze",
    "detect",
    "report",
    "results",
    "data",
    "models",
    "demo",
    "doctor",
)
"""Each is a module of this folder, and an installed command `fastadv-NAME`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fastadv COMMAND ...`; None stands for the arguments of the process."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return EXIT_OK if words else EXIT_USAGE
    if words[0] == "--version":
        print(f"fastadv {__version__}")
        return EXIT_OK
    name = words[0].removeprefix("fastadv-")
    if name not in COMMANDS:
        print(f"fastadv: {unknown_name('command', name, COMMANDS)}", file=sys.stderr)
        return EXIT_USAGE
    command = importlib.import_module(f"fastadv.cli.{name}")
    if argv is None:  # the process is the command's own
        sys.argv = [f"fastadv-{name}", *words[1:]]
        code: int = command.main()
    else:
        code = command.main(words[1:])
    return code


def _help() -> str:
    lines = ["usage: fastadv COMMAND [-h] [OPTIONS]", ""]
    for name in COMMANDS:
        # Importing all of them would take longer than all the rest.
        source = Path(__file__).with_name(f"{name}.py").read_text("utf-8")
        about = ast.get_docstring(ast.parse(source)) or ""
        lines.append(f"  {name:9} {about.splitlines()[0].partition(': ')[2]}")
    lines += [
        "",
        "`fastadv COMMAND --help` lists the flags. Each command is also installed as "
        "fastadv-COMMAND.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
