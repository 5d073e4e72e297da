"""Repeat one kind of work many times, and measure memory, open files and threads.

    python tests/stress/soak.py training 5000
    python tests/stress/soak.py evaluation 5000
    python tests/stress/soak.py transfer 500

The slope of the memory is that of a straight line through the second half. Every part
raises AssertionError where it is 1 MB per 1,000 repetitions or more, or where files or
threads become more.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import resource
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from statistics import linear_regression

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

SAMPLES = 40  # measurements over a run


def training(folder: Path) -> Generator[None]:
    """Train step by step, with an attack; epochs and validations come in between."""
    from small_runs import tiny

    from fastadv.training.trainer import Trainer

    trainer = Trainer(tiny(folder / "run", epochs=10**6))
    trainer.model.train()
    while True:
        for batch in trainer.loader:
            trainer.update(batch)
            yield


def evaluation(folder: Path) -> Generator[None]:
    """Evaluate a network that is given as it is, so that each call makes its own views."""
    from attack_nets import batch, small_model

    from fastadv.attacks import PGD, ThreatModel
    from fastadv.evaluation import evaluate

    model, images = small_model(), batch(4)
    attack = PGD.judge(ThreatModel("l2", 0.5), 2)
    while True:
        evaluate(model, [images], attack, checks=True)
        attack(model, *images)
        yield


def transfer(folder: Path) -> Generator[None]:
    """Do what a worker of a sweep does for one row after another."""
    from small_runs import tiny

    from fastadv.runs.tasks import Place
    from fastadv.training import train
    from fastadv.transfer import TransferConfig
    from fastadv.transfer.sweep import run_transfer

    train(tiny(folder / "run", epochs=1))
    for seed in itertools.count():
        run_transfer(
            TransferConfig(
                source=str(folder / "run"),
                dataset="digits",
                mode="fixed_feature",
                num_train=60,
                seeds=(seed,),
                device="cpu",
                feature_cache="off",
                results=str(folder / "results"),
            ),
            Place(),
        )
        yield


PARTS: dict[str, Callable[[Path], Generator[None]]] = {
    "training": training,
    "evaluation": evaluation,
    "transfer": transfer,
}


def measured() -> tuple[float, int, int]:
    """Return the memory of this process in MB, its open files and its threads."""
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * resource.getpagesize() / 2**20
        files = len(os.listdir("/proc/self/fd"))
    except OSError:  # no Linux: the largest memory so far, which grows as well
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        files = 0
    return memory, files, threading.active_count()


def soak(name: str, count: int, bound: float = 1.0) -> str:
    """Repeat a part, and return what was measured.

    Args:
        name: A key of `PARTS`.
        count: Number of repetitions.
        bound: MB per 1,000 repetitions from which on memory leaks.

    Raises:
        AssertionError: Memory, open files or threads grow.
    """
    seen: list[tuple[int, tuple[float, int, int]]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        work = PARTS[name](Path(folder))
        every = max(count // SAMPLES, 1)
        for number in range(1, count + 1):
            next(work)
            if number % every == 0:
                seen.append((number, measured()))
        work.close()
    half = seen[len(seen) // 2 :]
    steps, memory = [n for n, _ in half], [m for _, (m, _, _) in half]
    slope = 1000 * linear_regression(steps, memory).slope
    (_, files, threads), (_, more_files, more_threads) = half[0][1], half[-1][1]
    text = (
        f"{name}: {count} repetitions, {memory[0]:.1f} to {memory[-1]:.1f} MB in the second "
        f"half, {slope:+.2f} MB per 1,000; files {files} to {more_files}, threads {threads} "
        f"to {more_threads}"
    )
    assert slope < bound, text
    assert more_files <= files, text
    assert more_threads <= threads, text
    return text


if __name__ == "__main__":
    print(soak(sys.argv[1], int(sys.argv[2])))
