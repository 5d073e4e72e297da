"""Measurements of real training steps for the plan: time, units of cost, memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastadv.attacks import PGD
from fastadv.data.sets.subsets import Subset
from fastadv.device import wait_for
from fastadv.evaluation.judging import evaluate
from fastadv.phases import marked
from fastadv.training.images import EVAL_BATCH
from fastadv.training.learner import judging_attack
from fastadv.training.loop import AnyBatch
from fastadv.training.trainer import Trainer

STEPS, WARMUP = 20, 3
_MOST_SECONDS = 120.0  # for timed steps; slow runs time fewer than `STEPS`


def time_steps(
    update: Callable[[AnyBatch], object],
    batches: Iterator[AnyBatch],
    device: torch.device,
    *,
    most: int = STEPS,
    warmup: int = WARMUP,
) -> dict[str, Any]:
    """Time at most `most` training steps after `warmup` others, in the model's mode.

    Returns:
        The attributes of `RunPlan` that describe the steps.
    """
    for _ in range(warmup):
        update(next(batches))
    wait_for(device)
    began, steps, images, waited = time.monotonic(), 0, 0, 0.0
    while steps < most and time.monotonic() - began < _MOST_SECONDS:
        requested = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - requested
        update(batch)
        steps, images = steps + 1, images + len(batch.images)
    wait_for(device)
    seconds = time.monotonic() - began
    return {
        "measured_steps": steps,
        "step_seconds": seconds / steps,
        "images_per_s": images / seconds,
        "data_wait": waited / seconds,
    }


def time_evaluation(trainer: Trainer) -> Callable[[int], float]:
    """Time evaluations of one batch and of two images; from both follow all times.

    Returns:
        The seconds of an evaluation as a function of its number of images.
    """
    config, images = trainer.config, trainer.test_set
    few, many = min(2, len(images)), min(EVAL_BATCH, len(images))
    judge = judging_attack(config, config.eval_steps) if config.adversarial else None

    def seconds(count: int, attack: PGD | None) -> float:
        began = time.monotonic()
        batch = next(iter(trainer.images.eval_loader(Subset(images, np.arange(count)))))
        evaluate(trainer.model, [batch], attack)
        wait_for(trainer.device)
        return time.monotonic() - began

    def each(attack: PGD | None) -> tuple[float, float]:
        small = seconds(few, attack)
        grows = max(0.0, seconds(many, attack) - small) / max(many - few, 1)
        return max(0.0, small - few * grows), grows

    begin, clean = each(None)
    attacked = each(judge)[1] if judge is not None else 0.0

    def projected(n: int) -> float:
        judged = min(n, config.eval_images)
        if judge is None or judged == n:  # one pass
            return begin + n * (attacked or clean)
        return 2 * begin + n * clean + judged * attacked

    return projected


# ---- units of cost ----


class Units:
    """Counts the work of the network, in forward passes of one image.

    A pass of the attack view with gradients counts two (forward, input gradient), one of
    the training model three (and the weight gradient), each without gradients one.
    """

    def __init__(self) -> None:
        self.total = 0

    @contextmanager
    def counting(self, trainer: Trainer, images: Tensor) -> Iterator[None]:
        """Count inside the block, but for the work that a CUDA graph replays.

        Args:
            trainer: Whose network is counted.
            images: Images with which the attack view is compared with its network before
                the block, as every run does once.
        """
        view = trainer.learner.view
        if view is not None:
            view.compare(images)
        handles = [trainer.model.net.register_forward_hook(partial(self._count, 3))]
        if view is not None:
            handles.append(view.net.register_forward_hook(partial(self._count, 2)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, units: int, module: nn.Module, inputs: Any, output: Any) -> None:
        self.total += len(inputs[0]) * (units if torch.is_grad_enabled() else 1)


# ---- memory ----


class _Kept:
    """A tensor that autograd keeps for the backward pass; it counts while it lives."""

    def __init__(self, tensor: Tensor, ledger: SavedMemory) -> None:
        # Detached: a node that kept its own output would never be freed.
        self.tensor, self.ledger = tensor.detach(), ledger
        self.place: str | None = None  # where it is counted, if it is
        ledger.take(self)

    def __del__(self) -> None:
        self.ledger.give_back(self)


class SavedMemory:
    """Measures the most bytes that autograd kept at once, for attacks and for training.

    Args:
        ignored: Tensors that exist anyway: weights and statistics.

    Attributes:
        peak: Most bytes at once, by "attack" and "train".
        largest: Bytes of the largest single tensor that was kept.
    """

    def __init__(self, ignored: Iterator[Tensor]) -> None:
        self._ignored = {_storage(tensor)[0] for tensor in ignored}
        self._holders: Counter[tuple[str, int]] = Counter()
        self._now = {"attack": 0, "train": 0}
        self._in_attack = 0
        self.peak = {"attack": 0, "train": 0}
        self.largest = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the tensors that autograd keeps inside the block."""

        @contextmanager
        def mark(name: str) -> Iterator[None]:
            self._in_attack += name == "attack"
            try:
                yield
            finally:
                self._in_attack -= name == "attack"

        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Kept(tensor, self), lambda kept: kept.tensor
        )
        with marked(mark), hooks:
            yield

    def take(self, kept: _Kept) -> None:
        """Count a kept tensor; tensors that share memory count once."""
        where, size = _storage(kept.tensor)
        if where in self._ignored:
            return
        place = kept.place = "attack" if self._in_attack else "train"
        self._holders[place, where] += 1
        if self._holders[place, where] == 1:
            self._now[place] += size
            self.largest = max(self.largest, size)
            self.peak[place] = max(self.peak[place], self._now[place])

    def give_back(self, kept: _Kept) -> None:
        """Stop counting a kept tensor, which autograd has dropped."""
        where, size = _storage(kept.tensor)
        if kept.place is not None:
            self._holders[kept.place, where] -= 1
            if not self._holders[kept.place, where]:
                self._now[kept.place] -= size


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def own_bytes(tensors: Iterator[Tensor], but: Iterable[Tensor] = ()) -> int:
    """Return the bytes of `tensors`: shared memory once, that of `but` not at all."""
    others = {_storage(tensor)[0] for tensor in but}
    found = dict(_storage(tensor) for tensor in tensors)
    return sum(size for where, size in found.items() if where not in others)


def tensors_of(module: nn.Module | None) -> Iterator[Tensor]:
    """Yield parameters, buffers, and tensors that modules keep beside them."""
    if module is None:
        return
    for part in module.modules():
        values = [*part._parameters.values(), *part._buffers.values()]
        values += vars(part).values()
        yield from (value for value in values if isinstance(value, Tensor))
