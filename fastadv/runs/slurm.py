"""A run on the machines of a Slurm cluster, submitted through submitit.

One task a GPU; the tasks are the ranks. Slurm sends SIGUSR1 before the time is up or the
job is preempted: the run saves, and the job puts itself back into the queue, where it goes
on from what was saved.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastadv.errors import EXIT_PREEMPTED, ConfigError, FastadvError, unknown_name

_VARIABLE, _SIGNAL = "SUBMITIT_PREEMPT_SIGNAL", "USR1"
_DEFAULTS: dict[str, Any] = {
    "job_name": "fastadv-train",
    "nodes": 1,
    "time": 24 * 60,  # minutes; a longer run requeues itself
    "signal_delay_s": 120,  # from the signal to the end: a step and a checkpoint
}
_REQUEUES = 100  # after running out of time; preemptions are not counted


class SlurmTask:
    """What each task of the job runs; submitit keeps it in a file.

    Args:
        argv: words of `fastadv-train`.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)

    def __call__(self) -> None:
        """Train as one rank; put the job back into the queue if it was preempted."""
        import submitit

        from fastadv.cli import train

        if submitit.JobEnvironment().num_tasks > 1:
            # Every task sees all devices of its machine: LOCAL_RANK picks one.
            environment = submitit.helpers.TorchDistributedEnvironment()
            environment.export(set_cuda_visible_devices=False, overwrite=True)
        code = train.main(self.argv)
        if code == EXIT_PREEMPTED:
            # The handler of submitit, which ours stood in for: on task 0 it requeues.
            signal.raise_signal(signal.SIGUSR1)
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """What the requeued job runs: the same, from where it was saved."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def parse_options(text: str) -> dict[str, Any]:
    """`nodes=2,gpus_per_node=8` as submitit takes it.

    Raises:
        ConfigError: not of this form, or an option submitit does not have.
    """
    options: dict[str, Any] = {}
    known = _known_options()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, has_value, value = part.partition("=")
        if not has_value:
            raise ConfigError(
                f"--slurm {text!r}: {part!r} is not NAME=VALUE; write for example "
                "nodes=2,gpus_per_node=8,time=1440"
            )
        if name not in known:
            raise ConfigError(f"--slurm: {unknown_name('option', name, known)}")
        options[name] = int(value) if value.isdecimal() else value
    chosen = _DEFAULTS | options
    chosen["time"] = _minutes(chosen["time"])
    for name in ("nodes", "time", "gpus_per_node", "ntasks_per_node"):
        value = chosen.get(name, 1)
        if not isinstance(value, int) or value < 1:
            also = " of minutes, or D-HH:MM:SS" if name == "time" else ""
            raise ConfigError(
                f"--slurm {name}={value} must be a number of at least 1{also}"
            )
    # A rank is a task, and a GPU is one's own.
    chosen.setdefault("ntasks_per_node", chosen.get("gpus_per_node", 1))
    return chosen


def _minutes(value: int | str) -> int | str:
    """A time as Slurm writes it in minutes, rounded up; anything else as it is."""
    parts = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", str(value))
    if parts is None:
        return value
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)


def submit(text: str, argv: Sequence[str], out: Path, *, dry_run: bool = False) -> str:
    """Submit `fastadv-train argv` to Slurm.

    Args:
        text: options, see `parse_options`.
        argv: words of the command.
        out: the run directory; the job's own files go to `slurm/` in it.
        dry_run: submit nothing and write nothing.

    Returns:
        What to print: the script with `dry_run`, else the job's number.

    Raises:
        ConfigError: wrong options, or submitit is not installed.
        FastadvError: Slurm refused it.
    """
    options = parse_options(text)
    folder = out.absolute() / "slurm"
    words = [word for word in argv if word != "--dry-run"]
    if "--resume" not in words:
        words.append("--resume")  # of a run that is not there it is a start
    if not any(word.partition("=")[0] in ("--out", "--out-dir") for word in words):
        words += ["--out", str(out)]
    options["setup"] = [
        # For who reads the script: submitit keeps the words in a file. One line of it.
        f"# fastadv-train {shlex.join(words)}".replace("\n", " "),
        f"export {_VARIABLE}={_SIGNAL}",
    ]
    options["additional_parameters"] = {"requeue": True}
    executor = _executor(folder, dry_run)
    executor.update_parameters(**options)
    if dry_run:
        script: str = executor._make_submission_file_text(
            executor._submitit_command_str, "0"
        )
        return script.rstrip("\n")
    try:
        job = executor.submit(SlurmTask(words))
    except Exception as error:  # submitit passes on whatever sbatch made of it
        raise FastadvError(f"Slurm did not take the job: {error}") from error
    return f"job {job.job_id}: its output is in {folder}"


def _submitit() -> Any:
    # Read once, when submitit is imported.
    os.environ[_VARIABLE] = _SIGNAL
    try:
        from submitit.slurm import slurm
    except ImportError:
        raise ConfigError(
            "--slurm needs submitit, which is not installed: pip install "
            "'fastadv[slurm]'"
        ) from None
    return slurm


def _known_options() -> list[str]:
    ours = {"setup", "additional_parameters"}
    names = set(_submitit()._get_default_parameters()) - ours
    return sorted(names)


def _executor(folder: Path, dry_run: bool) -> Any:
    slurm = _submitit()
    kind = slurm.SlurmExecutor
    if dry_run and kind.affinity() < 0:
        # The script can be looked at where there is no Slurm, too.
        kind = type("SlurmExecutor", (kind,), {"affinity": classmethod(lambda _: 1)})
    try:
        return kind(folder=folder, max_num_timeout=_REQUEUES)
    except RuntimeError as error:
        raise ConfigError(
            f"--slurm: {error} Add --dry-run to print the script alone"
        ) from None
