"""The study of small radii on a GPU: days on a CPU, minutes there; a call goes on where the
last one stopped.

    python bench/gpu_study.py DATA --targets TARGET... [--seconds 500] [--out OUT]
    python bench/gpu_study.py DATA --targets TARGET... --from study.tar   # on a fresh machine

ResNet-18 is trained at 64 px on DATA (a packed Tiny-ImageNet archive) without an attack and
within five L2 radii, two seeds each; every network is judged by AutoAttack and transferred
to each target, as a fixed feature and tuned whole. One network with all of that is a unit.
Its rows are in OUT/results, its findings a line of OUT/study.jsonl, written at once, and
OUT/study.tar holds everything but weights: it is all that the next call needs where the
machine is another. On the same machine a training that was cut resumes, too.

A unit is begun only if the longest one so far would fit into what is left of the seconds.
Without the package pyautoattack, APGD-CE and then APGD-T judge, which is said in the line.
`--device cpu --small` rehearses it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import tarfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastadv.environment import provenance
from fastadv.errors import FastadvError, Preempted
from fastadv.evaluation import EvaluationConfig, evaluate_checkpoint
from fastadv.training import TrainConfig, Trainer
from fastadv.transfer import TransferConfig, transfer

RADII = (0.0, 0.5, 0.1, 1.0, 0.25, 2.0)  # the most telling first
SEEDS = (0, 1)
JUDGED_AT = 0.5  # radius at which the standard network is judged, too


@dataclass(frozen=True)
class Sizes:
    """How much is computed for each unit."""

    epochs: int
    batch_size: int
    resolution: int
    judged_images: int
    tuning_epochs: int
    arch: str = "resnet18"
    num_train: int | None = None


WHOLE = Sizes(60, 256, 64, 1000, 30)
SMALL = Sizes(1, 64, 32, 40, 1, "resnet18_cifar", 240)


class Study:
    """One call: its time, its folder, and what is done in it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.began = time.monotonic()
        self.options = options
        self.out: Path = options.out.absolute()
        self.out.mkdir(parents=True, exist_ok=True)
        if options.earlier is not None:
            with tarfile.open(options.earlier) as earlier:
                earlier.extractall(self.out, filter="data")
        self.lines = self.out / "study.jsonl"
        found = self.lines.read_text().splitlines() if self.lines.exists() else []
        self.rows = [json.loads(line) for line in found]
        self.sizes = SMALL if options.small else WHOLE

    def left(self) -> float:
        """Return the seconds that are left of this call."""
        return float(self.options.seconds) - (time.monotonic() - self.began)

    def say(self, **row: Any) -> None:
        """Add a finding, and pack what the next call needs."""
        self.rows.append(row)
        text = json.dumps(row)
        print(text, flush=True)
        with open(self.lines, "a") as file:
            file.write(text + "\n")
        self.pack()

    def pack(self) -> None:
        """Write study.tar anew: lines, rows and logs, no weights."""
        packed = self.out / "study.tar"
        new = packed.with_suffix(".new")
        with tarfile.open(new, "w") as archive:
            archive.add(self.lines, self.lines.name)
            table = self.out / "results"
            files = [each for each in sorted(table.rglob("*")) if each.is_file()]
            files += sorted(self.out.glob("runs/*/log.jsonl"))
            for file in files:
                archive.add(file, str(file.relative_to(self.out)))
        new.replace(packed)


def train(study: Study, eps: float, seed: int) -> tuple[Path, dict[str, Any]]:
    """Train a network, or go on with it; return its run and what it reached."""
    sizes, options = study.sizes, study.options
    run = study.out / "runs" / f"l2-{eps:g}-s{seed}"
    config = TrainConfig(
        data=str(options.data),
        arch=sizes.arch,
        resolution=sizes.resolution,
        method="standard" if eps == 0 else "pgd_at",
        norm="l2",
        eps=eps,
        num_steps=3,
        epochs=sizes.epochs,
        batch_size=sizes.batch_size,
        num_train=sizes.num_train,
        eval_every=max(1, sizes.epochs // 6),
        eval_images=sizes.judged_images,
        seed=seed,
        device=options.device,
        out=str(run),
        resume=True,
    )
    training = Trainer(config)
    summary = training.fit()
    compiled = training.learner.method.attack
    ran = None if compiled is None else compiled.compile_report().mode
    return run, {"attack_ran": ran, **asdict(summary)}


def judge(study: Study, run: Path, eps: float) -> dict[str, Any]:
    """Judge a run by AutoAttack within its own radius."""
    # Square and FAB are those of that package.
    whole = importlib.util.find_spec("pyautoattack") is not None
    verdicts: dict[str, Any] = {}
    for attack in ("autoattack",) if whole else ("apgd-ce", "apgd-t"):
        found = evaluate_checkpoint(
            EvaluationConfig(
                checkpoint=str(run),
                data=str(study.options.data),
                attack=attack,
                norm="l2",
                eps=eps or JUDGED_AT,
                num_images=study.sizes.judged_images,
                num_steps=2 if study.options.small else None,
                device=study.options.device,
                results=str(study.out / "results"),
            )
        )
        verdicts[attack] = found.result
    return verdicts


def transfers(study: Study, run: Path, seed: int) -> dict[str, Any]:
    """Transfer a run to every target, as a fixed feature and tuned whole."""
    values = {}
    for target in study.options.targets:
        for mode in ("fixed_feature", "full_network"):
            tuned = (
                {} if mode == "fixed_feature" else {"epochs": study.sizes.tuning_epochs}
            )
            rows = transfer(
                TransferConfig(
                    source=str(run),
                    dataset=str(target),
                    mode=mode,
                    resolution=study.sizes.resolution,
                    num_train=study.sizes.num_train,
                    seeds=(seed,),
                    device=study.options.device,
                    results=str(study.out / "results"),
                    **tuned,
                )
            )
            values[f"{Path(target).stem} {mode}"] = [row.value for row in rows]
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--targets", type=Path, nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=Path("gpu-study"))
    parser.add_argument("--from", dest="earlier", type=Path)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--units", type=int, default=len(RADII) * len(SEEDS))
    parser.add_argument("--small", action="store_true")
    study = Study(parser.parse_args())
    # A training that is cut saves its state; whatever else is cut is computed again.
    timer = threading.Timer(study.left(), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    units = [(eps, seed) for seed in SEEDS for eps in RADII][: study.options.units]
    done = {(row["eps"], row["seed"]) for row in study.rows if row.get("done")}
    took = [row["seconds"] for row in study.rows if row.get("done")]
    for eps, seed in units:
        if (eps, seed) in done:
            continue
        if took and study.left() < max(took):
            print(f"{study.left():.0f} s are left, a unit takes {max(took):.0f}")
            break
        began, row = time.monotonic(), {"eps": eps, "seed": seed}
        try:
            run, reached = train(study, eps, seed)
            trained = time.monotonic() - began
            verdicts = judge(study, run, eps)
            values = transfers(study, run, seed)
        except Preempted as stopped:
            study.say(**row, done=False, why=str(stopped))
            break
        except (FastadvError, torch.cuda.OutOfMemoryError) as error:
            study.say(**row, done=False, why=f"{type(error).__name__}: {error}"[:500])
            continue
        seconds = time.monotonic() - began
        took.append(seconds)
        study.say(
            **row,
            done=True,
            seconds=round(seconds, 1),
            training_seconds=round(trained, 1),
            training=json.loads(json.dumps(reached, default=str)),
            verdicts=json.loads(json.dumps(verdicts, default=str)),
            transfers=values,
            provenance=provenance(),
        )
    timer.cancel()
    done = {(row["eps"], row["seed"]) for row in study.rows if row.get("done")}
    left = [unit for unit in units if unit not in done]
    print(f"{len(units) - len(left)} of {len(units)} units are done; {study.lines}")
    with contextlib.suppress(OSError):
        study.pack()


if __name__ == "__main__":
    main()
