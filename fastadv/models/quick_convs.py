"""Quicker convolutions, for the attack view and for a network that trains.

The weights of an attack view are frozen. In its traced network, `rewrite_convs` replaces
convolutions by quicker ones with the same weights: the strided stem, and 3x3 convolutions
of stride 1, which run by Winograd's algorithm together with the addition and the ReLU
behind them. Both fall back to the plain convolution where a call does not fit.

A stride-2 convolution of a three-channel image has a slow input gradient: oneDNN reaches
41 GFLOP/s on ResNet's 7x7 stem where the other layers reach 220 (batch 16, 224 px, 2 cores,
torch 2.15). In 2x2 cells the same gradient is a stride-1 convolution with 12 output
channels: 32 ms instead of 92, which made the whole attack step of a ResNet-18 12 % shorter.
The forward pass stays as it is (37 ms space-to-depth, 32 ms plain), so nothing else has to
know of the other layout.

A network that trains, is saved and is exported cannot have its layers exchanged. There
`quick_convs` changes the call, for as long as a pass lasts.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from fastadv.kernels.conv import CHANNELS, conv3x3, unsupported_reason
from fastadv.models.folding import own_tensor
from fastadv.models.intermediate import RETURNED_BY

_ADDITIONS = {operator.add, operator.iadd, torch.add}
_ONES = (1, (1, 1), [1, 1])
_RELUS = {F.relu, torch.relu, "relu", "relu_"}


def pack_weight(weight: Tensor, padding: int) -> Tensor:
    """Return the weight of the convolution from output gradients to input cells.

    With I = i + padding the padded input row and u the kernel row, an output row r
    touches I = 2r + u. Writing I = 2a + d (cell a, row d within it) and u = 2s + d gives
    gradient[a, d] = sum over s of g[a - s] * w[2s + d]: a correlation with the flipped
    kernel. An odd padding is made even by one row of zeros before the kernel, so that
    cells of the padded and of the real image coincide.

    Args:
        weight: [O, C, k, k] of a stride-2 convolution.
        padding: Padding of that convolution, in pixels.

    Returns:
        [4 * C, O, m, m] channels_last; output channels are (row, column, C) of a cell.
    """
    out, channels, k, _ = weight.shape
    shift = padding % 2
    m = (k + shift + 1) // 2
    padded = weight.new_zeros(out, channels, 2 * m, 2 * m)
    padded[:, :, shift : shift + k, shift : shift + k] = weight
    taps = padded.view(out, channels, m, 2, m, 2).flip(2, 4)
    cells = taps.permute(3, 5, 1, 0, 2, 4).reshape(4 * channels, out, m, m)
    return cells.contiguous(memory_format=torch.channels_last)


def input_gradient(
    g: Tensor, packed: Tensor, padding: int, shape: torch.Size
) -> Tensor:
    """Compute the input gradient from the weight that `pack_weight` returned.

    Returns:
        [N, C, H, W] (H and W even), channels_last.
    """
    n, channels, h, w = shape
    m = packed.shape[2]
    # The cell of the padded image where the real one begins.
    first = (padding + padding % 2) // 2
    # Enough padding for the first and the last cell; the rest is cut off.
    q = max(m - 1 - first, first + max(h // 2 - g.shape[2], w // 2 - g.shape[3]), 0)
    begin = first - (m - 1 - q)
    cells = F.conv2d(g, packed, None, 1, q)
    cells = cells[:, :, begin : begin + h // 2, begin : begin + w // 2]
    rows = cells.permute(0, 2, 3, 1).reshape(n, h // 2, w // 2, 2, 2 * channels)
    image = rows.permute(0, 1, 3, 2, 4).reshape(n, h, w, channels)
    return image.permute(0, 3, 1, 2)


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        packed: Tensor,
        padding: int,
    ) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.padding, ctx.shape = padding, x.shape
        return F.conv2d(x, weight, bias, 2, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        gradient = input_gradient(grads[0], packed, ctx.padding, ctx.shape)
        return gradient, None, None, None, None


class Frozen(nn.Conv2d):
    """A convolution of the attack view: its weights are set from outside, then packed."""

    @classmethod
    def like(cls, conv: nn.Conv2d) -> Self:
        """Make a layer of the shape of `conv`, without weights."""
        return cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            device="meta",
        )

    def pack(self) -> None:
        """Lay out the weights, once they are set, as the computation reads them."""
        raise NotImplementedError


class FrozenStem(Frozen):
    """A convolution whose weights need no gradient and whose input gradient is quick."""

    packed: Tensor | None = None

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Return whether `conv` is a stem of the kind this is for."""
        return (
            type(conv) is nn.Conv2d  # a parametrised one computes its weight
            and conv.in_channels <= 4
            and conv.stride == (2, 2)
            and conv.groups == 1
            and conv.dilation == (1, 1)
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
            and conv.padding[0] == conv.padding[1]
            and conv.kernel_size[0] == conv.kernel_size[1]
        )

    def pack(self) -> None:
        """Pack the weights for the input gradient."""
        self.packed = None
        if self.weight.device.type == "cpu":
            self.packed = pack_weight(self.weight, int(self.padding[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images [N, C, H, W]."""
        even = x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        if self.packed is None or not even or not x.requires_grad:
            return super().forward(x)
        out: Tensor = _Stem.apply(
            x, self.weight, self.bias, self.packed, int(self.padding[0])
        )
        return out


class FrozenConv3x3(Frozen):
    """A 3x3 convolution without weight gradient, fused with an addition and a ReLU."""

    relu = False
    _dense: Tensor | None = None

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Return whether `conv` is one that `conv3x3` computes."""
        return (
            type(conv) is nn.Conv2d  # a parametrised one computes its weight
            and conv.kernel_size == (3, 3)
            and conv.stride == (1, 1)
            and conv.padding in ((1, 1), "same")
            and conv.dilation == (1, 1)
            and conv.groups == 1
            and conv.padding_mode == "zeros"
            and conv.in_channels % CHANNELS == conv.out_channels % CHANNELS == 0
        )

    def pack(self) -> None:
        """Lay out the weights as the kernel reads them."""
        weight = self.weight.detach()
        if not weight.is_contiguous(memory_format=torch.channels_last):
            mine = own_tensor(self._dense, weight, weight.dtype, live=None)
            self._dense = mine.copy_(weight)
            self.weight = nn.Parameter(self._dense, False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve [N, C, H, W], add `residual`, apply ReLU if there was one."""
        fitting = residual is None or residual.shape[2:] == x.shape[2:]
        if fitting and unsupported_reason(x, self.weight) is None:
            fused: Tensor = conv3x3(x, self.weight, self.bias, residual, relu=self.relu)
            return fused
        out = super().forward(x)
        if residual is not None:
            out = out + residual
        return F.relu(out) if self.relu else out


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def _added(node: fx.Node, conv: fx.Node) -> fx.Node | None:
    """Return what `node` adds to the convolution, or None if it is no addition."""
    if node.op != "call_function" or node.target not in _ADDITIONS:
        return None
    if len(node.args) != 2 or node.kwargs:
        return None
    others = [a for a in node.args if a is not conv]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _fuse(graph: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Replace one 3x3 convolution together with the addition and ReLU that follow."""
    conv = cast(nn.Conv2d, modules[str(node.target)])
    frozen = FrozenConv3x3.like(conv)
    graph.add_submodule(str(node.target), frozen)
    chain, arguments = [node], node.args
    follower = _only_user(node)
    if follower and (residual := _added(follower, node)):
        chain, arguments = [*chain, follower], (*node.args, residual)
        follower = _only_user(follower)
    if follower and _is_relu(follower, modules):
        chain, frozen.relu = [*chain, follower], True
    # Called where the last of them was: only there the residual is known.
    with graph.graph.inserting_after(chain[-1]):
        fused = graph.graph.call_module(str(node.target), arguments)
    chain[-1].replace_all_uses_with(fused)
    fused.meta[RETURNED_BY] = chain[-1].meta.get(RETURNED_BY, [])
    for dead in reversed(chain):
        graph.graph.erase_node(dead)


def rewrite_convs(graph: fx.GraphModule) -> None:
    """Replace every convolution that has a quicker form; `refresh` sets the weights."""
    modules = dict(graph.named_modules())
    calls = [n for n in graph.graph.nodes if n.op == "call_module"]
    (image,) = (n for n in graph.graph.nodes if n.op == "placeholder")
    for node in calls:
        conv = modules[str(node.target)]
        if [n.target for n in calls].count(node.target) > 1:
            continue
        if node.args == (image,) and FrozenStem.fits(conv):
            graph.add_submodule(str(node.target), FrozenStem.like(conv))
        elif FrozenConv3x3.fits(conv) and len(node.args) == 1 and not node.kwargs:
            _fuse(graph, node, modules)


class ExactInput(TorchFunctionMode):
    """Lets the convolution that reads `z` compute in float32 under autocast meanwhile.

    Its result is cast to `dtype`, so what follows computes as ever.
    """

    def __init__(self, z: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self._z, self._dtype = z, dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.conv2d and args and args[0] is self._z:
            with torch.autocast(self._z.device.type, enabled=False):
                return func(self._z.float(), *args[1:], **(kwargs or {})).to(
                    self._dtype
                )
        return func(*args, **(kwargs or {}))


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
