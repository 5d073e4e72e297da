"""What a verdict costs: passes and time of PGD that stops early, beside the whole run.

    python bench/bench_verdicts.py DATA_FOLDER [--images 200] [--batch 50] [--cases ...]

DATA_FOLDER holds mnist-test.npz, cifar10-jpeg-12k.zip and weights/. Both sides attack the
same images with the same starts, batch after batch in turn; "whole" attacks every image
with every step, as PGD(early_stop=False) does. Passes count images that go through the
network, with or without a gradient. On two cores about 3 minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench_autoattack import NETWORKS
from harness import Results

from fastadv import PGD, ThreatModel
from fastadv.attacks import AttackResult


@dataclass(frozen=True)
class Case:
    """A network with its images, a radius and the steps of PGD."""

    data: str
    eps: float
    steps: int
    restarts: int
    step_size: float | None = None  # None: 2.5 eps / steps


# The network of MNIST was trained within 0.1 and is about half robust at 0.18; that of
# CIFAR-10 was not trained to resist.
CASES = {
    "half robust, PGD-20x5": Case("mnist", 0.18, 20, 5),
    "robust, PGD-20x5": Case("mnist", 0.1, 20, 5),
    "not robust, PGD-20x5": Case("cifar", 2 / 255, 20, 5),
    "half robust, PGD-1000": Case("mnist", 0.18, 1000, 1),
    "half robust, PGD-1000, steps of eps/4": Case("mnist", 0.18, 1000, 1, 0.045),
    "robust, PGD-1000, steps of eps/4": Case("mnist", 0.1, 1000, 1, 0.025),
    "not robust, PGD-1000": Case("cifar", 2 / 255, 1000, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    results = Results("verdicts")
    for name in options.cases:
        case = CASES[name]
        model, x, y = NETWORKS[case.data](options.data, options.images)
        threat = ThreatModel("linf", case.eps)
        more = {} if case.step_size is None else {"step_size": case.step_size}
        found: dict[bool, list[AttackResult]] = {False: [], True: []}
        seconds = {False: 0.0, True: 0.0}
        right = []
        for start in range(0, len(y), options.batch):
            rows = slice(start, start + options.batch)
            with torch.no_grad():
                right.append(model(x[rows].float() / 255).argmax(1) == y[rows])
            for early in found:
                attack = PGD.judge(
                    threat,
                    case.steps,
                    num_restarts=case.restarts,
                    early_stop=early,
                    **more,
                )
                view = attack.prepare(model)
                active = right[-1] if early else None
                began = time.perf_counter()
                found[early].append(
                    attack(view, x[rows], y[rows], offset=start, active=active)
                )
                seconds[early] += time.perf_counter() - began
        clean = torch.cat(right)
        held = {
            early: clean & ~torch.cat([each.success for each in parts])
            for early, parts in found.items()
        }
        passes = {e: sum(each.passes for each in parts) for e, parts in found.items()}
        results.add(
            case=name,
            images=len(y),
            clean_acc=clean.double().mean().item(),
            robust_acc=held[True].double().mean().item(),
            same_verdict=(held[True] == held[False]).double().mean().item(),
            passes=passes[True],
            passes_whole=passes[False],
            share_of_passes=passes[True] / passes[False],
            seconds=seconds[True],
            seconds_whole=seconds[False],
            share_of_time=seconds[True] / seconds[False],
        )
        row = results.rows[-1]
        print(
            f"{name:40} clean {row['clean_acc']:.3f} robust {row['robust_acc']:.3f} "
            f"same {row['same_verdict']:.4f} passes {row['share_of_passes']:.3f} "
            f"time {row['share_of_time']:.3f}",
            flush=True,
        )
    results.write()


if __name__ == "__main__":
    main()
