"""Slurm through submitit, with sbatch, srun and scontrol that only write down the call."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from small_runs import environment, events, execute, flags, last_step, script

from fastadv.cli import train
from fastadv.errors import ConfigError
from fastadv.runs.slurm import parse_options

pytest.importorskip("submitit")


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a log-in machine."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sbatch", "srun", "scontrol", "squeue", "sacct"):
        tool = tools / name
        tool.write_text(
            "#!/bin/sh\n"
            f'echo "{name} $*" >> {tmp_path}/calls\n'
            '[ -f "$1" ] && cp "$1" ' + f"{tmp_path}/submitted.sh\n"
            "echo Submitted batch job 42\n"
        )
        tool.chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    return environment() | {"PATH": path}


def test_the_printed_script_is_what_is_submitted(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    slurm = "nodes=2,gpus_per_node=4,partition=big,time=30"
    words = flags(tmp_path / "run", slurm=slurm)
    printed = execute("fastadv-train", *words, "--dry-run", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert not (tmp_path / "run").exists()  # and it needs no Slurm
    lines = printed.stdout.splitlines()
    for wanted in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --partition=big",
        "#SBATCH --time=30",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR1@120",
        "export SUBMITIT_PREEMPT_SIGNAL=USR1",
    ):
        assert wanted in lines
    (command,) = [line for line in lines if line.startswith("# fastadv-train ")]
    assert command.split()[2:] == [*flags(tmp_path / "run"), "--resume=auto"]
    done = subprocess.run(
        [script("fastadv-train"), *words],
        env=cluster,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"job 42: its output is in {tmp_path / 'run' / 'slurm'}\n"
    assert (tmp_path / "submitted.sh").read_text() == printed.stdout


def test_a_preempted_job_saves_and_requeues_itself(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = flags(run, slurm="nodes=1", save_minutes=0, epochs=500)
    submit = [script("fastadv-train"), *words]
    subprocess.run(submit, env=cluster, check=True, capture_output=True, timeout=60)
    # What srun would start, as the submitted script says it.
    *_, command = (tmp_path / "submitted.sh").read_text().strip().splitlines()
    assert command.startswith("srun ")
    start = command.split()
    start = start[start.index("-u") - 1 :]  # python -u -m submitit.core._submit FOLDER
    job = {"SLURM_JOB_ID": "42", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    job |= {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_PREEMPT_SIGNAL": "USR1"}
    task = subprocess.Popen(
        start,
        env=cluster | job,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while last_step(run) < 2:
            assert task.poll() is None, task.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        task.send_signal(signal.SIGUSR1)
        _, stderr = task.communicate(timeout=60)
    finally:
        task.kill()
    assert f"SIGUSR1: saved step {last_step(run)}; continue with" in stderr
    assert events(run)[-1]["event"] == "preempted"
    assert "scontrol requeue 42" in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("node=2", "unknown option 'node'; perhaps you meant: nodes"),
        ("nodes", "'nodes' is not NAME=VALUE; write for example nodes=2"),
        ("nodes=0", "nodes=0 must be a number of at least 1"),
        ("time=long", "time=long must be a number of at least 1 of minutes, or D-HH:"),
        ("time=24:00", "time=24:00 must be a number"),  # minutes and seconds to Slurm
        ("time=0:00:00", "time=0 must be a number"),
    ],
)
def test_options_that_cannot_be(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match="`slurm") as caught:
        parse_options(text)
    assert complaint in str(caught.value)


def test_times_as_slurm_writes_them() -> None:
    given = {"90": 90, "1:30:00": 90, "24:00:00": 1440, "2-00:00:01": 2881}
    assert {text: parse_options(f"time={text}")["time"] for text in given} == given


def test_ranks_are_started_here_or_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(flags(tmp_path / "run", slurm="nodes=2", nproc=3)) == 2
    assert "--nproc 3 starts ranks on this machine" in capsys.readouterr().err


def test_a_task_for_each_gpu() -> None:
    assert parse_options("gpus_per_node=8")["ntasks_per_node"] == 8
    assert parse_options("")["ntasks_per_node"] == 1
    assert parse_options("ntasks_per_node=2,gpus_per_node=4")["ntasks_per_node"] == 2
