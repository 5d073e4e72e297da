"""What the two native backends share: loading their libraries, and plain C operands.

The libraries speak plain C instead of linking torch, so that one build serves every torch
version. Their structures are mirrored by hand; a library of another version would read
memory wrongly, so one whose structures have other sizes is refused and never called.
"""

from __future__ import annotations

import ctypes
import itertools
from ctypes import c_int64
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastadv.kernels.step import Start, Step

CODES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.uint8: 4}
# The version that fa_abi (csrc/cpu/interface.h) and fc_abi (csrc/cuda/kernels.h) begin with.
VERSION = 1
Mirrors = tuple[type[ctypes.Structure], ...]


def structure(*runs: tuple[Any, str]) -> type[ctypes.Structure]:
    """Mirror a C structure: each run has a type and the names of its fields, in order."""
    fields = [(name, kind) for kind, names in runs for name in names.split()]
    return type("Mirror", (ctypes.Structure,), {"_fields_": fields})


def load(path: Path, unbuilt: str, abi: str, mirrors: Mirrors) -> ctypes.CDLL | str:
    """Load a library and compare its structures with ours.

    Args:
        path: The library.
        unbuilt: Why it may not have been built and what to do, after "was not built".
        abi: Name of the function that returns version and sizes.
        mirrors: Our structures, in the order of the sizes.

    Returns:
        The library, or the reason why it cannot be used.
    """
    if not path.exists():
        return f"{path.name} was not built {unbuilt}"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path.name} does not load: {error}; reinstall fastadv"
    expected = [VERSION, *map(ctypes.sizeof, mirrors)]
    found = _numbers(library, abi, len(expected))
    if found == expected:
        return library
    return (
        f"{path.name} was built from other sources than the Python code beside it "
        f"({abi} gives {found or 'nothing'}, expected {expected}); reinstall fastadv"
    )


def _numbers(library: ctypes.CDLL, name: str, most: int) -> list[int]:
    """Return the numbers up to the zero that a function of the library points to."""
    try:
        function = getattr(library, name)
    except AttributeError:  # a library from before it said so
        return []
    function.restype = ctypes.POINTER(c_int64)
    numbers = function()
    return list(itertools.takewhile(bool, (numbers[i] for i in range(most + 1))))


def pointers(**tensors: Tensor | None) -> dict[str, Any]:
    """Return the address of the elements of each tensor, None where there is none."""
    return {name: None if t is None else t.data_ptr() for name, t in tensors.items()}


def float32(t: Tensor) -> Tensor:
    """Return `t` as dense float32, copied only where it is not."""
    if t.dtype is torch.float32 and t.is_contiguous():
        return t  # asking first takes half the time of two calls that do nothing
    return t.to(torch.float32).contiguous()


def step_fields(step: Step) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the fields of a step that both libraries have.

    The second value holds the tensors that were made for the call and must outlive it.
    """
    made = {
        "step": float32(step.step_size),
        "eps": float32(step.eps),
        "mean": float32(step.mean),
        "std": float32(step.std),
    }
    fields = {
        **pointers(**step.images(), **made, nonfinite=step.nonfinite),
        "momentum": step.momentum,
        "x_dtype": CODES[step.x.dtype],
        "x0_dtype": CODES[step.x0.dtype],
        "grad_dtype": CODES[step.grad.dtype],
        "z_dtype": 0 if step.z is None else CODES[step.z.dtype],
        "l2": int(step.norm == "l2"),
    }
    return fields, list(made.values())


def start_fields(start: Start) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Return the fields of a start, its result, and a tensor that must outlive the call."""
    out = torch.empty_like(start.x0, dtype=torch.float32)
    radius = float32(start.eps)
    fields = {
        **pointers(out=out, x0=start.x0, eps=radius),
        "seed": start.seed & (2**64 - 1),
        "offset": start.offset,
        "x0_dtype": CODES[start.x0.dtype],
        "l2": int(start.norm == "l2"),
    }
    return fields, out, radius


def normalize_fields(
    x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> tuple[dict[str, Any], Tensor, list[Tensor]]:
    """Return the fields of `normalize`, its result, and tensors that must outlive it."""
    z = torch.empty_like(x, dtype=dtype)
    made = [float32(mean), float32(std)]
    fields = pointers(z=z, x=x, mean=made[0], std=made[1])
    return fields | {"x_dtype": CODES[x.dtype], "z_dtype": CODES[dtype]}, z, made
