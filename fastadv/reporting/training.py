"""The section on how sources were trained, from the logs of their runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastadv.reporting.figures.training import training_curves
from fastadv.reporting.page.html import Section
from fastadv.runs.directory import RunDirectory


def training_section(runs: Mapping[str, str | Path], text: str) -> Section:
    """Make a section with the curves of training runs.

    `runs` are the run directories by the name of the source; `text` describes them.
    """
    logs = {name: RunDirectory(Path(run)).events() for name, run in runs.items()}
    caption = "Training loss and validation accuracy by epoch."
    return Section("Training", [text], [(training_curves(logs), caption)])
