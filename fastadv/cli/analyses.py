"""The flags of fastadv-analyze: a dataclass for each analysis. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

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
from fastadv.analysis.shift_config import (
    CalibrationConfig,
    CorruptionErrorConfig,
    DerivedConfig,
    EffectiveConfig,
    ShiftConfig,
)
from fastadv.analysis.vulnerability_config import VulnerabilityConfig
from fastadv.errors import ConfigError
from fastadv.flags import PrintJson
from fastadv.ranges import AT_LEAST_1
from fastadv.runs.engine_config import EngineConfig


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
class ShiftCommand(ShiftConfig, RunConfig):  # noqa: D101, help of its base
    __doc__ = ShiftConfig.__doc__


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


@dataclass(frozen=True, kw_only=True)
class VulnerabilityCommand(VulnerabilityConfig, RunConfig):  # noqa: D101, help of its base
    __doc__ = VulnerabilityConfig.__doc__


# Command -> its flags, and the module that analyses one source.
KINDS: dict[str, tuple[type[AnalysisConfig | DerivedConfig], str]] = {
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
    "shift": (ShiftCommand, "fastadv.analysis.analyze_shift"),
    "calibration": (CalibrationCommand, "fastadv.analysis.analyze_calibration"),
    "corruption-error": (
        CorruptionErrorCommand,
        "fastadv.analysis.analyze_corruption_error",
    ),
    "effective-robustness": (EffectiveCommand, "fastadv.analysis.analyze_effective"),
}
