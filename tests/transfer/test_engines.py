"""Where sweeps run, and a table that no crash of it can hurt."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest
import torch
from small_runs import environment, script
from sweep_runs import ROWS, recipe_file, values

from fastadv.errors import ConfigError
from fastadv.machine import usable_cores
from fastadv.results.table import ResultsTable
from fastadv.runs.executors import SerialExecutor, make_executor
from fastadv.runs.tasks import run_tasks
from fastadv.transfer.recipe import read_recipe
from fastadv.transfer.sweep import plan_sweep

# ---- crashes ----


def _start(file: Path, results: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            script("fastadv-transfer"), "sweep", str(file), "--results", str(results),
            "--engine", "processes", "--workers", "2", "--retries", "20", *words,
        ],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def _children(pid: int) -> list[int]:
    """Workers of a sweep: its children that run Python code it gave them."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    found = []
    for child in listed:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"spawn_main" in words:
                found.append(int(child))
    return found


def _rows(results: Path) -> int:
    return len(list(results.glob("*.parquet")))


def _wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not holds() and process.poll() is None:
        assert time.monotonic() < deadline, "nothing happened for two minutes"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_the_table_survives_ctrl_c_and_kill_nine(
    runs: Path, tmp_path: Path, undisturbed: dict[str, tuple[int, ...]]
) -> None:
    """A stop, a dead worker, a dead driver; in the end the table is the undisturbed one.

    One test, because every start of a sweep and its workers costs seconds.
    """
    file, results = recipe_file(tmp_path, runs), tmp_path / "r"
    moments = random.Random()

    stopped = _start(file, results)
    _wait_until(lambda: _rows(results) >= 1, stopped)
    stopped.send_signal(signal.SIGINT)
    _, stderr = stopped.communicate(timeout=120)
    assert stopped.returncode == 75, stderr
    assert f"of {ROWS} rows are in" in stderr
    assert "The same command goes on from there" in stderr
    assert "Traceback" not in stderr
    begun = _rows(results)
    assert 1 <= begun < ROWS

    killed = _start(file, results)
    _wait_until(lambda: len(_children(killed.pid)) == 2, killed)
    time.sleep(moments.random())
    os.kill(_children(killed.pid)[0], signal.SIGKILL)
    _wait_until(lambda: _rows(results) > begun, killed)
    time.sleep(1 + 0.5 * moments.random())  # the driver looks every half second
    orphans = _children(killed.pid)
    killed.kill()
    _, stderr = killed.communicate()
    assert "again, its process died (SIGKILL)" in stderr
    # No worker outlives its driver to compute what the next one redoes.
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in orphans):
        assert time.monotonic() < deadline, "a worker outlived its sweep"
        time.sleep(0.05)

    last = _start(file, results)
    _, stderr = last.communicate(timeout=200)
    assert last.returncode == 0, stderr
    assert values(results) == undisturbed
    # One data set, for whoever reads it without us; the workers' logs lie beside it.
    assert any((results / "_logs").iterdir())
    assert pyarrow.dataset.dataset(results).count_rows() == ROWS


def test_crashes_are_retried_so_often_and_then_reported(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastadv.transfer.protocol import TransferRun

    tries: list[str] = []

    def crash(self: TransferRun) -> Any:
        tries.append(self.config.mode)
        raise OSError("the disk is gone")

    monkeypatch.setattr(TransferRun, "rows", crash)
    file = recipe_file(
        tmp_path, runs, sources=[f"{runs}/eps0"], protocols=["fixed_feature"]
    )
    configs = read_recipe(file, results=str(tmp_path / "r"))
    table = ResultsTable(tmp_path / "r", once=True)
    table.prepare()
    tasks = plan_sweep(configs, table).tasks
    [failure] = run_tasks(tasks, SerialExecutor(), table, retries=2)
    assert failure.error == "OSError: the disk is gone"
    assert len(tries) == 3


def test_processes_are_as_many_as_gpus_or_else_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gpus, slots in ((0, usable_cores()), (3, 3)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert make_executor("processes", tmp_path).slots == slots
    assert make_executor("processes", tmp_path, workers=5).slots == 5


# ---- Ray ----


def test_without_ray_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'fastadv\[ray\]'"):
        make_executor("ray", tmp_path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "serial", "workers": 2}, "`workers=2` needs `engine=processes`"),
        ({"name": "processes", "workers": 0}, "`workers=0` must be at least 1"),
        ({"name": "ray", "address": "nonsense"}, "'nonsense'` is no Ray address"),
        ({"name": "ray", "address": "127.0.0.1:1"}, "no Ray cluster at `address=127"),
    ],
)
def test_engines_that_cannot_work(
    options: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    if options["name"] == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed here: pip install 'fastadv[ray]'")
    name = options.pop("name")
    with pytest.raises(ConfigError, match=complaint):
        make_executor(name, tmp_path, **options)


_KILLER = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path

def tasks():
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            mine = b"FASTADV_TEST=" + sys.argv[2].encode()
            here = mine in (path / "environ").read_bytes()
            if here and words.startswith(b"ray::_ray_task"):
                yield int(path.name)
        except OSError:
            pass

def kill_one():
    while True:
        for pid in tasks():
            os.kill(pid, signal.SIGKILL)
            print("killed", flush=True)
            return
        time.sleep(0.005)

threading.Thread(target=kill_one, daemon=True).start()
from fastadv.cli.transfer import main
raise SystemExit(main(["sweep", sys.argv[1], "--results", sys.argv[2], "--engine", "ray",
                       "--workers", "2"]))
"""


@pytest.mark.slow
def test_on_ray_the_table_is_the_same(
    runs: Path, tmp_path: Path, undisturbed: dict[str, tuple[int, ...]]
) -> None:
    """A local cluster, one of whose workers is killed."""
    pytest.importorskip(
        "ray", reason="Ray is not installed: pip install 'fastadv[ray]'"
    )
    file, results = recipe_file(tmp_path, runs), tmp_path / "r"
    done = subprocess.run(
        [sys.executable, "-c", _KILLER, str(file), str(results)],
        env=environment() | {"FASTADV_TEST": str(results), "RAY_TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout
    assert "again, its Ray worker died" in done.stderr
    assert values(results) == undisturbed


def _free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


def _of_cluster(folder: str) -> list[int]:
    """Processes of the cluster in `folder`, tasks included."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"RAY_TMPDIR={folder}\0".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


@pytest.fixture
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray cluster of one core: its address, and the environment it is found in."""
    pytest.importorskip(
        "ray", reason="Ray is not installed: pip install 'fastadv[ray]'"
    )
    # Not below the test's folder: the names of sockets must be short.
    folder = tempfile.mkdtemp(prefix="fastadv-ray-", dir="/tmp")
    found = environment() | {
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Not that of the user: nothing else can reach this cluster, nor this another.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    head, client = _free_ports(2)
    # `ray stop` would end every cluster of this machine, so this one ends with a process.
    started = subprocess.Popen(
        [
            script("ray"), "start", "--head", "--block", "--num-cpus", "1",
            "--port", head, "--ray-client-server-port", client,
            "--include-dashboard", "false", "--object-store-memory", "80000000",
        ],
        env=found,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        said = []
        for line in started.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise AssertionError(f"no Ray cluster could be started: {''.join(said)}")
        yield f"127.0.0.1:{head}", found
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.communicate(timeout=20)
        for pid in _of_cluster(folder):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        started.communicate()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_cluster_that_outlives_its_driver(
    cluster: tuple[str, dict[str, str]],
    runs: Path,
    tmp_path: Path,
    undisturbed: dict[str, tuple[int, ...]],
) -> None:
    """Tasks of a driver that was killed may still write, and the next one's do, too."""
    address, variables = cluster
    file, results = recipe_file(tmp_path, runs), tmp_path / "r"
    words = ["sweep", str(file), "--results", str(results)]
    words = [
        script("fastadv-transfer"),
        *words,
        "--engine",
        "ray",
        "--address",
        address,
    ]
    killed = subprocess.Popen(
        words,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_until(lambda: _rows(results) >= 1, killed)
    killed.kill()
    _, stderr = killed.communicate()
    begun = _rows(results)
    assert 1 <= begun < ROWS, stderr

    again = subprocess.run(
        words, env=variables, capture_output=True, text=True, timeout=200
    )
    assert again.returncode == 0, again.stderr
    found = re.search(rf"{ROWS} of {ROWS} rows are in .*\((\d+) were", again.stdout)
    assert found is not None, again.stdout
    assert begun <= int(found[1]) < ROWS
    assert values(results) == undisturbed
