"""The accuracy that is reported of a data set, built in or your own. Needs no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from fastadv.errors import ConfigError
from fastadv.extensions import look_up, name_of

METRICS = ("top1", "mean_per_class")
OwnMetric: TypeAlias = Callable[[Any, Any], Any]
"""A function of the logits, float32 [N, K], and the labels, int64 [N], both tensors on the
CPU, that returns a number in [0, 1]."""


def is_own(metric: str) -> bool:
    """Return whether a metric is not built in, and needs the logits of the images."""
    return metric not in METRICS


def check_metric(metric: Any) -> str:
    """Return the name of a metric that may be an object.

    Args:
        metric: `top1`; `mean_per_class`; a function, see `OwnMetric`; `module:name`, which
            is imported; or the name of an entry point in the group `fastadv.metrics`.

    Raises:
        ConfigError: Nothing has this name, it cannot be imported, or is no such function.
    """
    name = name_of(metric, METRICS, "metrics")
    if is_own(name):
        own_metric(name)
    return name


def own_metric(name: str) -> OwnMetric:
    """Return the function that a name stands for, which is not built in.

    Raises:
        ConfigError: As `check_metric` does.
    """
    try:
        found: Any = look_up("metric", name, dict.fromkeys(METRICS), "metrics")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    fits = callable(found) and not isinstance(found, type)
    try:
        inspect.signature(found).bind(None, None)
    except TypeError:
        fits = False
    except ValueError:  # a built-in function has no signature
        pass
    if not fits:
        raise ConfigError(
            f"metric {name!r} cannot be called as metric(logits, labels); write a function "
            "of logits [N, K] and labels [N] that returns a number in [0, 1]"
        )
    return cast(OwnMetric, found)


def metric_value(name: str, logits: Any, labels: Any) -> float:
    """Return the value of a metric of your own, in [0, 1].

    Args:
        name: Its name.
        logits: Logits of the images, float32 [N, K].
        labels: Their classes, int64 [N].

    Raises:
        ConfigError: The function fails, or returns something else than such a number.
    """
    try:
        value = float(own_metric(name)(logits, labels))
    except ConfigError:
        raise
    except Exception as error:  # whatever the function of the user raises
        raise ConfigError(
            f"metric {name!r} fails for logits {list(logits.shape)} and labels "
            f"{list(labels.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not 0 <= value <= 1:
        raise ConfigError(
            f"metric {name!r} returned {value:g}; it must be a number in [0, 1], 1 for a "
            "network that is always right"
        )
    return value
