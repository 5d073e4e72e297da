"""Damage, malice and kills in large numbers; each part counts what went wrong.

    python tests/stress/damage.py flips 5000        one flipped bit each
    python tests/stress/damage.py truncations 500   files that end early
    python tests/stress/damage.py pickles 100       pickles that would run code
    python tests/stress/damage.py archives 20       archives that would write elsewhere
    python tests/stress/damage.py saves 200         kill -9 while checkpoints are saved
    python tests/stress/damage.py trainings 50      kill -9 anywhere in a training run

It ends with 0 if nothing went wrong. `test_stress_short.py` runs each part for seconds.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

import numpy as np
import torch
from small_runs import tiny, weights

from fastadv.data import open_dataset
from fastadv.data.files.archives import unpack
from fastadv.errors import FastadvError
from fastadv.models import create_model, load_model
from fastadv.models.checkpoint import save_model
from fastadv.runs.directory import RunDirectory
from fastadv.training import train

CHOICES = {"depth": 3}


def _saved(folder: Path) -> RunDirectory:
    """Return a run of two checkpoints with small weights."""
    model = create_model("resnet8_cifar", 10, seed=0)
    run = RunDirectory(folder)
    run.prepare(CHOICES, resume=False)
    for step in (1, 2):
        state = {"config": CHOICES, "step": step, "weights": model.net.state_dict()}
        write: Callable[[Path], None] = lambda place: save_model(  # noqa: E731
            model, place / "model.safetensors", {"step": 3}
        )
        run.save(write, state, step=step, best=True)
    run.release()
    return run


def _damaged(
    count: int, damage: Callable[[bytearray, random.Random], None]
) -> str | None:
    """Damage files of the last checkpoint one by one; return what was used in silence."""
    draw, silent = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        run = _saved(Path(folder) / "run")
        last = run.checkpoints / "last"
        reference = weights(run.path)
        for number in range(count):
            name = ("model.safetensors", "state.pt", "SHA256SUMS")[number % 20 // 17]
            if number % 20 == 19:
                name = "SHA256SUMS"
            before = (last / name).read_bytes()
            content = bytearray(before)
            damage(content, draw)
            (last / name).write_bytes(content)
            try:
                if name == "model.safetensors":
                    if weights(run.path) != reference:
                        silent.append(name)
                    elif len(content) >= len(before):
                        silent.append(f"{name} (unnoticed)")
                else:
                    state, _, damaged = RunDirectory(run.path)._newest_state()
                    if state["step"] == 2 and not damaged and name == "state.pt":
                        silent.append(name)
            except FastadvError:
                pass
            (last / name).write_bytes(before)
    return f"{len(silent)} of {count} used in silence: {silent[:5]}" if silent else None


def flips(count: int) -> str | None:
    """Flip one bit of a checkpoint in each trial."""

    def flip(content: bytearray, draw: random.Random) -> None:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)

    return _damaged(count, flip)


def truncations(count: int) -> str | None:
    """Cut a file of a checkpoint short in each trial."""

    def cut(content: bytearray, draw: random.Random) -> None:
        del content[draw.randrange(len(content) - 1) :]

    return _damaged(count, cut)


class _Runs:
    """A pickle of it would make a file, if it were loaded as pickles usually are."""

    def __init__(self, canary: Path, how: int) -> None:
        self.canary, self.how = canary, how

    def __reduce__(self) -> tuple[Any, ...]:
        text = str(self.canary)
        return (
            (os.system, (f"touch {text}",)),
            (eval, (f"open({text!r}, 'w')",)),
            (exec, (f"open({text!r}, 'w').close()",)),
            (os.mkdir, (text,)),
            (shutil.copyfile, ("/etc/hostname", text)),
        )[self.how % 5]


def pickles(count: int) -> str | None:
    """Bring pickles that run code to every reader of files that people bring."""
    wrong = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        canary = folder / "canary"
        run = _saved(folder / "run")
        for number in range(count):
            gadget = _Runs(canary, number)
            content = io.BytesIO()
            if number % 3 == 0:
                torch.save({"state_dict": gadget}, content)
            elif number % 3 == 1:
                torch.save([gadget], content, _use_new_zipfile_serialization=False)
            else:
                content.write(pickle.dumps(gadget, protocol=number % 6))
            with contextlib.suppress(FastadvError):
                _through_every_reader(content.getvalue(), gadget, folder, run)
            if canary.exists():
                wrong.append(number)
                break
    return f"pickle {wrong} ran" if wrong else None


def _through_every_reader(
    content: bytes, gadget: _Runs, folder: Path, run: RunDirectory
) -> None:
    for ending in (".ckpt", ".pth", ".pt", ".safetensors", ".bin", ".pkl", ".pth.tar"):
        path = folder / f"brought{ending}"
        path.write_bytes(content)
        with contextlib.suppress(FastadvError):
            load_model(path, "resnet18")
    last = run.checkpoints / "last"
    (last / "state.pt").write_bytes(content)
    (last / "SHA256SUMS").unlink(missing_ok=True)
    with contextlib.suppress(FastadvError):
        run._newest_state()
    np.savez(folder / "set.npz", x=np.array([gadget], dtype=object), y=np.zeros(1))
    batch = folder / "cifar"
    batch.mkdir(exist_ok=True)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (batch / name).write_bytes(content)
    for data in (folder / "set.npz", batch):
        with contextlib.suppress(FastadvError):
            open_dataset(str(data))


def archives(count: int) -> str | None:
    """Unpack archives whose members would land outside, and open them as data."""
    wrong = []
    names = (
        "../out",
        "/tmp/../out",
        "a/../../out",
        "..\\out",
        "C:out",
        "a/./../../out",
    )
    for number in range(count):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            name, path = names[number % len(names)], folder / "in.zip"
            if number % 2:
                with zipfile.ZipFile(path, "w") as made:
                    made.writestr("train/a/0.png", b"x")
                    made.writestr(name, b"x")
            else:
                path = folder / "in.tar"
                with tarfile.open(path, "w") as tar:
                    info = tarfile.TarInfo(name if number % 4 else "link")
                    if not number % 4:
                        info.type, info.linkname = tarfile.SYMTYPE, "../out"
                    tar.addfile(info)
            for act in (
                lambda p=path, f=folder: unpack(
                    p, f / "new", max_bytes=1 << 20, max_files=99
                ),
                lambda p=path: open_dataset(str(p)),
            ):
                try:
                    act()
                    wrong.append(f"{name} was accepted")
                except FastadvError:
                    pass
            if {each.name for each in folder.iterdir()} != {path.name}:
                wrong.append(f"{name} left something behind")
    return "; ".join(wrong) or None


def _forked(act: Callable[[], object], seconds: float) -> bool:
    """Do something in a child that is killed after a time; return whether it had ended."""
    child = os.fork()
    if child == 0:
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            act()
        finally:
            os._exit(0)
    time.sleep(seconds)
    ended = os.waitpid(child, os.WNOHANG)[0] != 0
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return ended


def _torn(state: dict[str, Any]) -> bool:
    """Return whether a state is not that of its step; the first ones hold no moments."""
    return "moments" in state and bool((state["moments"] != state["step"]).any())


def saves(count: int) -> str | None:
    """Kill a process while it saves; the newest checkpoint must be whole each time."""
    draw, wrong = random.Random(0), []
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "run"
        _saved(path)
        newest = 2
        for number in range(count):

            def act(first: int = newest + 1) -> None:
                run = RunDirectory(path)
                for step in range(first, first + 1000):
                    content = torch.full((50_000,), float(step))
                    state = {"config": CHOICES, "step": step, "moments": content}
                    text = str(step)
                    run.save(
                        lambda folder, text=text: (folder / "weights").write_text(text),
                        state,
                        step=step,
                        best=step % 3 == 0,
                    )

            _forked(act, 0.005 + draw.random() * 0.05)
            try:
                state, _, damage = RunDirectory(path)._newest_state()
            except FastadvError as error:
                wrong.append(f"kill {number}: {error}")
                break
            if damage or state["step"] < newest or _torn(state):
                wrong.append(f"kill {number}: step {state['step']}, {damage}")
            newest = state["step"]
    return "; ".join(wrong) or None


def trainings(count: int) -> str | None:
    """Kill runs anywhere and resume them; each must end with the weights of a whole one."""
    draw, wrong, kills = random.Random(0), [], 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        began = time.monotonic()
        train(tiny(whole))
        seconds = time.monotonic() - began
        expected = weights(whole)
        while kills < count:
            run = Path(place) / f"run{kills}"
            for _ in range(1000):
                began_here = (run / "checkpoints" / "last").exists()
                config = tiny(run, resume=began_here, save_minutes=0)
                if _forked(lambda c=config: train(c), draw.random() * seconds):
                    break
                kills += 1
            if not (run / "checkpoints" / "last").exists() or weights(run) != expected:
                wrong.append(f"after {kills} kills: other weights in {run.name}")
            shutil.rmtree(run, ignore_errors=True)
    return "; ".join(wrong) or None


PARTS = {
    each.__name__: each
    for each in (flips, truncations, pickles, archives, saves, trainings)
}


def main() -> int:
    """Run the part that the command line names."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    name, count = sys.argv[1], int(sys.argv[2])
    began = time.monotonic()
    problem = PARTS[name](count)
    seconds = time.monotonic() - began
    print(f"{name}: {count} in {seconds:.0f} s: {problem or 'nothing went wrong'}")
    return 1 if problem else 0


if __name__ == "__main__":
    raise SystemExit(main())
