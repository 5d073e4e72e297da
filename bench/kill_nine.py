"""Training runs killed with SIGKILL at random moments, resumed, and compared bit for bit.

    python bench/kill_nine.py            50 runs, a table; exit code 1 if any differs
    python bench/kill_nine.py --runs 4   what the tests run

Each run trains a small network on digits, is killed at a moment drawn over the whole
length of a run (starting, stepping, saving, validating), resumed, and some are killed
again on the way. What must come out equal to a run that nobody killed: the weights of
`last` and of `best`, the optimiser, the position and order of the loader, the random
state, and the validation results. Every other run decodes in a worker process.

The runs are forks of this process, which has imported everything and computed nothing:
then a run is mostly training, so that a kill mostly hits training.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from small_runs import TINY

from fastadv.cli import train as command
from fastadv.training import TrainConfig, Trainer

RECIPE: dict[str, Any] = TINY | {
    "save_minutes": 0,  # a checkpoint after every step
    "workers": 1,
}
LOADERS = ("memory", "torchvision")
# What a checkpoint says about the process, not about the run.
_OF_THE_PROCESS = {"out", "resume"}
_KILLS = 3  # at most, in one run


def _words(out: Path, loader: str) -> list[str]:
    values = RECIPE | {"loader": loader, "out": out}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in values.items()]
    return [*words, "--random-start", "--resume=auto"]


def _start(out: Path, loader: str) -> int:
    """Fork a process that trains; its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        with open(out.with_suffix(".stderr"), "a") as log:
            os.dup2(log.fileno(), 2)
            os.dup2(log.fileno(), 1)
            torch.set_num_threads(1)
            code = command.main(_words(out, loader))
            sys.stderr.flush()
    finally:
        os._exit(code)


def _killed(pid: int, after: float) -> bool:
    """Kill the process `after` seconds from now, unless it ended before."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"a resumed run failed with status {status}")
            return False
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def _finish(out: Path, loader: str) -> float:
    began = time.monotonic()
    _, status = os.waitpid(_start(out, loader), 0)
    if status:
        text = out.with_suffix(".stderr").read_text()
        raise RuntimeError(f"{out} failed with status {status}:\n{text}")
    return time.monotonic() - began


def _step(out: Path) -> int:
    try:
        return int(os.readlink(out / "checkpoints" / "last").split("-")[1])
    except FileNotFoundError:
        return 0


def _outcome(out: Path) -> dict[str, Any]:
    """Everything that must not depend on having been killed."""
    found: dict[str, Any] = {}
    for which in ("last", "best"):
        state = torch.load(out / "checkpoints" / which / "state.pt", weights_only=True)
        config = state.pop("config")
        state["config"] = {k: v for k, v in config.items() if k not in _OF_THE_PROCESS}
        found[which] = state
    lines = (out / "log.jsonl").read_text().splitlines()
    scores = {}
    for event in map(json.loads, lines):
        if event["event"] in ("val", "test"):
            kept = {k: v for k, v in event.items() if k.endswith(("acc", "n", "step"))}
            # Done again after a kill, it must say the same again.
            before = scores.setdefault((event["event"], event["step"]), kept)
            found.setdefault("steady", True)
            found["steady"] &= before == kept
    return found | {"scores": scores}


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """Where two outcomes first differ in a bit; None if nowhere."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        if same:
            flat = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
            same = torch.equal(*flat)
        return None if same else where
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where} (keys)"
        pairs = [(k, a[k], b[k]) for k in a]
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{where} (length)"
        pairs = list(zip(range(len(a)), a, b, strict=True))
    else:
        return None if a == b else where
    found = (difference(x, y, f"{where}/{k}") for k, x, y in pairs)
    return next((each for each in found if each), None)


def main() -> int:
    """Run the experiment; 0 if every run ended in the same bits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    print("| run | loader | killed at step (seconds) | resumed to | equal to the bit |")
    print("|---|---|---|---|---|")
    failed = kills = 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(TrainConfig(**RECIPE, out=f"{folder}/imports"), dry_run=True)
        whole, length = {}, {}
        for loader in LOADERS[: options.runs]:
            out = Path(folder) / f"whole-{loader}"
            length[loader] = _finish(out, loader)
            whole[loader] = _outcome(out)
        for run in range(options.runs):
            loader = LOADERS[run % 2]
            out = Path(folder) / f"run-{run}"
            moments = []
            for _ in range(draw.randint(1, _KILLS)):
                after = draw.uniform(0, length[loader])
                if not _killed(_start(out, loader), after):
                    break
                moments.append(f"{_step(out)} ({after:.2f})")
            kills += len(moments)
            _finish(out, loader)
            differs = difference(whole[loader], _outcome(out))
            failed += differs is not None
            print(
                f"| {run + 1} | {loader} | {', '.join(moments) or 'ended before'} "
                f"| {_step(out)} | {'yes' if differs is None else differs} |",
                flush=True,
            )
    print(
        f"\n{options.runs} runs, {kills} kills, {options.runs - failed} bit-identical"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
