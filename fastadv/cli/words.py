"""The arguments of a command line before tyro reads them, and the file under its flags."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from fastadv.errors import ConfigError, in_flags, unknown_name
from fastadv.extensions import refuse_references


def flag_value(argv: Sequence[str], *flags: str) -> str | None:
    """Return the value given to a flag, as `--flag V` or `--flag=V`, or None."""
    for i, word in enumerate(argv):
        name, has_value, value = word.partition("=")
        if name.replace("_", "-") in flags:
            if has_value:
                return value
            return argv[i + 1] if i + 1 < len(argv) else None
    return None


def without_flag(argv: Sequence[str], flag: str) -> list[str]:
    """Return `argv` without a flag and its value."""
    rest: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word == flag:
            skip = True
        elif not word.startswith(flag + "="):
            rest.append(word)
    return rest


def read_yaml_config(path: Path, config_type: type[Any], prog: str) -> dict[str, Any]:
    """Read the values of a `--config` file; every key is a flag of the command `prog`.

    Raises:
        ConfigError: The file is unreadable, not a mapping or for another command, a key
            is no flag, or a value is not of its type.
    """
    from fastadv.runs.configfile import load_config_file, refuse_other_command, typed
    from fastadv.transfer.recipe import COMMAND, PARTS

    values = load_config_file(path, f"{prog} --config")
    if PARTS.keys() & values.keys():  # a sweep written before files named commands
        refuse_other_command(path, COMMAND, prog)
    hints = get_type_hints(config_type)
    kinds = {each.name: hints[each.name] for each in fields(config_type)}
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(f"{path}: {unknown_name('key', str(key), kinds)}")
        try:
            values[key] = typed(kinds[key], value)
        except ValueError as error:
            raise ConfigError(f"{path}: {key}: {error}") from None
    refuse_references(values, path)
    return values


def typed_archs(words: Sequence[str]) -> list[str]:
    """Return the architectures that a command line names, by `--arch` or after a source."""
    found: list[str] = []
    for number, word in enumerate(words):
        if word == "--arch":
            found += words[number + 1 : number + 2]
        elif word.startswith("--arch="):
            found.append(word.removeprefix("--arch="))
        found += re.findall(r",arch=([^,]*)", word)
    return found


def log_in_flags(prog: str) -> None:
    """Write warnings to stderr after the name of the program, with its flags in them."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FlagFormatter(f"{prog}: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class _FlagFormatter(logging.Formatter):
    """Writes messages with the flags of commands instead of the arguments of Python."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return in_flags(super().format(record))
