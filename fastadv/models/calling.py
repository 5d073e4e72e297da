"""How networks are called whose mode or gradient is not what an attack needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn


def input_gradient(total: Tensor, z: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Return the gradient of a sum by the input `z`, zero where none reaches it."""
    if not total.requires_grad:
        return torch.zeros_like(z)
    (grad,) = torch.autograd.grad(
        total, z, retain_graph=retain_graph, allow_unused=True
    )
    return torch.zeros_like(z) if grad is None else grad


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put all modules in evaluation mode, and each back into the mode that it had."""
    training = [module for module in net.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def lacks_gradient(error: RuntimeError) -> bool:
    """Return whether an error says that something cannot be differentiated."""
    return "grad" in str(error) or "derivative" in str(error)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or else its type."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def caches_of(net: nn.Module) -> list[dict[Any, Any]]:
    """Return the dictionaries of tensors in which modules keep what they computed.

    LeViT's attention, for example, keeps biases that it gathered from its parameters.
    """
    known = ("_parameters", "_buffers", "_modules")
    return [
        value
        for module in net.modules()
        for name, value in vars(module).items()
        if isinstance(value, dict)
        and value
        and name not in known
        and all(isinstance(each, (Tensor, fx.Proxy)) for each in value.values())
    ]
