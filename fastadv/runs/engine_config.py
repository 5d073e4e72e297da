"""The choice of where tasks run, which commands of many tasks share. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastadv.errors import ConfigError
from fastadv.ranges import AT_LEAST_0, Checked
from fastadv.runs.executors import EngineName


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Checked):
    """Where tasks run, and what each of them may use."""

    engine: EngineName = "serial"
    """Where tasks run: in this process (serial), in local processes, or on Ray."""
    address: str | None = None
    """Address of an existing Ray cluster: auto or host:port. Default: start a local one."""
    cpus_per_task: float = 1.0
    """Number of cores that a Ray task reserves."""
    gpus_per_task: float = 0.0
    """Number of GPUs that a Ray task reserves; tasks with a fraction share one."""
    retries: Annotated[int, AT_LEAST_0] = 2
    """Number of times that a task is started again after its process died."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine != "ray" and self.address is not None:
            raise ConfigError(f"`address={self.address}` needs `engine=ray`")
