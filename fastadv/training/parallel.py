"""One model on several ranks: DDP or FSDP2, BatchNorm over the whole batch, whole states.

The attack does not use this module. It works on the `AttackView` of the bare model, so an
attack step sends nothing; a training step sends the gradients of its one backward pass,
and the running statistics of BatchNorm, which the next attack uses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fastadv.models import NormalizedModel, create_model
from fastadv.runs.distributed import World

Parallelism = Literal["ddp", "fsdp"]
# torch 2.15 renamed the option.
_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


class Parallel:
    """Keeps the copies of a model on all ranks the same.

    Args:
        model: The model, the same on every rank and on its device. SyncBN and FSDP2 change
            it in place, so its attack view has to be made before.
        world: The ranks.
        kind: With "ddp" every rank keeps all weights. With "fsdp" gradients and the state
            of the optimiser are spread over the ranks, and weights outside of a step.
        sync_bn: Whether BatchNorm normalises by the batch of all ranks.
    """

    def __init__(
        self,
        model: NormalizedModel,
        world: World,
        *,
        kind: Parallelism = "ddp",
        sync_bn: bool = False,
    ) -> None:
        self.model, self.world = model, world
        self.network: Callable[[Tensor], Tensor] = model.forward_normalized
        self.altered = False
        self.averaged: list[_BatchNorm] = []
        if world.size == 1:
            return
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        self.altered = (sync_bn and bool(norms)) or kind == "fsdp"
        # With SyncBN the statistics are equal on all ranks already.
        self.averaged = [] if sync_bn else [m for m in norms if m.track_running_stats]
        if sync_bn:
            _synchronize_norms(model)
        if kind == "fsdp":
            # FSDP2 supports no other format.
            model.net.to(memory_format=torch.contiguous_format)
            # One group for all: the attack needs the weights before the first layer runs.
            fully_shard(model.net, reshard_after_forward=False)
        else:
            device = next(model.parameters()).device
            self.network = wrapped(_Network(model), device)

    def gather_weights(self) -> None:
        """Gather the whole weights on every rank before a step, for the attack view."""
        if isinstance(self.model.net, FSDPModule):
            self.model.net.unshard()

    def average_statistics(self) -> None:
        """Average the running statistics of BatchNorm over all ranks, after a step.

        All ranks then attack the same network, and a checkpoint holds the state of all.
        """
        average_statistics(self.averaged, self.world)

    # ---- whole states, the same whatever the parallelism ----

    def state(self) -> dict[str, Any]:
        """Return the model's state dict in whole tensors. Every rank must call it."""
        return _whole(self.model.state_dict())

    def plain(self) -> NormalizedModel:
        """Return the model as one process has it. Every rank must call it."""
        return self.replica(self.state()) if self.altered else self.model

    def replica(self, state: dict[str, Any]) -> NormalizedModel:
        """Return a new model like this one with the weights of `state`."""
        model = self.model
        copy = create_model(
            model.arch,
            model.num_classes,
            mean=model.mean.tolist(),
            std=model.std.tolist(),
            image_size=model.image_size,
            seed=0,
        )
        copy.set_token(model.token)
        copy.load_state_dict(state)
        copy.train(model.training)
        return copy.to(model.mean.device).to(memory_format=torch.channels_last)

    def load_state(self, state: dict[str, Any]) -> None:
        """Load the whole tensors of `state` into the model."""
        mine = self.model.state_dict()
        self.model.load_state_dict({k: _like(mine[k], v) for k, v in state.items()})

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state dict of `optimizer` in whole tensors. Every rank must call it."""
        return _whole(optimizer.state_dict())

    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Load the whole tensors of `state` into `optimizer`."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        shared = {
            number: {key: _like(params[number], value) for key, value in values.items()}
            for number, values in state["state"].items()
        }
        optimizer.load_state_dict(state | {"state": shared})


def wrapped(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Return a network whose gradients are averaged over the ranks; see `average_statistics`.

    Args:
        network: The network, the same on every rank.
        device: Its device.
    """
    options: dict[str, Any] = {_BUFFERS: False}
    if device.type == "cuda":
        options["device_ids"] = [device.index]
    return DistributedDataParallel(network, gradient_as_bucket_view=True, **options)


@torch.no_grad()
def average_statistics(norms: Sequence[_BatchNorm], world: World) -> None:
    """Average the running statistics of BatchNorm layers over all ranks, in place."""
    if world.size == 1 or not norms:
        return
    held = [
        cast(Tensor, statistic)
        for norm in norms
        for statistic in (norm.running_mean, norm.running_var)
    ]
    flat = torch.cat(held)  # each is a vector
    dist.all_reduce(flat)
    flat /= world.size
    means = torch.split(flat, [len(statistic) for statistic in held])
    torch._foreach_copy_(held, list(means))


class _Network(nn.Module):
    """The module that DDP wraps: the model from the normalised image on."""

    def __init__(self, model: NormalizedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return self.model.forward_normalized(z)


def _whole(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with whole tensors in place of those spread over ranks."""
    return {
        key: _whole(value)
        if isinstance(value, dict)
        else value.full_tensor()
        if isinstance(value, DTensor)
        else value
        for key, value in state.items()
    }


def _like(mine: Any, whole: Any) -> Any:
    """Spread `whole` over the ranks like `mine`, if both are tensors of one shape."""
    if not isinstance(mine, DTensor) or getattr(whole, "shape", None) != mine.shape:
        return whole
    whole = whole.to(mine.device)
    return distribute_tensor(whole, mine.device_mesh, mine.placements)


# ---- BatchNorm over all ranks ----


def _synchronize_norms(model: NormalizedModel) -> None:
    if next(model.parameters()).device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm


class _Sum(torch.autograd.Function):
    """The sum over ranks; its gradient is a sum, too, as each rank's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Sum.apply(grad)


class SyncedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks on the CPU.

    torch's SyncBatchNorm needs a GPU. Ranks must have equally many images, as they do in
    training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [N, C, H, W]."""
        if not self.training:
            return super().forward(x)
        ranks = dist.get_world_size()
        count = x.numel() // x.shape[1] * ranks
        axes = (0, 2, 3)
        mean: Tensor = _Sum.apply(x.sum(axes)) / count
        centred = x - mean.view(-1, 1, 1)
        var: Tensor = _Sum.apply(centred.square().sum(axes)) / count
        self._follow(mean.detach(), var.detach() * (count / max(count - 1, 1)))
        scale = (var + self.eps).rsqrt()
        if not self.affine:
            return centred * scale.view(-1, 1, 1)
        scale = scale * self.weight
        return centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        batches = cast(Tensor, self.num_batches_tracked)
        batches += 1
        share = 1 / float(batches) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)
