"""Convolutions of a network that trains, by Winograd's algorithm where that is quicker.

The attack view exchanges layers, which a network that trains, is saved and is exported
cannot have done to it. So what changes here is the call, for as long as a pass lasts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastadv.kernels.conv import conv3x3, unsupported_reason

_ONES = (1, (1, 1), [1, 1])


def quick_convs(device: torch.device) -> AbstractContextManager[object]:
    """Run 3x3 convolutions of stride 1 in float32 by `kernels.conv.conv3x3` meanwhile.

    The forward pass and both gradients take about half the time of oneDNN's; on maps of
    2x2 pixels, a third (bench/bench_conv.py). On other devices than the CPU nothing
    changes.
    """
    return _QuickConvs() if device.type == "cpu" else contextlib.nullcontext()


class _QuickConvs(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d and all(t in (Tensor, torch.nn.Parameter) for t in types):
            out = _convolved(*args, **kwargs)
            if out is not None:
                return out
        return func(*args, **kwargs)


def _convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Convolve as `torch.nn.functional.conv2d` does; return None if the call does not fit."""
    fits = (
        input.dim() == 4
        and groups == 1
        and stride in _ONES
        and padding in (*_ONES, "same")
        and dilation in _ONES
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
    if not fits or unsupported_reason(input, weight) is not None:
        return None
    out: Tensor = conv3x3(input, weight, bias)
    return out
