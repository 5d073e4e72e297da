"""What the operators accept: shapes, dtypes, devices, numbers and memory. No policy."""

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
    """Raise unless `t` is [N, C, H, W] of one of `dtypes`."""
    if t.dim() != 4:
        raise ValueError(f"{name} has shape {list(t.shape)}; expected [N, C, H, W]")
    if t.dtype not in dtypes:
        accepted = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} is {t.dtype}; accepted: {accepted}")


def _check_like(name: str, t: Tensor, like: Tensor) -> None:
    if t.shape != like.shape:
        raise ValueError(
            f"{name} has shape {list(t.shape)}; x has {list(like.shape)}: "
            "they must agree"
        )
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
    if t.device != like.device:
        raise ValueError(
            f"{name} is on {t.device}, x on {like.device}; move one of them"
        )


def memory_order(t: Tensor) -> torch.memory_format | None:
    """`contiguous_format` or `channels_last` if `t` is dense in it, else None."""
    for order in (torch.contiguous_format, torch.channels_last):
        if t.is_contiguous(memory_format=order):
            return order
    return None


def _extent(t: Tensor, dense: bool) -> tuple[int, int]:
    """First byte of `t` and the one after its last."""
    first = t.data_ptr()
    if dense:
        return first, first + t.nbytes
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return first, first + (last + 1) * t.element_size()


def _repeats(t: Tensor) -> bool:
    """Whether two indices of `t` may name one address, as after `expand`."""
    reach = 0
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def check_memory(images: Mapping[str, Tensor]) -> None:
    """Refuse operands that surely share memory with one that is written.

    As PyTorch does for its own operators: dense tensors whose extents cross overlap;
    others may interleave (two slices of one buffer), and then only those that begin at
    the same byte are known to.
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
    """A number, 0-d tensor or [N] tensor as one value per sample of `like`.

    Numbers are checked; tensors are not read, which on a GPU would wait for it.

    Raises:
        ValueError: the number is negative or not finite, or the shape is not [N].
        TypeError: a tensor of integers.
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
    images: Mapping[str, Tensor],
    state: tuple[torch.dtype, ...],
    mean: Tensor,
    std: Tensor,
    z: Tensor | None,
    nonfinite: Tensor | None,
) -> None:
    """Check everything a step takes but its two per-sample numbers."""
    x = images["x"]
    dtypes = {"x": state, "x_prev": state, "x0": CLEAN, "grad": GRAD, "z": GRAD}
    for name, image in {**images, **({} if z is None else {"z": z})}.items():
        check_image(name, image, dtypes[name])
        _check_like(name, image, x)
    for name, vector in (("mean", mean), ("std", std)):
        check_vector(name, vector, x.shape[1], x)
    if nonfinite is not None:
        if nonfinite.dtype != torch.int64 or nonfinite.shape != (1,):
            raise TypeError(
                f"nonfinite is {nonfinite.dtype} {list(nonfinite.shape)}; expected "
                "int64 [1]"
            )
        if nonfinite.device != x.device:
            raise ValueError(
                f"nonfinite is on {nonfinite.device}, x on {x.device}; move one of them"
            )
