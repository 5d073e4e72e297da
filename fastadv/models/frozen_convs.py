"""Quicker convolutions for the attack view, whose weights are frozen.

In a traced network, `rewrite_convs` replaces convolutions by quicker ones with the same
weights: the strided stem (`frozen_stem.py`), and 3x3 convolutions of stride 1, which run
by Winograd's algorithm together with the addition and the ReLU behind them. Both fall
back to the plain convolution where a call does not fit.
"""

from __future__ import annotations

import operator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastadv.kernels.conv import CHANNELS, conv3x3, unsupported_reason
from fastadv.models.folding import own_tensor
from fastadv.models.frozen_stem import Frozen, FrozenStem
from fastadv.models.intermediate import RETURNED_BY

_ADDITIONS = {operator.add, operator.iadd, torch.add}
_RELUS = {F.relu, torch.relu, "relu", "relu_"}


class FrozenConv3x3(Frozen):
    """A 3x3 convolution without weight gradient, fused with an addition and a ReLU."""

    relu = False
    _dense: Tensor | None = None

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether `conv` is one that `conv3x3` computes."""
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
