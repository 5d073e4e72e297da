"""Flags of fastadv-train about where a run starts and what is done instead of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from fastadv.errors import ConfigError
from fastadv.flags import PrintJson

PLAN_DEVICES, PROFILE_STEPS = (1, 8), 20  # of the flags without numbers


def _counts(flag: str, words: list[str], most: float) -> tuple[int, ...]:
    if len(words) > most:
        raise ConfigError(f"{flag} {' '.join(words)} cannot work; it takes one number")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(
            f"{flag} {' '.join(words)} cannot work; it takes numbers above 0"
        )
    return tuple(map(int, words))


Devices = Annotated[
    tuple[int, ...],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[N ...]",
        instance_from_str=lambda words: (
            _counts("--plan", words, most=inf) or PLAN_DEVICES
        ),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [str(each) for each in value],
    ),
]
Steps = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[STEPS]",
        instance_from_str=lambda words: (
            *_counts("--profile", words, most=1),
            PROFILE_STEPS,
        )[0],
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]


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
