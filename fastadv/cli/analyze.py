"""fastadv-analyze: what a network learned, as numbers of the results table.

Analyses of robust and standard networks that explain how they transfer. Each adds rows to
the results table, of which `fastadv-report` makes a section, and is computed once. After
an interruption, the same command continues.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastadv.analysis.config import (
    AnalysisConfig,
    InfluenceConfig,
    ManipulationConfig,
    ShapeConfig,
    SimilarityConfig,
)
from fastadv.analysis.seeing_config import (
    GradientsConfig,
    InversionConfig,
    VisualizationConfig,
)
from fastadv.analysis.vulnerability_config import VulnerabilityConfig
from fastadv.cli import common
from fastadv.errors import ConfigError
from fastadv.flags import PrintJson
from fastadv.ranges import AT_LEAST_1
from fastadv.runs.engine_config import EngineConfig
from fastadv.text_tables import text_table

PROG = "fastadv-analyze"


@dataclass(frozen=True, kw_only=True)
class RunConfig(EngineConfig):
    """Where analyses run, one task for each source, and what is printed."""

    jobs: Annotated[int | None, AT_LEAST_1] = None
    """Number of sources that are analysed at once with processes and ray. Default: as many
    as there is room for."""
    json: PrintJson = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "serial" and self.jobs not in (None, 1):
            raise ConfigError(
                f"`jobs={self.jobs}` needs `engine=processes` or `engine=ray`; serial "
                "analyses one source at a time"
            )


@dataclass(frozen=True, kw_only=True)
class InfluenceCommand(InfluenceConfig, RunConfig):  # noqa: D101, help of its base
    __doc__ = InfluenceConfig.__doc__


@dataclass(frozen=True, kw_only=True)
class ManipulationCommand(ManipulationConfig, RunConfig):  # noqa: D101, help of its base
    __doc__ = ManipulationConfig.__doc__


@dataclass(frozen=True, kw_only=True)
class ShapeCommand(ShapeConfig, RunConfig):  # noqa: D101, help of its base
    __doc__ = ShapeConfig.__doc__


@dataclass(frozen=True, kw_only=True)
class SimilarityCommand(SimilarityConfig, RunConfig):  # noqa: D101, help of its base
    __doc__ = SimilarityConfig.__doc__


@dataclass(frozen=True, kw_only=True)
class GradientsCommand(GradientsConfig, RunConfig):  # noqa: D101, help of its base
    __doc__ = GradientsConfig.__doc__


@dataclass(frozen=True, kw_only=True)
class VisualizationCommand(VisualizationConfig, RunConfig):  # noqa: D101, help of its base
    __doc__ = VisualizationConfig.__doc__


@dataclass(frozen=True, kw_only=True)
class InversionCommand(InversionConfig, RunConfig):  # noqa: D101, help of its base
    __doc__ = InversionConfig.__doc__


@dataclass(frozen=True, kw_only=True)
class VulnerabilityCommand(VulnerabilityConfig, RunConfig):  # noqa: D101, help of its base
    __doc__ = VulnerabilityConfig.__doc__


# Command -> its flags, and the module that analyses one source.
_KINDS: dict[str, tuple[type[AnalysisConfig], str]] = {
    "influence": (InfluenceCommand, "fastadv.analysis.analyze_influence"),
    "manipulation": (ManipulationCommand, "fastadv.analysis.analyze_manipulation"),
    "shape": (ShapeCommand, "fastadv.analysis.analyze_shape"),
    "similarity": (SimilarityCommand, "fastadv.analysis.analyze_similarity"),
    "gradients": (GradientsCommand, "fastadv.analysis.analyze_gradients"),
    "visualization": (VisualizationCommand, "fastadv.analysis.analyze_visualization"),
    "inversion": (InversionCommand, "fastadv.analysis.analyze_inversion"),
    "vulnerability": (
        VulnerabilityCommand,
        "fastadv.analysis.analyze_vulnerability",
    ),
}


def _act(command: Any, module: str) -> int:
    from fastadv.analysis.running import run_analyses
    from fastadv.results.export import plain_rows
    from fastadv.results.schema import to_arrow
    from fastadv.runs.executors import make_executor

    executor = functools.partial(
        make_executor,
        command.engine,
        workers=command.jobs,
        address=command.address,
        cpus_per_task=command.cpus_per_task,
        gpus_per_task=command.gpus_per_task,
    )
    # In this process, what failed would fail again.
    retries = 0 if command.engine == "serial" else command.retries
    rows = run_analyses(module, command, executor, retries=retries)
    lines = []
    for row in rows:
        ends = None if row.low is None else f"[{row.low:.4g}, {row.high:.4g}]"
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
