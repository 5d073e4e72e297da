"""Exit codes that scripts rely on, and messages that name the near misses."""

from __future__ import annotations

import pytest

from fastadv import errors
from fastadv.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    DataError,
    FastadvError,
    OutputError,
    Preempted,
    TrainingDiverged,
    unknown_name,
)

NAMES = ["resnet18", "resnet50", "vgg16_bn", "densenet161"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (BackendError, 1),
        (CheckpointError, 1),
        (ConfigError, 2),
        (DataError, 1),
        (OutputError, 1),
        (Preempted, 75),
        (TrainingDiverged, 1),
    ],
)
def test_exit_codes(kind: type[FastadvError], code: int) -> None:
    assert kind("reason").exit_code == code
    assert issubclass(kind, FastadvError)
    # Mistakes in arguments are ValueError or TypeError; these must not be caught along.
    assert not issubclass(kind, (ValueError, TypeError))
    assert str(kind("reason")) == "reason"


def test_every_error_has_a_documented_exit_code() -> None:
    kinds = [
        v
        for v in vars(errors).values()
        if isinstance(v, type) and issubclass(v, FastadvError)
    ]
    assert len(kinds) == 9
    assert {k.exit_code for k in kinds} <= {
        errors.EXIT_FAILED,
        errors.EXIT_USAGE,
        errors.EXIT_PREEMPTED,
    }


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("resnet81", "resnet18"), ("vgg16", "vgg16_bn"), ("densnet161", "densenet161")],
)
def test_near_misses_are_named(typed: str, meant: str) -> None:
    message = unknown_name("architecture", typed, NAMES)
    assert message.startswith(f"unknown architecture {typed!r}; perhaps you meant: ")
    assert meant in message.split(": ")[1].split(", ")


def test_without_a_near_miss_everything_is_listed_in_order() -> None:
    message = unknown_name("objective", "zzz", {"kl": 1, "dlr": 2, "margin": 3})
    assert message == "unknown objective 'zzz'; known: dlr, kl, margin"
