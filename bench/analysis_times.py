"""Wall time and peak memory of every analysis, each one command in a process of its own.

    python bench/analysis_times.py --runs RUNS --data DATA        what is not measured yet
    python bench/analysis_times.py --runs RUNS --data DATA --only influence shift
    python bench/analysis_times.py --print                        the table again

RUNS is a folder with the networks `tiny-standard` and `tiny-l2-1` of docs/studies, DATA one
with the archives `tiny-imagenet-40.zip` and `cue-conflict-q90.zip`. Each finished command is
a line of bench/results/analysis_times.jsonl, and is not run again unless it is named with
`--only`. `--note TEXT` is stored beside the numbers, for example what else ran meanwhile.
The peak is the largest resident set of the process, PyTorch included; `start` is that of a
process that only opens a network. `influence-largest` has the published size: 3,200 training
and 10,000 test images of ten classes in 2,048 dimensions, which are drawn, not embedded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fastadv.environment import provenance
from fastadv.text_tables import text_table

RESULTS = Path(__file__).parent / "results" / "analysis_times.jsonl"
BOTH = "--source {runs}/tiny-standard {runs}/tiny-l2-1"
TINY = "--data {data}/tiny-imagenet-40.zip"
OWN = f"{BOTH} {TINY}"
PAIR = f"--source {{runs}}/tiny-l2-1 --other {{runs}}/tiny-standard {TINY}"
# Whether the inverse is damped.
LARGEST = {"influence-largest": False, "influence-largest-damped": True}
# Corruption error and calibration read what shift has left in the table.
COMMANDS = {
    "start": "models show {runs}/tiny-standard",
    "influence": f"analyze influence {OWN} --num-train 1600 --num-test 2000 "
    "--feature-cache off",
    "similarity": f"analyze similarity {PAIR} --num-images 1000",
    "shape": f"analyze shape {BOTH} --data {{data}}/cue-conflict-q90.zip",
    "gradients": f"analyze gradients {OWN} --num-images 200",
    "inversion": f"analyze inversion {OWN} --num-images 6",
    "visualization": f"analyze visualization {OWN} --start gaussian",
    "manipulation": f"analyze manipulation --how low_pass {OWN} --num-images 1000",
    "vulnerability": f"analyze vulnerability {OWN} --num-images 100 --universal-images 300",
    "shift": f"analyze shift {OWN} --num-images 200",
    "corruption-error": "analyze corruption-error --reference tiny-standard",
    "calibration": "analyze calibration",
    **dict.fromkeys(LARGEST, ""),
}  # fmt: skip


def largest(damped: bool) -> None:
    """Compute the influences of the published size, on embeddings that are drawn.

    They are like those behind a ReLU, at least 0 and in ten clusters, and the head tells
    these apart, since the work depends on the spectrum of the Hessian.
    """
    from fastadv.analysis.analyze_influence import heat_map, most_influential
    from fastadv.analysis.influence import LastLayer, influence

    draw = np.random.default_rng(0)
    centres = draw.standard_normal((10, 2048))
    labels = np.arange(13_200) % 10
    h = np.maximum(centres[labels] + 3 * draw.standard_normal((13_200, 2048)), 0)
    train, test = slice(0, 3200), slice(3200, None)
    means = np.stack([h[train][labels[train] == k].mean(0) for k in range(10)])
    weight = (means - means.mean(0)) / 150  # 85 % for the class of a training image
    layers = [LastLayer.from_embeddings(h[s], labels[s], weight) for s in (train, test)]
    found = influence(*layers, damping=1.0 if damped else None)
    most_influential(found, 100)
    heat_map(found, labels[test], labels[train])
    if found.shape != (10_000, 3200) or not np.isfinite(found).all():
        raise SystemExit("the influences are not what they should be")


def measure(words: list[str]) -> dict[str, float]:
    """Run a command in a process of its own; return seconds and its peak memory in MiB."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(words, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            said.seek(0)
            raise SystemExit(f"{' '.join(words)} failed:\n{said.read().decode()}")
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
    }


def known() -> dict[str, dict[str, object]]:
    """Return the newest line of each command."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {each["kind"]: each for each in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", choices=COMMANDS, default=())
    parser.add_argument("--note", default="")
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--largest", choices=LARGEST, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.largest:
        return largest(LARGEST[given.largest])
    if not given.print:
        if given.runs is None or given.data is None:
            parser.error("--runs and --data are needed to measure")
        table = tempfile.mkdtemp(prefix="analysis-times-")
        try:
            run(given, table)
        finally:
            shutil.rmtree(table)
    columns = ["kind", "command", "s", "CPU s", "peak MiB"]
    found = [known()[kind] for kind in COMMANDS if kind in known()]
    names = ("kind", "command", "seconds", "cpu_seconds", "peak_mib")
    print(text_table(columns, [[each[name] for name in names] for each in found]))


def run(given: argparse.Namespace, table: str) -> None:
    """Measure the commands that the flags choose, and append a line for each."""
    RESULTS.parent.mkdir(exist_ok=True)
    wanted = given.only or [kind for kind in COMMANDS if kind not in known()]
    if {"corruption-error", "calibration"} & set(wanted) and "shift" not in wanted:
        wanted = ["shift", *wanted]
    places = {"runs": given.runs, "data": given.data}
    for kind in wanted:
        command = COMMANDS[kind]
        if kind in LARGEST:
            words = [sys.executable, __file__, "--largest", kind]
        else:
            program, *rest = command.format(**places).split()
            words = [sys.executable, "-m", f"fastadv.cli.{program}", *rest]
            words += ["--results", table] if program == "analyze" else []
        found = measure(words)
        shown = command.format(runs="runs", data="data")
        row = {"kind": kind, "command": shown, "note": given.note, **found}
        with RESULTS.open("a") as file:
            file.write(json.dumps(row | provenance()) + "\n")
        print(f"{kind}: {found}", flush=True)


if __name__ == "__main__":
    main()
