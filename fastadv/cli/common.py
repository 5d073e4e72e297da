"""What every command shares: flags from a dataclass, logs to stderr, exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

from fastadv.errors import EXIT_OK, EXIT_USAGE, ConfigError, FastadvError, unknown_name
from fastadv.machine import keep_freed_memory
from fastadv.threat import parse_pixels

Config = TypeVar("Config")


def flag_value(argv: Sequence[str], *flags: str) -> str | None:
    """The value given to a flag, before the real parsing; `--flag V` or `--flag=V`."""
    for i, word in enumerate(argv):
        name, has_value, value = word.partition("=")
        if name.replace("_", "-") in flags:
            if has_value:
                return value
            return argv[i + 1] if i + 1 < len(argv) else None
    return None


def without_flag(argv: Sequence[str], flag: str) -> list[str]:
    """`argv` less a flag and its value."""
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


def read_yaml_config(path: Path, config_type: type[Any]) -> dict[str, Any]:
    """The values of a `--config` file; every key is a flag of the command.

    Raises:
        ConfigError: unreadable, not a mapping, a key that is no flag, or a value that
            is not of its type.
    """
    from fastadv.training.configfile import load_config_file

    values = load_config_file(path)
    kinds = get_type_hints(config_type)
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(f"{path}: {unknown_name('key', str(key), kinds)}")
        try:
            values[key] = _typed(kinds[key], value)
        except ValueError as error:
            raise ConfigError(f"{path}: {key}: {error}") from None
    return values


def _typed(kind: Any, value: Any) -> Any:
    """A value as YAML gives it, as the type of its field; ValueError if it is none."""
    choices, origin = get_args(kind), get_origin(kind)
    if origin is Literal and value in choices:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(choices[0], each) for each in value)
    if NoneType in choices:
        others = (choice for choice in choices if choice is not NoneType)
        return None if value is None else _typed(next(others), value)
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
    raise ValueError(f"{value!r} is not {accepted}")


def parse(config_type: type[Config], argv: Sequence[str], prog: str) -> Config:
    """Flags over `--config FILE` over defaults.

    `--print-config` prints what results, as YAML that `--config` reads, and exits.
    """
    args = list(argv)
    default = None
    path = flag_value(args, "--config")
    if path is not None:
        default = config_type(**read_yaml_config(Path(path), config_type))
        args = without_flag(args, "--config")
    show = "--print-config" in args
    args = [word for word in args if word != "--print-config"]
    # Both --flag and --no-flag exist, so that flags can say either over a file.
    config: Config = tyro.cli(  # type: ignore[assignment]
        config_type, prog=prog, args=args, default=default
    )
    if show:
        values = {f.name: getattr(config, f.name) for f in fields(config)}  # type: ignore[arg-type]
        print(yaml.safe_dump(values, sort_keys=False), end="")
        raise SystemExit(EXIT_OK)
    return config


def run(
    prog: str, body: Callable[[list[str]], None], argv: Sequence[str] | None
) -> int:
    """Run a command's body; turn its errors into one line and an exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format=f"{prog}: %(message)s"
    )
    if argv is None:  # the process is this command's own
        keep_freed_memory()
    try:
        body(list(sys.argv[1:] if argv is None else argv))
    except FastadvError as error:
        return _complain(prog, error, error.exit_code)
    except (ValueError, TypeError) as error:
        if _is_ours(error):
            return _complain(prog, error, EXIT_USAGE)
        raise
    except KeyboardInterrupt:
        return _complain(prog, "interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_OK
    return EXIT_OK


def _complain(prog: str, error: object, code: int) -> int:
    print(f"{prog}: {error}", file=sys.stderr)
    return code


def _is_ours(error: BaseException) -> bool:
    """Whether the innermost frame is fastadv's own: then the message is for the user."""
    trace = error.__traceback__
    name = ""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return name.startswith("fastadv")
