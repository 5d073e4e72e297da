"""How tyro turns a dataclass into flags: one default for each flag, and plain help."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro
from docstring_parser import parse_from_object
from tyro.conf import Suppress, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

from fastadv.ranges import ordered_fields

_EVERYWHERE = (
    "Every command also takes --config FILE, which reads flags from a YAML file, "
    "--print-config, which prints all flags as such a file, and --version."
)


def description(kind: type[Any]) -> str:
    """Return the text above the flags of a command: its docstring, less `Raises:`."""
    about = inspect.cleandoc(kind.__doc__ or "").partition("\n\nRaises:")[0]
    return f"{about}\n\n{_EVERYWHERE}"


def commands_help(prog: str, about: str | None, kinds: Mapping[str, type[Any]]) -> str:
    """Return the help of `prog COMMAND`: what it is for, and its commands by name.

    Args:
        prog: Name of the program.
        about: What it is for.
        kinds: Dataclass of the flags of each command, by the name of the command.
    """
    lines = [f"usage: {prog} COMMAND [-h] [OPTIONS]", "", (about or "").strip(), ""]
    for name, kind in kinds.items():
        lines.append(f"  {name:8} {(kind.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join(lines)


def make_rules(*, all_flags: bool = True) -> ConstructorRegistry:
    """Return the rules by which tyro reads the flags of every command.

    Args:
        all_flags: Whether the help shows the flags that the dataclass calls `RARE`, too.
    """
    rules = ConstructorRegistry()
    rules.primitive_rule(_optional)

    @rules.struct_rule
    def _flags(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type):
            return None
        kind: type[Any] = info.type
        rare = () if all_flags else getattr(kind, "RARE", ())
        hints = get_type_hints(kind, include_extras=True)
        texts = _help_texts(kind)  # type: ignore[arg-type]
        found = []
        for field in ordered_fields(kind):
            name, hint, default = field.name, hints[field.name], field.default
            if isinstance(info.default, kind):
                default = getattr(info.default, name)
            elif default is dataclasses.MISSING:
                default = tyro.MISSING_NONPROP
            if default is None or default == ():  # its text says what that stands for
                hint = Annotated[hint, arg(help_behavior_hint="")]
            if name in rare:
                hint = Annotated[hint, Suppress]
            found.append(StructFieldSpec(name, hint, default, texts.get(name)))
        return StructConstructorSpec(kind, tuple(found))

    return rules


def _optional(
    info: PrimitiveTypeInfo,
) -> PrimitiveConstructorSpec[Any] | UnsupportedTypeAnnotationError | None:
    """Show `X | None` as X; the text None stays accepted without being advertised."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    is_union = get_origin(info.type) in (Union, UnionType)
    if not is_union or len(kinds) != 1 or len(get_args(info.type)) != 2:
        return None
    spec = ConstructorRegistry.get_primitive_spec(
        PrimitiveTypeInfo.make(kinds[0], info.markers)
    )
    if isinstance(spec, UnsupportedTypeAnnotationError):
        return spec
    inner = spec
    return dataclasses.replace(
        inner,
        instance_from_str=lambda words: (
            None if words == ["None"] else inner.instance_from_str(words)
        ),
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: (
            ["None"] if value is None else inner.str_from_instance(value)
        ),
        choices=None if inner.choices is None else (*inner.choices, "None"),
    )


@functools.cache
def _help_texts(kind: type[Any]) -> dict[str, str]:
    """Return the text below each field of a class and its bases, on one line."""
    found = {}
    for each in reversed(kind.__mro__[:-1]):
        for param in parse_from_object(each).params:
            found[param.arg_name] = " ".join((param.description or "").split())
    return found
