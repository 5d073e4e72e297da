"""Runs on the machines of a Slurm cluster, submitted through submitit.

The job has one task for each GPU; the tasks are the ranks. Slurm sends SIGUSR1 before the
time is up or the job is preempted: the run saves, and the job puts itself back into the
queue, from where it continues at the saved state.
"""

from __future__ import annotations

import importlib
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
    "nodes": 1,
    "time": 24 * 60,  # minutes; a longer run requeues itself
    "signal_delay_s": 120,  # from the signal to the end: a step and a checkpoint
}
_REQUEUES = 100  # after running out of time; preemptions are not counted


class SlurmTask:
    """The work of each task of the job; submitit keeps it in a file.

    Args:
        module: Full name of the command's module, whose `main` takes `argv`.
        argv: Arguments of the command.
    """

    def __init__(self, module: str, argv: Sequence[str]) -> None:
        self.module, self.argv = module, list(argv)

    def __call__(self) -> None:
        """Run the command as one rank; requeue the job if it was preempted."""
        import submitit

        main = importlib.import_module(self.module).main
        if submitit.JobEnvironment().num_tasks > 1:
            # Every task sees all devices of its machine: LOCAL_RANK picks one.
            environment = submitit.helpers.TorchDistributedEnvironment()
            environment.export(set_cuda_visible_devices=False, overwrite=True)
        code = main(self.argv)
        if code == EXIT_PREEMPTED:
            # The handler of submitit, which ours replaced: on task 0 it requeues the job.
            signal.raise_signal(signal.SIGUSR1)
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """Return the work of the requeued job, which continues at the saved state."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def parse_options(text: str) -> dict[str, Any]:
    """Parse `nodes=2,gpus_per_node=8` into the options that submitit takes.

    Raises:
        ConfigError: The text has another form, or names an option submitit lacks.
    """
    options: dict[str, Any] = {}
    ours = {"setup", "additional_parameters"}
    known = sorted(_submitit()._get_default_parameters().keys() - ours)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, has_value, value = part.partition("=")
        if not has_value:
            raise ConfigError(
                f"`slurm={text!r}`: {part!r} is not NAME=VALUE; write for example "
                "nodes=2,gpus_per_node=8,time=1440"
            )
        if name not in known:
            raise ConfigError(f"`slurm`: {unknown_name('option', name, known)}")
        options[name] = int(value) if value.isdecimal() else value
    chosen = _DEFAULTS | options
    chosen["time"] = _minutes(chosen["time"])
    for name in ("nodes", "time", "gpus_per_node", "ntasks_per_node"):
        value = chosen.get(name, 1)
        if not isinstance(value, int) or value < 1:
            also = " of minutes, or D-HH:MM:SS" if name == "time" else ""
            raise ConfigError(
                f"`slurm`: {name}={value} must be a number of at least 1{also}"
            )
    # Each rank is one task with one GPU.
    chosen.setdefault("ntasks_per_node", chosen.get("gpus_per_node", 1))
    return chosen


def _minutes(value: int | str) -> int | str:
    """Return a time as Slurm writes it in minutes, rounded up; else `value` itself."""
    parts = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", str(value))
    if parts is None:
        return value
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)


def submit(
    module: str,
    argv: Sequence[str],
    text: str,
    out: Path,
    *,
    program: str,
    dry_run: bool = False,
) -> str:
    """Submit a command to Slurm.

    Args:
        module: Full name of the command's module; see `SlurmTask`.
        argv: Arguments of the command.
        text: Options of Slurm; see `parse_options`.
        out: The run directory. The job's own files go to `slurm/` in it.
        program: Name of the command, which names the job.
        dry_run: Submit nothing and write nothing.

    Returns:
        Text for the user: the script with `dry_run`, else the job's number.

    Raises:
        ConfigError: The options are wrong, or submitit is not installed.
        FastadvError: Slurm refused the job.
    """
    options = {"job_name": program} | parse_options(text)
    folder = out.absolute() / "slurm"
    arguments = [each for each in argv if each != "--dry-run"]
    # A job that is requeued continues the run; the first time, there may be none.
    arguments = [each for each in arguments if each != "--resume"] + ["--resume=auto"]
    if not any(each.partition("=")[0] in ("--out", "--out-dir") for each in arguments):
        arguments += ["--out", str(out)]
    options["setup"] = [
        # submitit keeps the command in a file: this comment, one line, shows it.
        f"# {program} {shlex.join(arguments)}".replace("\n", " "),
        f"export {_VARIABLE}={_SIGNAL}",
    ]
    options["additional_parameters"] = {"requeue": True}
    kind = _submitit().SlurmExecutor
    if dry_run and kind.affinity() < 0:
        # The script can be printed on a machine without Slurm, too.
        kind = type("SlurmExecutor", (kind,), {"affinity": classmethod(lambda _: 1)})
    try:
        executor = kind(folder=folder, max_num_timeout=_REQUEUES)
    except RuntimeError as error:
        raise ConfigError(
            f"`slurm`: {error} Add `dry_run` to print the script alone"
        ) from None
    executor.update_parameters(**options)
    if dry_run:
        script: str = executor._make_submission_file_text(
            executor._submitit_command_str, "0"
        )
        return script.rstrip("\n")
    try:
        job = executor.submit(SlurmTask(module, arguments))
    except Exception as error:  # submitit raises errors of many types
        raise FastadvError(f"Slurm did not take the job: {error}") from error
    return f"job {job.job_id}: its output is in {folder}"


def _submitit() -> Any:
    # submitit reads it once, when it is imported.
    os.environ[_VARIABLE] = _SIGNAL
    try:
        from submitit.slurm import slurm
    except ImportError:
        raise ConfigError(
            "`slurm` needs submitit, which is not installed: pip install "
            "'fastadv[slurm]'"
        ) from None
    return slurm
