"""One training step: the losses of a method on a batch, then the update."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from fastadv.models import NormalizedModel
from fastadv.phases import phase
from fastadv.training.methods import Method, Net, Part
from fastadv.training.mixing import Mixing


@dataclass(frozen=True)
class StepResult:
    """The measurements of a step; tensors stay on the device, unread.

    Attributes:
        loss: Loss that was minimised (the last one of several replays), float32 scalar.
        correct: Number of images of the batch classified correctly, as the method trained
            on them (attacked, if it attacks), int64 scalar.
    """

    loss: Tensor
    correct: Tensor


@dataclass(frozen=True, kw_only=True)
class Update:
    """What surrounds the loss in a step; by default nothing does.

    Attributes:
        mixing: Mixing of images and labels, before the attack.
        accumulate: Number of parts in which a batch passes the network, with one update
            for all. It needs the memory of a part and gives, but for BatchNorm, the
            result of the batch.
        clip_grad: Maximum gradient norm of all weights together; None does not clip.
        scaler: Scaler of the loss, for float16.
    """

    mixing: Mixing = field(default_factory=Mixing)
    accumulate: int = 1
    clip_grad: float | None = None
    scaler: torch.amp.GradScaler | None = None


_PLAIN = Update()


def train_step(
    model: NormalizedModel,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    method: Method | None = None,
    update: Update = _PLAIN,
    seed: int = 0,
    offset: int = 0,
    ranks: int = 1,
) -> StepResult:
    """Update `model` on one batch.

    Args:
        model: The model, in the mode it trains in.
        images: Images in 0..255, uint8 [N, 3, H, W].
        labels: Their classes, int64 [N].
        optimizer: Optimiser of the parameters that train.
        method: The training method, whose attack view is refreshed here; None trains on
            the cross-entropy of the images as they are, in float32.
        update: What surrounds the loss.
        seed: Seed of this step's random starts.
        offset: Number of the first image in the batch of all ranks.
        ranks: Number of ranks, each of which has as many images.
    """
    method = method or Method(Net(model))
    with phase("attack"):
        method.refresh()
    images, targets = update.mixing(images, labels, model.num_classes, seed)
    n = len(labels)
    size = -(-n // update.accumulate)
    parts = [
        Part(
            images[i : i + size],
            labels[i : i + size],
            targets[i : i + size],
            seed=seed,
            offset=offset + i,
            batch=n * ranks,
        )
        for i in range(0, n, size)
    ]
    passes = [method.losses(part) for part in parts]
    loss, correct = torch.zeros(()), torch.zeros(())
    while True:
        optimizer.zero_grad(set_to_none=True)
        found = []
        for i, (part, losses) in enumerate(zip(parts, passes, strict=True)):
            with phase("train"), _reduced(method.net, last=i == len(parts) - 1):
                made = next(losses, None)
                if made is None:  # the last update is done: finish every part
                    for rest in passes[1:]:
                        next(rest, None)
                    return StepResult(loss, correct)
                part_loss, logits = made
                if len(parts) > 1:
                    part_loss = part_loss * (len(part.labels) / n)
                scaler = update.scaler
                total = part_loss if scaler is None else scaler.scale(part_loss)
                total.backward()  # type: ignore[no-untyped-call]
            right = (logits.detach().argmax(1) == part.labels).sum()
            found.append((part_loss.detach(), right))
        with phase("optimiser"):
            _apply(optimizer, update)
        if len(found) == 1:
            loss, correct = found[0]
        else:
            loss, correct = (torch.stack(v).sum() for v in zip(*found, strict=True))


def _reduced(net: Net, *, last: bool) -> AbstractContextManager[object]:
    """Average gradients over ranks in the last part of an update alone.

    Until then FSDP also keeps the whole weights, which the attack on the next part reads.
    """
    spread = net.model.net
    if isinstance(spread, FSDPModule):
        spread.set_requires_gradient_sync(last)
        spread.set_reshard_after_backward(last)
    no_sync = getattr(net.forward, "no_sync", None)
    return contextlib.nullcontext() if last or no_sync is None else no_sync()


def _apply(optimizer: torch.optim.Optimizer, update: Update) -> None:
    scaler = update.scaler
    if update.clip_grad is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        weights = (p for group in optimizer.param_groups for p in group["params"])
        torch.nn.utils.clip_grad_norm_(weights, update.clip_grad)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
