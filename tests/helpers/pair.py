"""What two gloo ranks do; run by test_training_distributed.py, once for many checks.

Each rank leaves what it saw in FOLDER/rank-N.json; the last thing it does is to fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from small_runs import tiny
from torch import nn

from fastadv.data import subset
from fastadv.errors import Preempted, TrainingDiverged
from fastadv.models import state_hash
from fastadv.runs.distributed import World, join_ranks
from fastadv.training import TrainConfig, Trainer, trainer
from fastadv.training.method_config import METHODS as ENTRIES
from fastadv.training.validation import Validation

# Two updates: enough to meet every part, too few for rounding to grow.
SHORT: dict[str, Any] = {
    "num_train": 42,
    "val_size": 10,
    "epochs": 1,
    "lr": 0.02,
    "schedule": "constant",
    "random_start": True,
}
METHODS = ("trades", "mart", "free", "rs_fgsm", "n_fgsm", "gradalign", "discrepancy")
LONG: dict[str, Any] = {"num_train": 61, "random_start": True}  # 51 images: uneven
UNEVEN = 13


def of_method(out: Path, method: str) -> TrainConfig:
    """`SHORT` by a method, with its own attack."""
    # One step, where it can be from far off: near the image the gradient of a divergence
    # is rounding, and its direction another on each number of ranks.
    start = not ENTRIES[method].own_start
    own = {"method": method, "num_steps": 1, "random_start": start}
    return tiny(out, **SHORT | own)


class Planted(Exception):
    pass


@contextlib.contextmanager
def frozen_norms() -> Iterator[None]:
    """BatchNorm by its running statistics, as in networks that have none: else the ranks
    of plain DDP normalise by other batches than one process does.
    """

    def train(norm: nn.BatchNorm2d, mode: bool = True) -> nn.BatchNorm2d:
        norm.training = False
        return norm

    nn.BatchNorm2d.train = train  # type: ignore[method-assign]
    try:
        yield
    finally:
        del nn.BatchNorm2d.train  # it is that of the base class again


def _at_step(wanted: int, act: Any) -> Any:
    """Replace `trainer.train_step` by one that acts before step `wanted` (from 1)."""
    real, calls = trainer.train_step, []

    def stepping(*args: Any, **options: Any) -> Any:
        calls.append(1)
        found = None
        if len(calls) == wanted:
            found = act()
        result = real(*args, **options)
        return result if found is None else found(result)

    trainer.train_step = stepping
    return real


def _count_collectives(folder: Path, world: World, num_steps: int) -> list[list[int]]:
    """Of each step: (all on the group of the gradients, gradient buckets, control)."""
    config = tiny(folder, **SHORT | {"epochs": 2, "num_steps": num_steps})
    training = Trainer(config, world=world)
    buckets = 0

    def count(state, bucket):  # type: ignore[no-untyped-def]  # torch looks at them
        nonlocal buckets
        buckets += 1
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        assert work is not None
        done = work.get_future()
        return done.then(lambda future: future.value()[0] / world.size)

    training.parallel.network.register_comm_hook(None, count)  # type: ignore[attr-defined]
    seen: list[list[int]] = []
    real = trainer.train_step

    def stepping(*args: Any, **options: Any) -> Any:
        before, first = dist.group.WORLD._get_sequence_number_for_group(), buckets
        result = real(*args, **options)
        after = dist.group.WORLD._get_sequence_number_for_group()
        control = world.control._get_sequence_number_for_group()
        seen.append([after - before, buckets - first, before, control])
        return result

    trainer.train_step = stepping
    training.fit()
    trainer.train_step = real
    return seen


def checks(folder: Path, world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, changes in (
        ("plain", {}),
        ("synced", {"sync_bn": True}),
        ("sharded", {"sync_bn": True, "parallel": "fsdp"}),
    ):
        training = Trainer(tiny(folder / name, **SHORT, **changes), world=world)
        training.fit()
        found[name] = state_hash(training.parallel.plain())
    with frozen_norms():
        Trainer(tiny(folder / "frozen", **SHORT), world=world).fit()
        parts = {"parallel": "fsdp", "accumulate": 2}
        Trainer(tiny(folder / "parts", **SHORT, **parts), world=world).fit()
        for method in METHODS:
            Trainer(of_method(folder / method, method), world=world).fit()

    # Counts of a set that cannot be shared equally, and those of one process.
    images = subset(training.test_set, UNEVEN, 0)
    model = training.parallel.plain()
    for name, ranks in (("together", world), ("alone", World())):
        measure = Validation(
            training.images.eval_loader,
            trainer.judging_attack(training.config, 2),
            UNEVEN,
            0,
            ranks,
        )
        result = measure(model, images, trainer.StopRequest())
        assert result.robust is not None
        found[name] = [
            each.tolist()
            for each in (
                result.clean.correct,
                result.clean.total,
                result.robust.correct,
                result.robust.total,
            )
        ]

    found["collectives"] = {
        steps: _count_collectives(folder / f"steps-{steps}", world, steps)
        for steps in (1, 4)
    }

    # An uneven last batch; stopped by a signal to one rank, resumed, as if never stopped.
    Trainer(tiny(folder / "whole", **LONG), world=world).fit()
    real = _at_step(
        3, lambda: os.kill(os.getpid(), signal.SIGTERM) if world.rank == 1 else None
    )
    try:
        Trainer(tiny(folder / "stopped", **LONG), world=world).fit()
    except Preempted as stopped:
        found["preempted"] = str(stopped)
    trainer.train_step = real
    Trainer(tiny(folder / "stopped", **LONG, resume=True), world=world).fit()
    # For a resume by another number of ranks.
    real = _at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        Trainer(tiny(folder / "fewer", **LONG), world=world).fit()
    except Preempted:
        trainer.train_step = real

    def nan(result: Any) -> Any:
        return type(result)(torch.full_like(result.loss, torch.nan), result.correct)

    real = _at_step(2, lambda: nan if world.rank == 1 else None)
    try:
        Trainer(tiny(folder / "nan", **LONG), world=world).fit()
    except TrainingDiverged as error:
        found["nan"] = str(error)
    trainer.train_step = real
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with join_ranks("cpu") as world:
        found = checks(folder, world)
        (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))

        def fail() -> None:
            if world.rank == 1:
                raise Planted("a wire was cut")

        _at_step(2, fail)
        Trainer(tiny(folder / "failed", **LONG), world=world).fit()


if __name__ == "__main__":
    main()
