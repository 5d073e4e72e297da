"""Which values a field may have, as annotations, and the one check of them.

    @dataclass(frozen=True, kw_only=True)
    class Example(Checked):
        epochs: Annotated[int, AT_LEAST_1] = 90
        momentum: Annotated[float, Range(0, 1, "[)")] = 0.9

`Example(epochs=0)` raises `ConfigError`. A function in an annotation makes the value of
the field from what was given; it raises ValueError where it cannot. The check holds for
every command and every Python caller. A message writes arguments as `name=value` or
`name` in backquotes, and a command shows them as its flags.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields
from types import FunctionType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fastadv.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Range:
    """An interval of numbers; None, where a field allows it, is in every range.

    Attributes:
        low: Lower end.
        high: Upper end.
        ends: `[` or `(` and `]` or `)`: whether the ends themselves belong to it.
    """

    low: float
    high: float = math.inf
    ends: Literal["[]", "[)", "(]", "()"] = "[)"

    def __contains__(self, value: float) -> bool:
        above = self.low <= value if self.ends[0] == "[" else self.low < value
        below = value <= self.high if self.ends[1] == "]" else value < self.high
        return above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'at least' if self.ends[0] == '[' else 'above'} {self.low:g}"
        return f"in {self.ends[0]}{self.low:.10g}, {self.high:.10g}{self.ends[1]}"


ABOVE_0, AT_LEAST_0, AT_LEAST_1 = Range(0, ends="()"), Range(0), Range(1)


@dataclass(frozen=True)
class Checked:
    """Base of the dataclasses whose fields are checked against their annotations."""

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(config: Any) -> None:
    """Check every field of a dataclass against its annotation.

    Args:
        config: Instance of a dataclass. Each element of a tuple is checked, and fields
            that have a function are replaced.

    Raises:
        ConfigError: A number is out of its range, a name is not among its choices, or a
            value cannot be parsed.
    """
    for name, limits in _limited(type(config)).items():  # type: ignore[arg-type]
        given = getattr(config, name)
        choices = [limit for limit in limits if isinstance(limit, str)]
        values = list(given) if isinstance(given, tuple) else [given]
        for index, value in enumerate(values):
            if value is None:
                continue
            for limit in limits:
                if isinstance(limit, Range) and value not in limit:
                    raise ConfigError(
                        f"`{name}={value}` cannot work; it must be {limit}"
                    )
                if isinstance(limit, FunctionType):
                    try:
                        values[index] = limit(value)
                    except ValueError as error:
                        raise ConfigError(str(error)) from None
                    made = tuple(values) if isinstance(given, tuple) else values[0]
                    object.__setattr__(config, name, made)
            if choices and value not in choices:
                raise ConfigError(unknown_name(f"`{name}`", value, choices))


@functools.cache
def _limited(kind: type[Any]) -> dict[str, list[Range | FunctionType | str]]:
    hints = get_type_hints(kind, include_extras=True)
    found = {name: list(_limits(hint)) for name, hint in hints.items()}
    return {name: limits for name, limits in found.items() if limits}


def _limits(hint: Any) -> Iterator[Range | FunctionType | str]:
    """Yield everything in an annotation that limits a value, however deep."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from (
            each for each in inner[1:] if isinstance(each, Range | FunctionType)
        )
        yield from _limits(inner[0])
    elif origin is Literal:
        yield from inner
    elif origin in (Union, UnionType, tuple):
        for each in inner:
            if each not in (NoneType, ...):
                yield from _limits(each)


def ordered_fields(kind: type[Any]) -> list[Field[Any]]:
    """Return the fields of a dataclass: its own first, then those it inherits.

    A command that shows the docstring of its base adds its own fields behind them.
    """
    order = list(kind.__mro__)
    if kind.__doc__ == order[1].__doc__:
        order.append(order.pop(0))
    known = {field.name: field for field in fields(kind)}
    classes = (inspect.get_annotations(each) for each in order)
    names = dict.fromkeys(name for each in classes for name in each if name in known)
    return [known[name] for name in names]


def ordered_values(config: Any, kind: type[Any]) -> dict[str, Any]:
    """Return the values that a dataclass has for the fields of `kind`, in their order."""
    return {field.name: getattr(config, field.name) for field in ordered_fields(kind)}
