"""Errors a user can act on, and the near-miss helper their messages use.

Argument mistakes are `ValueError`/`TypeError`; everything below is about the
world outside the call: files, checkpoints, configurations, kernels. Command
lines turn `FastadvError` into one line on stderr and its `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PREEMPTED = 75  # saved and resumable (sysexits' EX_TEMPFAIL)


class FastadvError(Exception):
    """Base of every error that is the world's fault rather than the caller's."""

    exit_code = EXIT_FAILED


class ConfigError(FastadvError):
    """A flag or configuration value that cannot work."""

    exit_code = EXIT_USAGE


class DataError(FastadvError):
    """A data set that is missing, malformed or too damaged to use."""


class CheckpointError(FastadvError):
    """A checkpoint that is missing, damaged, or of another architecture."""


class OutputError(FastadvError):
    """A file or folder that cannot be written; what was there is unchanged."""


class BackendError(FastadvError):
    """No kernel backend can run the operation that was asked for."""


class TrainingDiverged(FastadvError):
    """The loss stopped being a finite number."""


class CatastrophicOverfitting(FastadvError):
    """Training with a single-step attack made the network blind to every other."""


class Preempted(FastadvError):
    """The run was told to stop, saved its state, and can be resumed."""

    exit_code = EXIT_PREEMPTED


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown `name`, with its near misses.

    Example:
        >>> unknown_name("architecture", "resnet81", ["resnet18", "vgg16_bn"])
        "unknown architecture 'resnet81'; perhaps you meant: resnet18"
    """
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    hint = (
        f"perhaps you meant: {', '.join(near)}"
        if near
        else f"known: {', '.join(choices)}"
    )
    return f"unknown {kind} {name!r}; {hint}"
