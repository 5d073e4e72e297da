"""Strict reading of YAML files of choices. This module needs no torch."""

from __future__ import annotations

import reprlib
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml

from fastadv.errors import ConfigError
from fastadv.threat import parse_pixels

_LONGEST = 1 << 20  # characters of a file of choices


def load_config_file(path: Path, command: str) -> dict[str, Any]:
    """Read the YAML mapping of a recipe or a saved configuration.

    The key `command` says what runs the file when its path is added, such as
    `fastadv-train --config`. A file without that key may be for any command.

    Args:
        path: The file.
        command: The command that reads it, in the same form.

    Returns:
        The other keys and their values.

    Raises:
        ConfigError: The file is missing, not YAML, not a mapping, or for another command.
    """
    try:
        text = path.read_text()
        if len(text) > _LONGEST:
            raise ConfigError(
                f"{path} has {len(text)} characters; no recipe is so long"
            )
        values = yaml.safe_load(text)
    except RecursionError:
        raise ConfigError(
            f"{path} is nested too deeply for a file of choices"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, one per flag")
    refuse_other_command(path, values.pop("command", command), command)
    return values


def refuse_other_command(path: Path, named: str, command: str) -> None:
    """Raise ConfigError if a file is for the command `named` and not for `command`."""
    if named != command:
        program, reader = (text.removesuffix(" --config") for text in (named, command))
        raise ConfigError(
            f"{path} is a recipe of {program} (run: {named} {path}), not of {reader}"
        )


def typed(kind: Any, value: Any) -> Any:
    """Convert a value that YAML read to the annotated type of its field.

    Raises:
        ValueError: The value is not of that type.
    """
    choices, origin = get_args(kind), get_origin(kind)
    if origin is Literal and value in choices:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(typed(choices[0], each) for each in value)
    if NoneType in choices:
        others = (choice for choice in choices if choice is not NoneType)
        return None if value is None else typed(next(others), value)
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and type(value) is str:  # 8/255; and YAML 1.1 reads 1e-3 as text
        return parse_pixels(value)
    if kind is str and type(value) is int:  # norm: 2
        return str(value)
    accepted = (
        f"one of {', '.join(map(str, choices))}"
        if origin is Literal
        else f"a list of {choices[0].__name__}"
        if origin is tuple
        else f"a value of type {kind.__name__}"
    )
    raise ValueError(f"{reprlib.repr(value)} is not {accepted}")
