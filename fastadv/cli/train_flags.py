"""Flags of fastadv-train about where a run starts and what is done instead of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastadv.errors import ConfigError
from fastadv.flags import PrintJson, read_by


def _counts(flag: str, words: list[str], most: int | None) -> tuple[int, ...]:
    wrong = None
    if most is not None and len(words) > most:
        wrong = "one number"
    elif not all(word.isdecimal() and int(word) > 0 for word in words):
        wrong = "numbers above 0"
    if wrong:
        raise ConfigError(f"{flag} {' '.join(words)} cannot work; it takes {wrong}")
    return tuple(map(int, words))


def _devices(words: list[str]) -> tuple[int, ...]:
    return _counts("--plan", words, most=None) or (1, 8)


def _steps(words: list[str]) -> int:
    return (*_counts("--profile", words, most=1), 20)[0]


Devices = Annotated[tuple[int, ...], read_by(_devices, tuple, "[N ...]", "*")]
Steps = Annotated[int, read_by(_steps, int, "[STEPS]", "*")]


@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """Where a run starts, and what is done instead of it."""

    dry_run: bool = False
    """Open the data, build the model, and stop."""
    plan: Devices | None = None
    """Measure 20 steps, print memory, time and device-hours of the whole run on these
    numbers of devices, and stop. Without numbers: 1 and 8."""
    profile: Steps | None = None
    """Measure where the time of N steps goes, and write it and a trace in the run
    directory. Without a number: 20 steps."""
    nproc: int | None = None
    """Start N processes on this machine, one for each GPU, or all on the CPU."""
    slurm: str | None = None
    """Submit the run to Slurm with the options of submitit, for example
    nodes=2,gpus_per_node=8,time=1440; time is in minutes or H:MM:SS. --dry-run prints the
    script."""
    json: PrintJson = False
