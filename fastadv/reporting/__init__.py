"""Figures, tables and one self-contained HTML report of training and transfer.

Names resolve on first use: a command that only prints a table loads no matplotlib, and
charts load no torch. Nothing here measures anything; numbers come from the callers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastadv.reporting.charts import accuracy_under_attack, transfer_bars
    from fastadv.reporting.curves import training_curves
    from fastadv.reporting.html import Section, Table, write_report
    from fastadv.reporting.palette import source_colors
    from fastadv.reporting.pictures import adversarial_examples, loss_gradients
    from fastadv.reporting.tables import format_percent_ci, text_table

_HOME = {
    "Section": "html",
    "Table": "html",
    "accuracy_under_attack": "charts",
    "adversarial_examples": "pictures",
    "format_percent_ci": "tables",
    "loss_gradients": "pictures",
    "source_colors": "palette",
    "text_table": "tables",
    "training_curves": "curves",
    "transfer_bars": "charts",
    "write_report": "html",
}

__all__ = [
    "Section",
    "Table",
    "accuracy_under_attack",
    "adversarial_examples",
    "format_percent_ci",
    "loss_gradients",
    "source_colors",
    "text_table",
    "training_curves",
    "transfer_bars",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
