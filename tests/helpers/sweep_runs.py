"""A small sweep, and the contents of its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fastadv.transfer import ResultsTable

ROWS = 6 + 4  # of the recipe below, with two sources


def recipe_file(folder: Path, runs: Path, **changes: Any) -> Path:
    """Write a recipe: of two sources, heads for three seeds and two fine-tuned networks."""
    recipe: dict[str, Any] = {
        "sources": [f"{runs}/eps{{0,0.25}}"],
        "datasets": ["digits"],
        "protocols": [
            {"mode": "fixed_feature", "seeds": [0, 1, 2], "num_train": 60},
            {"mode": "full_network", "lr": [0.05, 0.01], "epochs": 1, "num_train": 40},
        ],
        "seeds": [0],
        "device": "cpu",
        "feature_cache": "off",
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe | changes))
    return file


def values(results: Path) -> dict[str, tuple[int, ...]]:
    """Return what was measured, by identity; fail if a row is there twice."""
    rows = ResultsTable(results).rows()
    found = {str(row.identity): row.per_class_correct for row in rows}
    assert len(found) == len(rows)
    return found
