"""Types of flags that more than one command takes, with how they are read from text."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from fastadv.threat import parse_norm, parse_pixels

Pixels = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PIXELS",
        instance_from_str=lambda words: parse_pixels(words[0]),
        is_instance=lambda value: isinstance(value, (int, float)),
        str_from_instance=lambda value: [f"{value:g}"],
    ),
]
"""A length in [0, 1] pixel units: 3, 0.5 or 8/255."""

NormName = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="{l2,linf}",
        instance_from_str=lambda words: parse_norm(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
"""The norm of a perturbation, in any spelling that `parse_norm` accepts."""

Pairs = UseAppendAction[tuple[str, ...]]
"""Texts KEY=VALUE, from a flag that may be given more than once."""

PrintJson = Annotated[bool, arg(help="Print one JSON object.")]
