"""A 3x3 convolution by Winograd's F(4x4, 3x3), with its gradients.

Only the C++ backend has it: on a GPU cuDNN has its own, and elsewhere the caller keeps
`torch.nn.functional.conv2d`, as `unsupported_reason` tells it to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastadv.kernels import _cpp, registry
from fastadv.kernels.registry import Operands, select

_library = torch.library.Library("fastadv", "FRAGMENT")
_library.define(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    "bool relu, bool transposed) -> Tensor"
)
_library.define("conv3x3_weight(Tensor x, Tensor grad) -> Tensor")
# Vectors run over channels, 16 of them with AVX-512.
CHANNELS = 16


def unsupported_reason(x: Tensor, weight: Tensor) -> str | None:
    """Return why `conv3x3` should not convolve these tensors, or None.

    Args:
        x: Images [N, I, H, W].
        weight: Weight of the convolution [O, I, 3, 3].
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return "needs float32 on the CPU"
    if (
        weight.shape[2:] != (3, 3)
        or weight.shape[0] % CHANNELS
        or x.shape[1] % CHANNELS
    ):
        return f"needs 3x3 and multiples of {CHANNELS} channels"
    if not _pays(x, weight):
        return "too small: a direct convolution is faster"
    return _unavailable_reason()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _unavailable_reason() -> str | None:
    """Return why it cannot run here: to torch.compile a constant, found as it compiles."""
    missing = registry.unavailable_reason("conv3x3")
    if missing is None and _cpp.isa() == "baseline":
        return "needs AVX2: with SSE it was no faster than a direct convolution"
    return missing


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Return whether Winograd's is the faster algorithm.

    Costs are counted in multiplications per pair of channels. To transform the weights
    costs as much as 950 of them (512 channels at 7 px: 2.7 ms for one image, 8.0 for 16);
    a direct convolution does its own a tenth faster. With 16 channels (128 images of 32
    px) the direct one took 3.0 ms and Winograd's 3.8; with 32 at 16 px they took 2.6 and
    1.4. Maps of 2x2 need a quarter of the points.
    """
    n, channels, h, w = x.shape
    whole = h <= 2 and w <= 2
    tiles = n if whole else n * ((h + 3) // 4) * ((w + 3) // 4)
    points, transform = (9, 240) if whole else (36, 950)
    enough = min(channels, weight.shape[0]) >= 32
    return enough and 0.9 * 9 * n * h * w > points * tiles + transform


def _out_shape(x: Tensor, weight: Tensor, transposed: bool) -> tuple[int, ...]:
    return (x.shape[0], weight.shape[1 if transposed else 0], *x.shape[2:])


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an unwritten channels_last tensor of `shape`."""
    return like.new_empty(shape).contiguous(memory_format=torch.channels_last)


def _conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    relu: bool,
    transposed: bool,
) -> Tensor:
    shape = _out_shape(x, weight, transposed)
    for name, t, wanted in (("residual", residual, shape), ("mask", mask, x.shape)):
        if t is not None and t.shape != wanted:
            raise ValueError(
                f"{name} has shape {list(t.shape)}; expected {list(wanted)}"
            )
    out = torch.empty(shape, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    tensors = {"x": x, "weight": weight, "bias": bias}
    tensors |= {"residual": residual, "mask": mask}
    present = {name: t for name, t in tensors.items() if t is not None}
    # Whoever calls this has asked `unsupported_reason`; a graph may have been compiled
    # before another backend was forced.
    _, backend = select(Operands("conv3x3", present), instead="cpp")
    backend.conv3x3(out, present, transposed, relu)
    return out


_library.impl("conv3x3", _conv3x3, "CPU")


@torch.library.register_fake("fastadv::conv3x3", lib=_library)
def _conv3x3_fake(
    x: Tensor, weight: Tensor, *args: object, transposed: bool = False
) -> Tensor:
    transposed = bool(args[-1]) if args else transposed
    return _empty(x, _out_shape(x, weight, transposed))


def _conv3x3_weight(x: Tensor, grad: Tensor) -> Tensor:
    shape = (grad.shape[1], x.shape[1], 3, 3)
    weight = torch.empty(shape, memory_format=torch.channels_last)
    if len(x) == 0:
        return weight.zero_()
    operands = Operands("conv3x3_weight", {"x": x, "grad": grad})
    _, backend = select(operands, instead="cpp")
    backend.conv3x3_weight(weight, x, grad)
    return weight


_library.impl("conv3x3_weight", _conv3x3_weight, "CPU")


@torch.library.register_fake("fastadv::conv3x3_weight", lib=_library)
def _conv3x3_weight_fake(x: Tensor, grad: Tensor) -> Tensor:
    return _empty(x, (grad.shape[1], x.shape[1], 3, 3))


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        relu: bool,
    ) -> Tensor:
        out: Tensor = torch.ops.fastadv.conv3x3(
            x, weight, bias, residual, None, relu, False
        )
        of_weight = ctx.needs_input_grad[1]
        ctx.save_for_backward(weight, x if of_weight else None, out if relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weight, x, out = ctx.saved_tensors
        to_x, to_weight, to_bias, to_residual, _ = ctx.needs_input_grad
        # A gradient that is differentiated again must be made of what autograd knows.
        again = torch.is_grad_enabled()
        if out is not None and (again or to_weight or to_bias or to_residual):
            # The masked gradient is wanted itself; otherwise the kernel masks as it reads.
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
            out = None
        into_x = into_weight = None
        if again:
            shapes = (grad.shape[0], weight.shape[1], *grad.shape[2:]), weight.shape
            if to_x:
                into_x = torch.nn.grad.conv2d_input(shapes[0], weight, grad, padding=1)
            if to_weight:
                into_weight = torch.nn.grad.conv2d_weight(x, shapes[1], grad, padding=1)
        else:
            if to_x:
                into_x = torch.ops.fastadv.conv3x3(
                    grad, weight, None, None, out, False, True
                )
            if to_weight:
                into_weight = torch.ops.fastadv.conv3x3_weight(x, grad)
        into_bias = grad.sum((0, 2, 3)) if to_bias else None
        return into_x, into_weight, into_bias, grad if to_residual else None, None


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
) -> Tensor:
    """Return `act(conv2d(x, weight, bias, padding=1) + residual)`, differentiable.

    The product of transformed tiles needs a quarter of the multiplications. Rounding is
    that of float32 sums: two to four times the error of a direct convolution
    (docs/numerics.md).

    Args:
        x: Images, float32 [N, I, H, W] on the CPU; channels_last is not copied.
        weight: Weight, float32 [O, I, 3, 3]; channels_last is not copied.
        bias: Bias, float32 [O], or None.
        residual: What is added to the convolution, float32 [N, O, H, W], or None.
        relu: Whether to clip the result at zero from below.

    Returns:
        float32 [N, O, H, W], channels_last.

    Raises:
        ValueError: Shapes disagree.
        BackendError: No backend can run it; `unsupported_reason` gives the reason before.

    Source: Winograd 1980; Lavin and Gray 2016, "Fast algorithms for convolutional networks".
    """
    out: Tensor = _Conv3x3.apply(x, weight, bias, residual, relu)
    return out
