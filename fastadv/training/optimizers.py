"""Optimisers by name: torch's, NVIDIA apex's where it is installed, LARS and LAMB."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastadv.errors import ConfigError

_APEX = {
    "apex_fused_sgd": "FusedSGD",
    "apex_fused_lamb": "FusedLAMB",
    "apex_fused_adam": "FusedAdam",
}
_BETA2 = 0.999


def make_optimizer(
    name: str,
    model: nn.Module | Sequence[Mapping[str, Any]],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> Optimizer:
    """Return the optimiser called `name` for the parameters of `model`.

    Args:
        name: One of sgd, adam, adamw, lars, lamb or apex_fused_{sgd,adam,lamb}.
        model: The network, on the device it trains on, or groups of its parameters as
            torch's optimisers take them: `{"params": [...], "lr": 0.1}`.
        lr: Learning rate of groups that have none.
        momentum: Momentum of sgd and lars; beta1 of the others, whose beta2 is 0.999.
        weight_decay: Weight decay of all parameters. lars and lamb leave out vectors
            (biases and normalisation), which they do not rescale either.

    Raises:
        ConfigError: NVIDIA apex cannot be imported, or another project of that name is
            installed.
    """
    if isinstance(model, nn.Module):
        model = [{"params": list(model.parameters())}]
    groups = [dict(group) for group in model]
    parameters = [p for group in groups for p in group["params"]]
    cuda = bool(parameters) and parameters[0].is_cuda
    own: dict[str, Any] = {"lr": lr, "betas": (momentum, _BETA2)}
    if name in ("sgd", "lars", "apex_fused_sgd"):
        own = {"lr": lr, "momentum": momentum}
    whole = own | {"weight_decay": weight_decay}
    if name == "sgd":
        # Not fused on the CPU: its sums are rounded differently (1e-7 after five steps),
        # and runs begun before would not go on in the same bits.
        return torch.optim.SGD(groups, fused=True if cuda else None, **whole)
    if name in ("adam", "adamw"):
        adaptive = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        return adaptive(groups, fused=True, **whole)
    if name in _APEX:
        kind = apex_optimizer(_APEX[name])
        if not cuda:
            raise ConfigError(
                f"`optimizer={name}` needs a CUDA device; use `device=cuda`"
            )
        return kind(groups, **whole)
    if name not in ("lars", "lamb"):
        raise ValueError(f"unknown optimizer {name!r}")
    parts = []
    for group in groups:
        weights = [p for p in group["params"] if p.dim() > 1]
        vectors = [p for p in group["params"] if p.dim() <= 1]
        parts.append(group | {"params": weights, "weight_decay": weight_decay})
        parts.append(group | {"params": vectors, "weight_decay": 0.0})
    return LARS(parts, **own) if name == "lars" else LAMB(parts, **own)


def apex_optimizer(name: str) -> Callable[..., Optimizer]:
    """Return a class of `apex.optimizers`.

    Raises:
        ConfigError: It cannot be imported.
    """
    build = "build it from https://github.com/NVIDIA/apex (with --cuda_ext), or use sgd"
    try:
        apex = importlib.import_module("apex")
    except ImportError as error:
        raise ConfigError(
            f"NVIDIA apex cannot be imported ({error}); {build}"
        ) from None
    try:
        found = getattr(importlib.import_module("apex.optimizers"), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the installed package apex ({getattr(apex, '__file__', None)}) has no "
            f"{name} ({error}). `pip install apex` installs another project of that name: "
            f"pip uninstall apex, then {build}"
        ) from None
    kind: Callable[..., Optimizer] = found
    return kind


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))


class LARS(Optimizer):
    """SGD with momentum whose step is scaled layer by layer, for large batches.

    For a weight w with gradient g:

        v <- momentum v + lr trust |w| / (|g| + decay |w|) (g + decay w);  w <- w - v

    Vectors (biases, normalisation) take the step of plain SGD, without decay.

    Args:
        params: Parameters, or groups of them, each with values of its own.
        lr: Global learning rate.
        momentum: Momentum.
        weight_decay: Weight decay.
        trust: The coefficient eta of the paper.

    Source:
        You, Gitman and Ginsburg 2017 (1708.03888), algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"trust": trust})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; the device is not waited for."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params]
            decay, lr = group["weight_decay"], group["lr"]
            sums = torch._foreach_add(grads, params, alpha=decay) if decay else grads
            weights, slopes = _norms(params), _norms(grads)
            local = group["trust"] * weights / (slopes + decay * weights)
            # A layer that is still zero, or has no gradient, has no ratio.
            usable = (weights > 0) & (slopes > 0)
            local = torch.where(usable, local, torch.ones_like(local))
            rates = [
                scale if p.dim() > 1 else torch.ones_like(scale)
                for p, scale in zip(params, local.unbind(), strict=True)
            ]
            steps = torch._foreach_mul(sums, rates)
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            held = [self.state[p]["momentum"] for p in params]
            torch._foreach_mul_(held, group["momentum"])
            torch._foreach_add_(held, steps, alpha=lr)
            torch._foreach_sub_(params, held)


class LAMB(Optimizer):
    """AdamW whose step is scaled layer by layer, for large batches.

    With m and v as in Adam, bias corrected, and u = m / (sqrt(v) + eps) + decay w:
    w <- w - lr |w| / |u| u. Vectors (biases, normalisation) take the step of Adam.

    Args:
        params: Parameters, or groups of them, each with values of its own.
        lr: Global learning rate.
        betas: Decays of the averages of the gradient and of its square.
        eps: Constant added to the root of the second average.
        weight_decay: Weight decay.

    Source:
        You et al. 2020 (1904.00962), algorithm 2, phi the identity.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, _BETA2),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; the device is not waited for."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["steps"] = 0
                    state["first"] = torch.zeros_like(param)
                    state["second"] = torch.zeros_like(param)
                state["steps"] += 1
                first = state["first"].lerp_(param.grad, 1 - beta1)
                second = state["second"].mul_(beta2)
                second.addcmul_(param.grad, param.grad, value=1 - beta2)
                root = (
                    (second / (1 - beta2 ** state["steps"])).sqrt_().add_(group["eps"])
                )
                step = (first / (1 - beta1 ** state["steps"])).div_(root)
                step.add_(param, alpha=group["weight_decay"])
                if param.dim() > 1:
                    weight, size = param.norm(), step.norm()
                    usable = (weight > 0) & (size > 0)
                    step.mul_(torch.where(usable, weight / size, torch.ones_like(size)))
                param.sub_(step, alpha=group["lr"])
