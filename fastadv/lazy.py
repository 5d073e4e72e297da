"""The names of a package, imported on first use.

`import fastadv` and every command's `--help` then load neither torch nor matplotlib.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Serve what a package's stub imports, each name from its module on first use.

    Args:
        package: `__name__` of the package.
        file: `__file__` of the package; beside it lies `__init__.pyi`, whose lines
            `from MODULE import NAME as NAME` type checkers read, too.

    Returns:
        `__getattr__`, `__dir__` and `__all__` for the package (PEP 562).
    """
    tree = ast.parse(Path(file).with_suffix(".pyi").read_text())
    home = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(str(home[name])), name)

    return load, lambda: sorted(home), sorted(home)
