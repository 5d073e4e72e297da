"""Options of data sets as a command line gives them, KEY=VALUE; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastadv.errors import ConfigError


def dataset_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse the texts KEY=VALUE of `--dataset-option` into options of `open_dataset`.

    Values stay text; `open_dataset` gives each option its type.

    Raises:
        ConfigError: A text without a key or a `=`, or a key given twice.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ConfigError(
                f"`dataset_option={pair}` must be KEY=VALUE, e.g. partition=2"
            )
        if key in options:
            raise ConfigError(
                f"`dataset_option={pair}`: {key} was already given as {options[key]}; "
                "give each option once"
            )
        options[key] = value
    return options
