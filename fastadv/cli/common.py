"""What every command shares: flags from a dataclass, logs to stderr, exit codes."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro
import yaml

from fastadv import __version__
from fastadv.cli.flagrules import make_rules
from fastadv.errors import EXIT_OK, EXIT_USAGE, ConfigError, FastadvError, unknown_name
from fastadv.machine import keep_freed_memory
from fastadv.ranges import ordered_fields

Config = TypeVar("Config")
_EVERYWHERE = (
    "Every command also takes --config FILE, which reads flags from a YAML file, "
    "--print-config, which prints all flags as such a file, and --version."
)
# An argument in a message: `name=value` or `name`, in backquotes.
_ARGUMENT = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")


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


def read_yaml_config(path: Path, config_type: type[Any], prog: str) -> dict[str, Any]:
    """Read the values of a `--config` file; every key is a flag of the command `prog`.

    Raises:
        ConfigError: The file is unreadable, not a mapping or for another command, a key
            is no flag, or a value is not of its type.
    """
    from fastadv.runs.configfile import load_config_file, refuse_other_command, typed
    from fastadv.transfer.recipe import COMMAND, PARTS

    values = load_config_file(path, f"{prog} --config")
    if PARTS.keys() <= values.keys():  # a sweep written before files named commands
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
    return values


def parse(config_type: type[Config], argv: Sequence[str], prog: str) -> Config:
    """Read flags over `--config FILE` over defaults.

    `--print-config` prints what results, as YAML that `--config` reads, and exits;
    `--help-all` also shows the flags that the type calls `RARE`.
    """
    args = list(argv)
    default = None
    path = flag_value(args, "--config")
    if path is not None:
        default = config_type(**read_yaml_config(Path(path), config_type, prog))
        args = without_flag(args, "--config")
    prints = "--print-config" in args
    args = [word for word in args if word != "--print-config"]
    all_flags = not {"-h", "--help"} & set(args)
    if "--help-all" in args:
        args = ["--help"]
    # Both --flag and --no-flag exist, so that flags can say either over a file.
    config: Config = tyro.cli(  # type: ignore[assignment]
        config_type,
        prog=prog,
        args=args,
        default=default,
        description=f"{_described(config_type)}\n\n{_EVERYWHERE}",
        registry=make_rules(all_flags=all_flags),
    )
    if prints:
        names = [field.name for field in ordered_fields(config_type)]
        values = {name: getattr(config, name) for name in names}
        print(yaml.safe_dump(values, sort_keys=False), end="")
        raise SystemExit(EXIT_OK)
    return config


def _described(config_type: type[Any]) -> str:
    """Return the docstring of a command without the sections for Python callers."""
    return inspect.cleandoc(config_type.__doc__ or "").partition("\n\nRaises:")[0]


def run_commands(
    prog: str,
    about: str,
    commands: Mapping[str, tuple[type[Any], Callable[[Any], int]]],
    argv: Sequence[str] | None,
) -> int:
    """Run `prog COMMAND ...`.

    Args:
        prog: the program.
        about: what it is for, shown above the list of commands.
        commands: for each name the dataclass of its flags, and what it does with them,
            which returns the exit code.
        argv: the words after `prog`; None takes the process's.
    """
    code = EXIT_OK

    def body(words: list[str]) -> None:
        nonlocal code
        if not words or words[0] in ("-h", "--help"):
            lines = [f"usage: {prog} COMMAND [-h] [OPTIONS]", "", about.strip(), ""]
            for name, (kind, _) in commands.items():
                first = (kind.__doc__ or "").strip().splitlines()[0]
                lines.append(f"  {name:8} {first}")
            print("\n".join(lines))
            raise SystemExit(EXIT_OK if words else EXIT_USAGE)
        if words[0] not in commands:
            raise ConfigError(unknown_name("command", words[0], commands))
        kind, act = commands[words[0]]
        code = act(parse(kind, words[1:], f"{prog} {words[0]}"))

    return run(prog, body, argv) or code


def run(
    prog: str, body: Callable[[list[str]], None], argv: Sequence[str] | None
) -> int:
    """Run a command's body; turn its errors into one line and an exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format=f"{prog}: %(message)s"
    )
    if argv is None:  # the process is this command's own
        keep_freed_memory()
    words = list(sys.argv[1:] if argv is None else argv)
    if "--version" in words:
        print(f"fastadv {__version__}")
        return EXIT_OK
    try:
        body(words)
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
    print(f"{prog}: {in_flags(str(error))}", file=sys.stderr)
    return code


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


def _is_ours(error: BaseException) -> bool:
    """Whether the innermost frame is fastadv's own: then the message is for the user."""
    trace = error.__traceback__
    name = ""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return name.startswith("fastadv")
