"""Errors a user can act on, and how their messages name arguments and near misses.

Argument mistakes are `ValueError`/`TypeError`; everything below is about the
world outside the call: files, checkpoints, configurations, kernels. Command
lines turn `FastadvError` into one line on stderr and its `exit_code`.

A message of the library writes an argument as `` `name=value` `` or `` `name` ``, for a
Python caller; the commands show it as a flag, see `in_flags`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# An argument in a message: `name=value` or `name`, in backquotes.
_ARGUMENT = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")

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
    """No kernel backend can run the requested operation."""


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


def first_few(names: Sequence[str], limit: int, separator: str = ", ") -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more


def is_ours(error: BaseException) -> bool:
    """Return whether fastadv's own code raised an error, whose message users can read."""
    trace = error.__traceback__
    name = ""
    while trace is not None:  # to the innermost frame
        name = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return name.startswith("fastadv")


def in_flags(message: str) -> str:
    """Write the arguments that a library's message names as flags.

    Example:
        >>> in_flags("`num_steps=0` cannot work; `eps` can")
        '--num-steps 0 cannot work; --eps can'
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        words = "--" + name.replace("_", "-")
        return words if value is None else f"{words} {value}"

    return _ARGUMENT.sub(flag, message)
