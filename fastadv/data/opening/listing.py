"""The data sets that are known by name, as plain values and as a table."""

from __future__ import annotations

from typing import Any

from fastadv.data.opening.by_name import BUILT_IN, dataset_names, option_names
from fastadv.data.sets.catalog import CATALOG, default_root
from fastadv.text_tables import text_table

_COLUMNS = ("classes", "train", "test", "metric", "splits", "licence", "citation")


def list_datasets() -> dict[str, dict[str, Any]]:
    """Return what is known of each named data set, by its name."""
    known: dict[str, dict[str, Any]] = {}
    for name in dataset_names():
        facts: dict[str, Any] = {"made": True}
        if name in CATALOG:
            layout = CATALOG[name].layout
            files = [list(layout.needs)] if layout else []
            facts = CATALOG[name].facts() | {"files": files}
        known[name] = facts | {"options": option_names(name)}
    return known


def datasets_text() -> str:
    """Return the table of named data sets, their options and the folder of their files."""
    cells = [
        [name, *(entry.facts()[column] for column in _COLUMNS)]
        for name, entry in sorted(CATALOG.items())
    ]
    holders: dict[str, list[str]] = {}
    for name in (*dataset_names(), "hf:NAME", "a path"):
        for option in option_names(name):
            holders.setdefault(option, []).append(name)
    lines = [
        text_table(["name", *_COLUMNS[:-1], "cite"], cells),
        f"made without files: {', '.join(sorted(BUILT_IN))}",
        "options, as --dataset-option KEY=VALUE:",
    ]
    for option, names in holders.items():
        everywhere = set(CATALOG) <= set(names)
        owners = "every set of files" if everywhere else ", ".join(names)
        lines.append(f"  {option}: {owners}")
    folder = default_root().absolute()
    return "\n".join([*lines, f"looked for in: {folder} (FASTADV_DATA, or --root)"])
