"""Sweeps: recipes, engines, and a table that no crash can hurt."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import environment, script, tiny

from fastadv.cli import train as train_command
from fastadv.cli import transfer as command
from fastadv.errors import ConfigError, DataError
from fastadv.training import train
from fastadv.transfer import ResultsTable, TransferConfig
from fastadv.transfer.engines import SerialEngine, make_engine
from fastadv.transfer.recipe import read_recipe
from fastadv.transfer.sweep import make_plan, run_sweep
from fastadv.transfer.table import SCHEMA

ROWS = 6 + 4  # of RECIPE
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A standard and a robust source, trained for a moment."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    for eps in (0.0, 0.25):
        train(tiny(folder / f"eps{eps:g}", num_train=100, epochs=1, eps=eps))
    return folder


def _recipe(folder: Path, runs: Path, **changes: Any) -> Path:
    """Heads for three seeds on features, and two learning rates apart, of two sources."""
    recipe: dict[str, Any] = {
        "sources": [f"{runs}/eps{{0,0.25}}"],
        "datasets": ["digits"],
        "protocols": [
            {"mode": "fixed_feature", "seeds": [0, 1, 2], "num_train": 60},
            {"mode": "full_network", "lr": [0.05, 0.01], "epochs": 1, "num_train": 40},
        ],
        "seeds": [0],
        "device": "cpu",
        "feature_cache": "off",
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe | changes))
    return file


def _values(results: Path) -> dict[str, list[int]]:
    """What was measured by identity; fails where a row is there twice."""
    rows = ResultsTable(results).rows()
    found = {row["identity"]: row["per_class_correct"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def undisturbed(
    runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[int]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    words = ["sweep", str(_recipe(folder, runs)), "--results", str(folder / "r")]
    torch.set_num_threads(1)
    assert command.main(words) == 0
    found = _values(folder / "r")
    assert len(found) == ROWS
    return found


# ---- recipes ----


def test_a_recipe_is_a_product_of_its_lists(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "sources: ['{a,b}_eps{0,3}.ckpt', {source: c, name: mine, source_accuracy: 61}]\n"
        "datasets: [x, {dataset: y, resolution: 64}]\n"
        "protocols:\n"
        "  - fixed_feature\n"
        "  - {mode: full_network, lr: [1e-2, 0.001], epochs: 3}\n"
        "  - {mode: last_k_blocks, k: [1, 3], lrs: [0.1, 0.2], num_train: [10, null]}\n"
        "seeds: [4, 5]\n"
    )
    found = read_recipe(file, results="here", device=None)
    assert len(found) == 5 * 2 * (1 + 2 + 4)
    assert {config.seeds for config in found} == {(4, 5)}
    assert {config.results for config in found} == {"here"}
    assert {config.source for config in found} == {
        "a_eps0.ckpt", "a_eps3.ckpt", "b_eps0.ckpt", "b_eps3.ckpt", "c"
    }  # fmt: skip
    assert {(c.name, c.source_accuracy) for c in found if c.source == "c"} == {
        ("mine", 61.0)
    }
    tuned = [c for c in found if c.mode == "full_network" and c.source == "c"]
    assert [(c.dataset, c.resolution, c.lrs) for c in tuned] == [
        ("x", None, (0.01,)), ("x", None, (0.001,)), ("y", 64, (0.01,)), ("y", 64, (0.001,))
    ]  # fmt: skip
    blocks = [c for c in found if c.mode == "last_k_blocks" and c.source == "c"]
    assert {(c.k, c.num_train) for c in blocks} == {
        (1, 10),
        (1, None),
        (3, 10),
        (3, None),
    }
    assert {c.lrs for c in blocks} == {(0.1, 0.2)}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sources": []}, r"sources is \[\]; a recipe needs a list of at least one"),
        ({"datasets": None}, "datasets is None"),
        ({"seeds": [0, 1, 0]}, "--seeds 0 1 0: 0 is there more than once"),
        (
            {"protocols": [{"epochs": 3}]},
            "entry 1 of protocols is .* with the key mode",
        ),
        ({"epoch": 3}, "unknown key 'epoch'; perhaps you meant: epochs"),
        ({"num_train": "many"}, "num_train: 'many' is not a value of type int"),
        ({"num_train": []}, "num_train: an axis needs at least one value"),
        ({"protocols": ["fixed"]}, "mode: 'fixed' is not one of"),
        ({"val_fraction": [0.1, 2]}, "--val-fraction 2"),
    ],
)
def test_wrong_recipes_say_where(
    change: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_recipe(_recipe(tmp_path, tmp_path, **change))


@pytest.mark.parametrize(
    ("name", "experiments"),
    # Sources x targets x protocols x sides; sources x targets x blocks x sizes.
    [
        ("salman2020", 40 * 12 * 2 * 2),
        ("utrera2021-limited", 4 * 6 * 4 * 10),
        ("transfer-small", 22),
    ],
)
def test_the_recipes_of_the_project(name: str, experiments: int) -> None:
    file = RECIPES / f"{name}.yaml"
    assert len(read_recipe(file)) == experiments
    assert f"fastadv-transfer sweep recipes/{file.name}" in file.read_text()


def test_recipes_of_the_two_kinds_are_told_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = RECIPES / "trades.yaml"
    assert command.main(["sweep", str(file)]) == 2
    error = capsys.readouterr().err
    assert "trades.yaml is a recipe of fastadv-train (run: fastadv-train" in error
    file = RECIPES / "salman2020.yaml"
    assert train_command.main(["--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"is a sweep of transfers (run: fastadv-transfer sweep {file})" in error


def test_missing_sources_and_data_are_all_named(runs: Path, tmp_path: Path) -> None:
    file = _recipe(
        tmp_path,
        runs,
        sources=[f"{runs}/eps{{0,7}}"],
        datasets=["digits", "digit"],
    )
    table = ResultsTable(tmp_path / "r", once=True)
    with pytest.raises(DataError, match=r"2 source\(s\) or .*(?s:.*'digit'.*eps7)"):
        make_plan(read_recipe(file), table)
    plan = make_plan(read_recipe(file), table, skip_missing=True)
    assert (plan.rows, len(plan.tasks), len(plan.missing)) == (5, 3, 2)


def test_one_number_twice_is_refused(runs: Path, tmp_path: Path) -> None:
    twice = [f"{runs}/eps0", {"source": f"{runs}/eps0", "name": "other"}]
    file = _recipe(tmp_path, runs, sources=twice)
    with pytest.raises(ConfigError, match="defines the same number as"):
        make_plan(read_recipe(file), ResultsTable(tmp_path / "r"))


def test_a_dry_run_lists_the_tasks(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", str(_recipe(tmp_path, runs)), "--results", str(tmp_path / "r")]
    assert command.main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{ROWS} rows, 0 done, 6 task(s) left"
    assert len(lines) == 7
    assert lines[0].startswith("eps0 digits fixed_feature num_train=60")
    assert lines[0].endswith("seeds=0,1,2")
    assert not (tmp_path / "r").exists()


# ---- running ----


class _Counting(SerialEngine):
    """A serial engine that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[TransferConfig] = []

    def start(self, config: TransferConfig) -> None:
        self.seen.append(config)
        super().start(config)


def test_finished_rows_are_never_computed_again(
    runs: Path, tmp_path: Path, undisturbed: dict[str, list[int]]
) -> None:
    results = str(tmp_path / "r")
    configs = read_recipe(_recipe(tmp_path, runs), results=results)
    table = ResultsTable(results, once=True)
    table.prepare()
    plan = make_plan(configs, table)
    assert {i for task in plan.tasks for i in task.identities} == set(undisturbed)
    assert run_sweep(plan, _Counting(), table) == []
    assert _values(Path(results)) == undisturbed
    # One row of three seeds is lost; only that is computed.
    lost = plan.tasks[0].identities[1]
    next(Path(results).glob(f"*{lost}*")).unlink()
    plan, engine = make_plan(configs, table), _Counting()
    assert (plan.rows, plan.done, len(plan.tasks)) == (ROWS, ROWS - 1, 1)
    assert run_sweep(plan, engine, table) == []
    assert [config.seeds for config in engine.seen] == [(1,)]
    assert _values(Path(results)) == undisturbed
    assert make_plan(configs, table).tasks == []


def test_errors_are_reported_and_the_rest_is_done(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocols = [
        {"mode": "full_network", "lr": [1e30, 0.01], "epochs": 2, "num_train": 40}
    ]
    file = _recipe(tmp_path, runs, protocols=protocols, sources=[f"{runs}/eps0"])
    words = ["sweep", str(file), "--results", str(tmp_path / "r")]
    assert command.main(words) == 1
    complaint = capsys.readouterr().err
    assert "1 row(s) could not be computed" in complaint
    assert "lr 1e+30 diverged" in complaint
    assert "again" not in complaint  # the same would happen
    assert len(ResultsTable(tmp_path / "r").rows()) == 1


def test_tables_of_other_versions_are_left_alone(runs: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    future = SCHEMA.with_metadata({"fastadv_schema": "99"})
    results = tmp_path / "r"
    results.mkdir()
    pq.write_table(pa.Table.from_pylist([{}], schema=future), results / "a.parquet")
    before = (results / "a.parquet").read_bytes()
    assert (
        command.main(["sweep", str(_recipe(tmp_path, runs)), "--results", str(results)])
        == 1
    )
    assert [path.name for path in results.iterdir()] == ["a.parquet"]
    assert (results / "a.parquet").read_bytes() == before


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
    runs: Path, tmp_path: Path, undisturbed: dict[str, list[int]]
) -> None:
    """A stop, a dead worker, a dead driver; in the end the table is the undisturbed one.

    One test, because every start of a sweep and its workers costs seconds.
    """
    file, results = _recipe(tmp_path, runs), tmp_path / "r"
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
    assert _values(results) == undisturbed


def test_crashes_are_retried_so_often_and_then_reported(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastadv.transfer.protocol import TransferRun

    tries: list[str] = []

    def crash(self: TransferRun) -> Any:
        tries.append(self.config.mode)
        raise OSError("the disk is gone")

    monkeypatch.setattr(TransferRun, "rows", crash)
    file = _recipe(
        tmp_path, runs, sources=[f"{runs}/eps0"], protocols=["fixed_feature"]
    )
    configs = read_recipe(file, results=str(tmp_path / "r"))
    table = ResultsTable(tmp_path / "r", once=True)
    table.prepare()
    [failure] = run_sweep(make_plan(configs, table), SerialEngine(), table, retries=2)
    assert failure.reason == "OSError: the disk is gone"
    assert len(tries) == 3


# ---- Ray ----


def test_without_ray_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'fastadv\[ray\]'"):
        make_engine("ray", tmp_path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "serial", "workers": 2}, "--workers 2 needs --engine processes"),
        ({"name": "processes", "workers": 0}, "--workers 0 must be at least 1"),
        ({"name": "ray", "address": "nonsense"}, "'nonsense' is no Ray address"),
        ({"name": "ray", "address": "127.0.0.1:1"}, "no Ray cluster at --address"),
    ],
)
def test_engines_that_cannot_work(
    options: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    if options["name"] == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed here: pip install 'fastadv[ray]'")
    name = options.pop("name")
    with pytest.raises(ConfigError, match=complaint):
        make_engine(name, tmp_path, **options)


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
    runs: Path, tmp_path: Path, undisturbed: dict[str, list[int]]
) -> None:
    """A local cluster, one of whose workers is killed."""
    pytest.importorskip(
        "ray", reason="Ray is not installed: pip install 'fastadv[ray]'"
    )
    file, results = _recipe(tmp_path, runs), tmp_path / "r"
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
    assert _values(results) == undisturbed
