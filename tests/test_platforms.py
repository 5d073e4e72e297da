"""Platforms without locks and without some signals: imports work, and reasons are given."""

from __future__ import annotations

import ast
import importlib.util
import logging
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from small_runs import environment

from fastadv import machine

ROOT = Path(__file__).resolve().parents[1]
# Modules of Python that Windows does not have.
POSIX = {"fcntl", "resource", "termios", "pwd", "grp", "pty", "tty", "syslog", "crypt"}
LACKING = ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP", "sigwaitinfo", "pthread_sigmask")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Windows lacks is hidden, as far as it goes."""
    for name in POSIX:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    for name in LACKING:
        monkeypatch.delattr(signal, name, raising=False)
    for name in ("pread", "pwrite", "sched_getaffinity", "sysconf"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Windows")


def again(name: str) -> ModuleType:
    """Import a module of fastadv once more, beside the one that is there."""
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location("copy_of_" + path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def test_nothing_but_one_module_needs_what_windows_lacks() -> None:
    """At its top, a module may import such a module only where it also does without."""
    found = []
    for path in [*ROOT.glob("fastadv/**/*.py"), *ROOT.glob("kernels/*.py")]:
        tree = ast.parse(path.read_text())
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [f"{path}: {name}" for name in names if name in POSIX]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "signal":
                inside = node.attr in LACKING and path.stem not in (
                    *("slurm", "workers"),  # Slurm is Linux; it asks first
                )
                found += [f"{path}: signal.{node.attr}"] if inside else []
    assert found == []


def test_folders_are_not_locked_and_it_is_said(
    windows: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = again("fastadv.files")
    with caplog.at_level(logging.WARNING):
        assert files.lock_folder(tmp_path, "is in use", "wait") is None
    assert "no record locks" in caplog.text
    with files.claimed(tmp_path, 3) as free:
        assert free
    files.write_atomic(tmp_path / "a" / "b.txt", b"whole")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"whole"


def test_stop_signals_are_those_that_exist(windows: None) -> None:
    preemption = again("fastadv.runs.preemption")
    assert [each.name for each in preemption._SIGNALS] == ["SIGTERM", "SIGINT"]
    before = signal.getsignal(signal.SIGTERM)
    with preemption.stop_on_signal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop
    assert signal.getsignal(signal.SIGTERM) is before


def test_workers_ignore_the_signals_that_exist(windows: None) -> None:
    loader = again("fastadv.data.loading.workers")
    before = signal.getsignal(signal.SIGINT)
    try:
        loader.outlive_stop_signals(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_memory_and_cores_have_a_fallback(
    windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_linux_memory", lambda *_: None)
    assert machine.available_memory() == 4 << 30
    assert machine.resident_memory() == 0
    assert machine.usable_cores() >= 1


@pytest.mark.parametrize(
    ("system", "cpu", "said"),
    [
        ("Linux", "x86_64", "supported and tested"),
        ("Linux", "aarch64", "not tested"),
        ("Darwin", "arm64", "expected to work"),
        ("Windows", "AMD64", "WSL on Windows, is supported"),
    ],
)
def test_what_is_supported_is_said(
    system: str, cpu: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: cpu)
    assert said in machine.platform_support()


_CHILD = """
import importlib, os, platform, signal, sys
for name in {modules!r}:
    sys.modules[name] = None
for name in {signals!r}:
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("pread", "pwrite", "sched_getaffinity", "sysconf", "fork", "killpg"):
    delattr(os, name)
import fastadv.cli
folder = os.path.dirname(fastadv.cli.__file__)
for file in sorted(os.listdir(folder)):
    if file.endswith(".py"):
        importlib.import_module("fastadv.cli." + file[:-3])
from fastadv.cli.doctor import main as doctor
from fastadv.cli.eval import main as evaluate
from fastadv.cli.train import main as train
words = "--data shapetex --resolution 16 --out".split()
new = "--arch resnet8_cifar --num-train 48 --epochs 1 --eps 0.1 --num-steps 1"
done = [train([*new.split(), "--batch-size", "16", "--eval-images", "16", *words, "run"])]
done += [train(["--resume", "--out", "run"])]
judged = "--checkpoint run --num-images 20 --num-steps 2".split()
done += [evaluate([*judged, *words, "judged"])]
print(done)
"""


@pytest.mark.slow
def test_commands_run_without_what_windows_lacks(tmp_path: Path) -> None:
    """A training, its continuation and an evaluation, in a process of their own."""
    code = _CHILD.format(modules=sorted(POSIX), signals=LACKING)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip().endswith("[0, 0, 0]"), done.stderr
    assert "no record locks" in done.stderr
