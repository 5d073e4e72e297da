"""What every command shares: flags from a dataclass, logs to stderr, exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from fastadv.errors import EXIT_OK, EXIT_USAGE, ConfigError, FastadvError, unknown_name

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


def read_yaml_config(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """The keys of a `--config` file, every one a flag of the command.

    Raises:
        ConfigError: unreadable, not a mapping, or a key that is no flag.
    """
    from fastadv.training.configfile import load_config_file

    values = load_config_file(path)
    for key in values:
        if str(key) not in known:
            raise ConfigError(f"{path}: {unknown_name('key', str(key), known)}")
    return values


def parse(config_type: type[Config], argv: Sequence[str], prog: str) -> Config:
    """Flags over `--config FILE` over defaults.

    `--print-config` prints what results, as YAML that `--config` reads, and exits.
    """
    args = list(argv)
    default = None
    path = flag_value(args, "--config")
    if path is not None:
        known = [field.name for field in fields(config_type)]  # type: ignore[arg-type]
        default = config_type(**read_yaml_config(Path(path), known))
        args = without_flag(args, "--config")
    show = "--print-config" in args
    args = [word for word in args if word != "--print-config"]
    config = tyro.cli(
        config_type,
        prog=prog,
        args=args,
        default=default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if show:
        values = {f.name: getattr(config, f.name) for f in fields(config)}  # type: ignore[arg-type]
        print(yaml.safe_dump(values, sort_keys=False), end="")
        raise SystemExit(EXIT_OK)
    return config


def run(prog: str, body: Callable[[list[str]], None], argv: Sequence[str] | None) -> int:
    """Run a command's body; turn its errors into one line and an exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format=f"{prog}: %(message)s"
    )
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
