"""Networks of users in the processes of a sweep, and on Ray."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from file_tasks import FolderTable, classify
from small_runs import environment

from fastadv.models import create_model, own_networks, save_model
from fastadv.runs.executors import make_executor
from fastadv.runs.tasks import Task, run_tasks

SOURCE = """
from torch import nn

def tiny(num_classes):
    last = nn.Linear(3 * 2 * 2, num_classes)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), last)
"""
NAMES = ("first", "second", "third")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module and a file of its network, from which commands are typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_networks, "_OWN", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv(own_networks.VARIABLE, raising=False)
    monkeypatch.setenv(own_networks.VARIABLE, "")
    (tmp_path / "mine_elsewhere.py").write_text(SOURCE)
    return tmp_path


def saved(folder: Path) -> torch.Tensor:
    """Save the network, and return its logits."""
    model = create_model("mine_elsewhere:tiny", 5, seed=0).eval()
    save_model(model, folder / "own.safetensors")
    return model(torch.linspace(0, 1, 2 * 3 * 64).view(2, 3, 8, 8)).detach()


def tasks(folder: Path) -> list[Task]:
    return [
        Task(classify, (str(folder), name), str(folder), (name,), name)
        for name in NAMES
    ]


def test_processes_know_what_was_typed(folder: Path) -> None:
    expected = saved(folder)
    table: Any = FolderTable(folder)
    executor = make_executor("processes", folder, workers=2)
    assert run_tasks(tasks(folder), executor, table, retries=0) == []
    for name in NAMES:
        assert torch.equal(torch.load(folder / name), expected)


def test_a_name_in_a_file_is_not_imported_there_either(folder: Path) -> None:
    saved(folder)
    own_networks._OWN.clear()
    table: Any = FolderTable(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(own_networks.VARIABLE, "")
        executor = make_executor("processes", folder, workers=1)
        failures = run_tasks(tasks(folder)[:1], executor, table, retries=0)
    assert "is not imported because of a name in a file" in str(failures[0].error)
    assert "FASTADV_ARCH=mine_elsewhere:tiny" in str(failures[0].error)


# It starts Ray before anything is typed, as a cluster is there before the driver.
_DRIVER = """
import os, sys
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
import fastadv.models.own_networks as own
own.import_arch("mine_elsewhere:tiny")
from fastadv.runs.executors import _RayExecutor
ray.init = lambda **_: None  # the one above is the cluster
from test_own_networks_elsewhere import tasks
from file_tasks import FolderTable
from fastadv.runs.tasks import run_tasks
from pathlib import Path
folder = Path.cwd()
executor = _RayExecutor(1, "auto", 1, 0)
print(run_tasks(tasks(folder), executor, FolderTable(folder), retries=0))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_nodes_of_a_cluster_know_what_was_typed(folder: Path) -> None:
    expected = saved(folder)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER],
        env=environment()
        | {"RAY_TMPDIR": "/tmp", "RAY_USAGE_STATS_ENABLED": "0", "FASTADV_ARCH": ""}
        | {"PYTHONPATH": f"{here}:{here.parent / 'helpers'}:{here.parents[1]}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    for name in NAMES:
        assert torch.equal(torch.load(folder / name), expected)
