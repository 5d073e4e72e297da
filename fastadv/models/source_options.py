"""The options after a source, such as `,arch=resnet50,weights=ema`; see `weights.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastadv.errors import ConfigError, unknown_name
from fastadv.models.input_conventions import (
    InputConvention,
    get_convention,
    parse_statistic,
)
from fastadv.models.tokens import parse_token
from fastadv.threat import parse_norm, parse_pixels, parse_training_kind


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"download={text!r} must be true or false")
    return text == "true"


# The options after a source: the attribute of `Weights` each sets, and its parser.
# `download` is no attribute, but replaces the argument of that name; `mean` and `std` are
# put into a convention.
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "arch": ("arch", str),
    "weights": ("which", str),
    "ignore": ("ignored", lambda text: tuple(text.split("+"))),
    "token": ("token", parse_token),
    "input": ("convention", get_convention),
    "mean": ("mean", parse_statistic),
    "std": ("std", parse_statistic),
    "norm": ("norm", parse_norm),
    "eps": ("eps", parse_pixels),
    "kind": ("kind", parse_training_kind),
    "name": ("name", str),
    "download": ("download", _yes_or_no),
}
_OPTION = re.compile(r",(\w+)=([^,]*(?:,[\d.e+-]+)*)$")


def split_options(source: str) -> tuple[str, dict[str, Any]]:
    """Return what comes before the options, and their values by attribute of `Weights`.

    Raises:
        ConfigError: An option is unknown (near misses are named), or its value is none.
    """
    text = source
    options: dict[str, str] = {}
    while (match := _OPTION.search(text)) and not Path(text).expanduser().exists():
        if match[1] not in _OPTIONS:
            raise ConfigError(
                f"{unknown_name('option', match[1], _OPTIONS)} (in source {text!r})"
            )
        options.setdefault(match[1], match[2])
        text = text[: match.start()]
    known = {}
    for option, value in options.items():
        attribute, parse = _OPTIONS[option]
        try:
            known[attribute] = parse(value)
        except ValueError as error:
            raise ConfigError(f"source {source!r}: {error}") from None
    return text, _with_statistics(known, source)


def _with_statistics(known: dict[str, Any], source: str) -> dict[str, Any]:
    """Put the options `mean` and `std` into one convention, as `input` gives one."""
    mean, std = known.pop("mean", None), known.pop("std", None)
    if mean is None and std is None:
        return known
    if mean is None or std is None or "convention" in known:
        raise ConfigError(
            f"source {source!r}: give both mean= and std=, and not input= beside them, which "
            "states them, too"
        )
    if len(mean) != len(std) and 1 not in (len(mean), len(std)):
        raise ConfigError(
            f"source {source!r}: mean= has {len(mean)} numbers and std= has {len(std)}; give "
            "one for all channels or one for each"
        )
    return known | {"convention": InputConvention(mean, std)}
