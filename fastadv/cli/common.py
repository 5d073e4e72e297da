"""What every command shares: flags from a dataclass, logs to stderr, exit codes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import tyro
import yaml

from fastadv import __version__
from fastadv.cli.flagrules import commands_help, description, make_rules
from fastadv.cli.interrupts import continued, interrupt_on_sigterm
from fastadv.cli.words import (
    flag_value,
    log_in_flags,
    read_yaml_config,
    typed_archs,
    without_flag,
)
from fastadv.errors import (
    EXIT_OK,
    EXIT_PREEMPTED,
    EXIT_USAGE,
    ConfigError,
    FastadvError,
    in_flags,
    is_ours,
    unknown_name,
)
from fastadv.extensions import note_typed
from fastadv.machine import keep_freed_memory
from fastadv.models.own_networks import import_arch
from fastadv.progress import Progress
from fastadv.ranges import ordered_values

Config = TypeVar("Config")
Commands: TypeAlias = Mapping[str, tuple[type[Any], Callable[[Any], int]]]


def parse(config_type: type[Config], argv: Sequence[str], prog: str) -> Config:
    """Read flags over `--config FILE` over defaults.

    `--print-config` prints what results, as YAML that `--config` reads, and exits;
    `--help-all` also shows the flags that the type calls `RARE`.
    """
    args = list(argv)
    default = None
    if (path := flag_value(args, "--config")) is not None:
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
        description=description(config_type),
        registry=make_rules(all_flags=all_flags),
    )
    if prints:
        values = ordered_values(config, config_type)
        print(yaml.safe_dump(values, sort_keys=False), end="")
        raise SystemExit(EXIT_OK)
    return config


def run_commands(
    prog: str,
    about: str | None,
    commands: Commands,
    argv: Sequence[str] | None = None,
) -> int:
    """Run `prog COMMAND ...`.

    Args:
        prog: Name of the program.
        about: What it is for, shown above the list of commands.
        commands: For each name the dataclass of its flags, and a function of them that
            returns the exit code.
        argv: Arguments after `prog`; None stands for the arguments of the process.
    """

    def body(words: list[str]) -> int:
        if not words or words[0] in ("-h", "--help"):
            kinds = {name: kind for name, (kind, _) in commands.items()}
            print(commands_help(prog, about, kinds))
            raise SystemExit(EXIT_OK if words else EXIT_USAGE)
        if words[0] not in commands:
            raise ConfigError(unknown_name("command", words[0], commands))
        kind, act = commands[words[0]]
        return act(parse(kind, words[1:], f"{prog} {words[0]}"))

    return run(prog, body, argv)


def run(
    prog: str,
    body: Callable[[list[str]], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a command's body; turn its errors into one line and an exit code."""
    Progress.wording = in_flags
    log_in_flags(prog)
    if argv is None:  # the process is this command's own
        keep_freed_memory()
        interrupt_on_sigterm()
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names on disk need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    if "--version" in words:
        print(f"fastadv {__version__}")
        return EXIT_OK
    note_typed(words)
    try:
        for name in typed_archs(words):
            import_arch(name)
        return body(words) or EXIT_OK
    except FastadvError as error:
        return _complain(prog, error, error.exit_code)
    except (ValueError, TypeError) as error:
        if is_ours(error):
            return _complain(prog, error, EXIT_USAGE)
        raise
    except KeyboardInterrupt:
        again = continued(prog, words)
        return _complain(prog, f"interrupted; continue with: {again}", EXIT_PREEMPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_OK


def show(command: Any, values: Any, text: str) -> int:
    """Print a result: its text, or with `command.json` its values as a JSON object."""
    print(json.dumps(values, default=str) if command.json else text)
    return EXIT_OK


def _complain(prog: str, error: object, code: int) -> int:
    print(f"{prog}: {in_flags(str(error))}", file=sys.stderr)
    return code
