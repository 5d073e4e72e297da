"""Runs every recipe small, as the `Small:` command in its header says, and notes the CPU time
taken and the accuracies reached.

    python bench/recipes.py FOLDER OUT [NAME ...]
    python bench/tables.py

FOLDER holds cifar10-jpeg-12k.zip; OUT takes the run directories. A complete run found there
is read, not run again. The network is small enough for one CPU core, five epochs of 10,000
images: enough to see a recipe learn, not what it can reach.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import Results

RECIPES = Path(__file__).parents[1] / "recipes"
ARCHIVE = "cifar10-jpeg-12k.zip"
_SMALL = "--arch resnet8_cifar --epochs 5"
# What a recipe needs besides: those for 224 px are scaled to 32, and two begin with a run.
_BESIDES = {
    "eps_warmup": "--eps-warmup 2",
    "discrepancy": "--resolution 32 --init-from runs/madry",
    "finetune": "--init-from runs/standard",
    "progressive": "--resolution 32 --progressive 16 --eps 0.5",
    "imagenet_l2": "--resolution 32 --eps 0.5",
}


def small(name: str) -> str:
    """The command of one recipe; its run goes to `runs/NAME`."""
    besides = f" {_BESIDES[name]}" if name in _BESIDES else ""
    return (
        f"fastadv-train --config recipes/{name}.yaml --data {ARCHIVE} {_SMALL}"
        f"{besides} --out runs/{name}"
    )


def run(name: str, archives: Path, out: Path) -> tuple[list[dict[str, Any]], float]:
    """The log of the run, which is made where it is not there yet, and its CPU seconds."""
    log, spent = out / name / "log.jsonl", out / name / "cpu_seconds"
    if not spent.exists():
        words = small(name).replace("runs/", f"{out}/").split()[1:]
        words[words.index(ARCHIVE)] = str(archives / ARCHIVE)
        words[words.index(f"recipes/{name}.yaml")] = str(RECIPES / f"{name}.yaml")
        command = [sys.executable, "-m", "fastadv.cli.train", *words]
        before = _children()
        subprocess.run(command, check=True)
        spent.write_text(str(_children() - before))
    return [json.loads(line) for line in log.open()], float(spent.read_text())


def _children() -> float:
    """CPU seconds of the processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archives", type=Path, metavar="FOLDER")
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    known = [
        path.stem
        for path in RECIPES.glob("*.yaml")
        if "\ncommand: fastadv-train" in path.read_text()
    ]
    # The two that begin with another's run come last.
    known.sort(key=lambda name: ("--init-from" in small(name), name))
    results = Results("recipes")
    for name in options.names or known:
        events, seconds = run(name, options.archives, options.out)
        start, test = events[0], events[-1]
        if test["event"] != "test":
            raise SystemExit(f"{name}: the run in {options.out / name} did not finish")
        results.add(
            recipe=name,
            command=small(name),
            cpu_minutes=seconds / 60,
            ran_on=start["environment"],
            images_per_s=test["images_per_s"],
            clean_acc=test["clean_acc"],
            images=test["n"],
            robust_acc=test.get("robust_acc"),
            robust_images=test.get("robust_n"),
        )
        results.write()


if __name__ == "__main__":
    main()
