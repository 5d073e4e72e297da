"""fastadv-analyze: what a network learned, as numbers of the results table.

Analyses of robust and standard networks that explain how they transfer. Each adds rows to
the results table, of which `fastadv-report` makes a section, and is computed once.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastadv.analysis.config import (
    AnalysisConfig,
    CalibrationConfig,
    CorruptionErrorConfig,
    DerivedConfig,
    EffectiveConfig,
    InfluenceConfig,
    ShapeConfig,
    ShiftConfig,
    SimilarityConfig,
)
from fastadv.cli import common
from fastadv.flags import PrintJson
from fastadv.text_tables import text_table

PROG = "fastadv-analyze"


@dataclass(frozen=True, kw_only=True)
class InfluenceCommand(InfluenceConfig):  # noqa: D101, it shows the help of its base
    __doc__ = InfluenceConfig.__doc__

    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class ShapeCommand(ShapeConfig):  # noqa: D101, it shows the help of its base
    __doc__ = ShapeConfig.__doc__

    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class ShiftCommand(ShiftConfig):  # noqa: D101, it shows the help of its base
    __doc__ = ShiftConfig.__doc__

    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class SimilarityCommand(SimilarityConfig):  # noqa: D101, it shows the help of its base
    __doc__ = SimilarityConfig.__doc__

    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class CalibrationCommand(CalibrationConfig):  # noqa: D101, help of its base
    __doc__ = CalibrationConfig.__doc__

    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class CorruptionErrorCommand(CorruptionErrorConfig):  # noqa: D101, help of its base
    __doc__ = CorruptionErrorConfig.__doc__

    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class EffectiveCommand(EffectiveConfig):  # noqa: D101, help of its base
    __doc__ = EffectiveConfig.__doc__

    json: PrintJson = False


# Command -> its flags, and the function that analyses one source.
_KINDS: dict[str, tuple[type[AnalysisConfig | DerivedConfig], str]] = {
    "calibration": (CalibrationCommand, "fastadv.analysis.analyze_calibration"),
    "corruption-error": (
        CorruptionErrorCommand,
        "fastadv.analysis.analyze_corruption_error",
    ),
    "effective-robustness": (EffectiveCommand, "fastadv.analysis.analyze_effective"),
    "influence": (InfluenceCommand, "fastadv.analysis.analyze_influence"),
    "shape": (ShapeCommand, "fastadv.analysis.analyze_shape"),
    "shift": (ShiftCommand, "fastadv.analysis.analyze_shift"),
    "similarity": (SimilarityCommand, "fastadv.analysis.analyze_similarity"),
}


def _act(command: Any, module: str) -> int:
    analyze = getattr(importlib.import_module(module), module.rpartition(".")[2])
    from fastadv.kernels import use_backend
    from fastadv.results.export import plain_rows
    from fastadv.results.schema import to_arrow
    from fastadv.results.table import ResultsTable

    table = ResultsTable(command.results)
    table.prepare()
    rows = []
    if isinstance(command, DerivedConfig):
        rows = analyze(command, table)
    else:
        with use_backend(command.backend):
            for source in command.source:
                rows += analyze(command, source, table)
    lines = []
    for row in rows:
        ends = None if row.low is None else f"[{row.low:.2f}, {row.high:.2f}]"
        lines.append(
            [row.source.name, row.setting_label, row.metric, row.value, ends, row.n]
        )
    columns = ["source", "analysis", "metric", "value", "95 % interval", "images"]
    text = f"{text_table(columns, lines)}\nfastadv-report {command.results} draws them"
    return common.show(command, list(plain_rows(to_arrow(rows, ""))), text)


def _command(config: type[Any], module: str) -> tuple[type[Any], Callable[[Any], int]]:
    return config, lambda command: _act(command, module)


_COMMANDS = {kind: _command(*each) for kind, each in _KINDS.items()}

main = functools.partial(common.run_commands, PROG, __doc__ or "", _COMMANDS)

if __name__ == "__main__":
    raise SystemExit(main())
