"""Checks of the operators' arguments: shapes, dtypes, devices, numbers and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

STATE = (torch.float32, torch.float16, torch.float64)
ITERATE = (torch.float32, torch.float64)
CLEAN = (torch.uint8, torch.float32, torch.float64)
GRAD = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Operands a step writes. They may share memory with nothing else that it touches.
WRITTEN = ("x", "x_prev", "z")


def check_image(name: str, t: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise unless image tensor `t` is [N, C, H, W] and has one of `dtypes`."""
    if t.dim() != 4:
        raise ValueError(f"{name} has shape {list(t.shape)}; expected [N, C, H, W]")
    if t.dtype not in dtypes:
        accepted = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} is {t.dtype}; accepted: {accepted}")


def _check_device(name: str, t: Tensor, like: Tensor) -> None:
    if t.device != like.device:
        raise ValueError(
            f"{name} is on {t.device}, x on {like.device}; move one of them"
        )


def check_vector(name: str, t: Tensor, length: int, like: Tensor) -> None:
    """Raise unless `t` holds `length` floats on the device of `like`."""
    if t.shape != (length,):
        raise ValueError(f"{name} has shape {list(t.shape)}; expected [{length}]")
    if not t.is_floating_point():
        raise TypeError(f"{name} is {t.dtype}; expected a floating-point tensor")
    _check_device(name, t, like)


def memory_order(t: Tensor) -> torch.memory_format | None:
    """Return `contiguous_format` or `channels_last` if `t` is dense in it, else None."""
    for order in (torch.contiguous_format, torch.channels_last):
        if t.is_contiguous(memory_format=order):
            return order
    return None


def _extent(t: Tensor, dense: bool) -> tuple[int, int]:
    """Return the address of the first byte of `t` and of the one after its last."""
    first = t.data_ptr()
    if dense:
        return first, first + t.nbytes
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return first, first + (last + 1) * t.element_size()


def _repeats(t: Tensor) -> bool:
    """Return whether two indices of `t` may name one address, as after `expand`."""
    reach = 0
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def check_memory(images: Mapping[str, Tensor]) -> None:
    """Refuse operands that surely share memory with one that is written.

    The rule is PyTorch's for its own operators: dense tensors overlap if their extents
    cross; others may interleave, as two slices of one buffer do, and then only those that
    begin at the same byte are known to overlap.
    """
    dense = {name: memory_order(t) is not None for name, t in images.items()}
    extents = {name: _extent(t, dense[name]) for name, t in images.items()}
    for a in filter(images.__contains__, WRITTEN):
        if not dense[a] and _repeats(images[a]):
            raise ValueError(
                f"{a} is written in place, but with strides {list(images[a].stride())} "
                f"for shape {list(images[a].shape)} its elements share memory; pass a "
                ".contiguous() copy"
            )
        first, end = extents[a]
        for b, (other, other_end) in extents.items():
            if a == b or first >= other_end or other >= end:
                continue
            if first == other or (dense[a] and dense[b]):
                raise ValueError(
                    f"{a} is written in place and shares memory with {b}; pass a "
                    ".clone() of one of them"
                )


def per_sample(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """Return a number, 0-d tensor or [N] tensor as one value per sample of `like`.

    Numbers are checked. Tensors are not read, because on a GPU that would wait for it.

    Raises:
        ValueError: The number is negative or not finite, or the shape is not [N].
        TypeError: The tensor holds integers.
    """
    n = like.shape[0]
    if not isinstance(value, Tensor):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value} must be a finite number >= 0")
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return torch.full((n,), float(value), device=like.device, dtype=dtype)
    if value.dim() == 0:
        value = value.to(like.device).expand(n).contiguous()
    check_vector(name, value, n, like)
    return value


def check_step(
    images: Mapping[str, Tensor | None],
    state: tuple[torch.dtype, ...],
    mean: Tensor,
    std: Tensor,
    nonfinite: Tensor | None,
) -> None:
    """Check all operands of a step except its step sizes and radii.

    `images` has None where one is absent, and `state` the dtypes of an iterate.
    """
    present = {name: t for name, t in images.items() if t is not None}
    x = present["x"]
    dtypes = {"x": state, "x_prev": state, "x0": CLEAN, "grad": GRAD, "z": GRAD}
    for name, image in present.items():
        check_image(name, image, dtypes[name])
        if image.shape != x.shape:
            raise ValueError(
                f"{name} has shape {list(image.shape)}; x has {list(x.shape)}: "
                "they must agree"
            )
        _check_device(name, image, x)
    for name, vector in (("mean", mean), ("std", std)):
        check_vector(name, vector, x.shape[1], x)
    if nonfinite is not None:
        if nonfinite.dtype != torch.int64 or nonfinite.shape != (1,):
            raise TypeError(
                f"nonfinite is {nonfinite.dtype} {list(nonfinite.shape)}; expected "
                "int64 [1]"
            )
        _check_device("nonfinite", nonfinite, x)
