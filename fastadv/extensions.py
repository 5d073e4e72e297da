"""Things that people bring by name: `module:name`, `file.py:name`, and entry points.

A name that the user types may import code. A name that is read from a file may not: who
reads it calls `refuse_reference`, which lets through what was also typed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from fastadv.errors import ConfigError, unknown_name

_Thing = TypeVar("_Thing")
_handed_in: dict[tuple[str, str], Any] = {}  # by group and name
_typed: set[str] = set()
_REFERENCE = re.compile(r"(?P<module>[A-Za-z_][\w.]*|.+\.py):(?P<name>[A-Za-z_][\w.]*)")


def is_reference(name: str) -> bool:
    """Return whether a name is written as `module:name` or `path/file.py:name`.

    Example:
        >>> is_reference("mypackage.losses:hinge"), is_reference("./nets.py:Net")
        (True, True)
        >>> is_reference("cross_entropy"), is_reference("http://host/file.py")
        (False, False)
    """
    return _REFERENCE.fullmatch(name) is not None


def load_reference(reference: str, kind: str) -> Any:
    """Import what `module:name` or `path/file.py:name` names; this runs the module's code.

    Modules are also looked for in the current folder.

    Args:
        reference: The name, as the user typed it.
        kind: What it stands for, for messages: `"objective"`, `"architecture"` and so on.

    Raises:
        ConfigError: There is no such module, file or name, or importing it fails.
    """
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise ConfigError(
            f"{kind} {reference!r} is not written as module:name or path/file.py:name"
        )
    module_name, name = found["module"], found["name"]
    try:
        with _current_folder():
            thing = _imported(module_name)
    except FileNotFoundError:
        raise ConfigError(
            f"{kind} {reference!r}: there is no file {module_name}"
        ) from None
    except Exception as error:  # whatever the module's own code raises
        reason = f"{type(error).__name__}: {error}"
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            reason = f"there is no module {error.name!r}"
            hint = "; it is looked for where Python looks, and in the current folder"
        raise ConfigError(
            f"{kind} {reference!r} cannot be imported: {reason}{hint}"
        ) from error
    for part in name.split("."):
        if not hasattr(thing, part):
            public = [each for each in vars(thing) if not each.startswith("_")]
            raise ConfigError(
                f"{kind} {reference!r}: {unknown_name('name', part, public)}"
            )
        thing = getattr(thing, part)
    return thing


def note_typed(words: Iterable[str]) -> None:
    """Remember the names of code on a command line, which a file may then hold, too.

    Args:
        words: The words; of `metric=module:name` the part after the sign counts.
    """
    names = (word.rpartition("=")[2] for word in words)
    _typed.update(name for name in names if is_reference(name))


def refuse_reference(name: object, file: str | os.PathLike[str], flag: str) -> None:
    """Raise ConfigError if a name that a file holds would import code nobody typed.

    Args:
        name: What the file holds.
        file: The file, for the message.
        flag: Name of the argument that the user can type instead.
    """
    if isinstance(name, str) and is_reference(name) and name not in _typed:
        raise ConfigError(
            f"{file} names code, `{flag}={name}`, and a file never imports any; type it "
            f"yourself: `{flag}={name}`. A name that an installed package adds may stand "
            "in a file"
        )


# Keys of files whose values may name code; of options of data sets, the metric may.
_NAMING = ("method", "protocol", "objective", "attack", "dataset_option")


def refuse_references(values: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
    """Raise ConfigError if a mapping that a file holds names code nobody typed."""
    for key in _NAMING:
        given = values.get(key)
        for value in given if isinstance(given, list | tuple) else [given]:
            if isinstance(value, str):
                option, equals, name = value.rpartition("=")
                refuse_reference(name, file, option if equals else key)


def installed(group: str) -> list[str]:
    """Return the names that installed packages add to a group.

    Args:
        group: The group without its prefix; `"objectives"` stands for the entry points
            `fastadv.objectives`.
    """
    return sorted({entry.name for entry in entry_points(group=f"fastadv.{group}")})


def name_of(thing: Any, known: Iterable[str], group: str) -> str:
    """Return the name of what may be handed in as an object; a name stays as it is.

    `look_up` finds the object by its name in this process. Its name is its attribute
    `name`, or `module:name` of a class or function, so that another process imports it.

    Args:
        thing: A name, or an object.
        known: Names of what is built in.
        group: Group of entry points; see `installed`.

    Raises:
        ConfigError: The object is called like something that is built in.
    """
    if isinstance(thing, str):
        return thing
    name = getattr(thing, "name", None)
    if not isinstance(name, str) or hasattr(thing, "__qualname__"):
        maker = thing if hasattr(thing, "__qualname__") else type(thing)
        inner = maker.__qualname__.replace("<locals>.", "").replace(
            "<lambda>", "lambda_"
        )
        name = f"{maker.__module__}:{inner}"
    if name in known:
        raise ConfigError(
            f"{name!r} is built in; give the {type(thing).__name__} another name"
        )
    while _handed_in.get((group, name), thing) is not thing:
        name += "_"
    _handed_in[group, name] = thing
    return name


def look_up(
    kind: str, name: str, known: Mapping[str, _Thing], group: str
) -> _Thing | Any:
    """Return what a name stands for.

    Args:
        kind: What it stands for, for messages.
        name: A key of `known`, `module:name`, the name of an entry point, or what `name_of`
            returned.
        known: What is built in.
        group: Group of entry points; see `installed`.

    Raises:
        ValueError: Nothing has this name.
        ConfigError: It cannot be imported.
    """
    if name in known:
        return known[name]
    if (group, name) in _handed_in:
        return _handed_in[group, name]
    if is_reference(name):
        return load_reference(name, kind)
    for entry in entry_points(group=f"fastadv.{group}"):
        if entry.name == name:
            return load_reference(entry.value, kind)
    raise ValueError(_unknown(kind, name, known, group))


def check_name(kind: str, name: str, known: Iterable[str], group: str) -> None:
    """Raise ConfigError unless `look_up` would find a name; nothing is imported."""
    if name in known or is_reference(name) or name in installed(group):
        return
    if (group, name) in _handed_in:
        return
    raise ConfigError(_unknown(kind, name, known, group))


def _unknown(kind: str, name: str, known: Iterable[str], group: str) -> str:
    own = "; one of your own is module:name"
    return unknown_name(kind, name, {*known, *installed(group)}) + own


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Let modules of the current folder be imported, which installed commands would not."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _imported(module: str) -> Any:
    """Return a module by its name, or by the path of its file."""
    if not module.endswith(".py"):
        return importlib.import_module(module)
    path = Path(module).expanduser().resolve()
    name = f"_fastadv_file_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(module)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses and pickle look a module up by its name
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise
    return loaded
