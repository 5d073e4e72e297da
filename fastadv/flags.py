"""Types of flags that more than one command takes, with how they are read from text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fastadv.threat import parse_norm, parse_pixels

if TYPE_CHECKING:
    from tyro.conf import Positional, UseAppendAction, arg
    from tyro.constructors import PrimitiveConstructorSpec
else:
    try:
        from tyro.conf import Positional, UseAppendAction, arg
        from tyro.constructors import PrimitiveConstructorSpec
    except ModuleNotFoundError as error:
        # Only the commands read flags. The configurations are also arguments of Python
        # functions, which need nothing of what their annotations tell tyro.
        if error.name != "tyro":
            raise
        _T = TypeVar("_T")
        Positional = UseAppendAction = Annotated[_T, "a flag that tyro would read"]

        def _nothing(*_args: Any, **_options: Any) -> None:
            return None

        arg = PrimitiveConstructorSpec = _nothing

__all__ = [
    "NormName",
    "Pairs",
    "Pixels",
    "Positional",
    "PrintJson",
    "UseAppendAction",
    "arg",
    "read_by",
]


def read_by(
    parse: Callable[[list[str]], Any],
    kind: Any,
    metavar: str,
    nargs: int | Literal["*"],
) -> PrimitiveConstructorSpec[Any]:
    """Return tyro's reader of a flag: `parse` makes a value of type `kind` from texts."""

    def words(value: Any) -> list[str]:
        each = value if isinstance(value, tuple) else (value,)
        return [f"{v:g}" if isinstance(v, float) else str(v) for v in each]

    def fits(value: Any) -> bool:
        return isinstance(value, kind)

    return PrimitiveConstructorSpec(nargs, metavar, parse, fits, words)


Pixels = Annotated[
    float,
    read_by(lambda words: parse_pixels(words[0]), int | float, "PIXELS", 1),
    parse_pixels,
]
"""A length in [0, 1] pixel units: 3, 0.5 or 8/255."""

NormName = Annotated[
    str,
    read_by(lambda words: parse_norm(words[0]), str, "{l2,linf}", 1),
    parse_norm,
]
"""The norm of a perturbation, in any spelling that `parse_norm` accepts."""

Pairs = UseAppendAction[tuple[str, ...]]
"""Texts KEY=VALUE, from a flag that may be given more than once."""

PrintJson = Annotated[bool, arg(help="Print one JSON object.")]
