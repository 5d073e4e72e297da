"""fastadv-train: pretrain a classifier, adversarially or not."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Annotated

from fastadv.cli import common
from fastadv.cli.trainwords import (
    check_resumable,
    plain_resume,
    resumed,
    resumes_or_starts,
    tried_out,
)
from fastadv.cli.words import flag_value, without_flag
from fastadv.errors import ConfigError
from fastadv.flags import PrintJson, read_by
from fastadv.ranges import ordered_values
from fastadv.training.config import TrainConfig

PROG, MODULE = "fastadv-train", "fastadv.cli.train"


def _counts(flag: str, words: list[str], most: int | None) -> tuple[int, ...]:
    wrong = None
    if most is not None and len(words) > most:
        wrong = "one number"
    elif not all(word.isdecimal() and int(word) > 0 for word in words):
        wrong = "numbers above 0"
    if wrong:
        raise ConfigError(f"{flag} {' '.join(words)} cannot work; it takes {wrong}")
    return tuple(map(int, words))


def _devices(words: list[str]) -> tuple[int, ...]:
    return _counts("--plan", words, most=None) or (1, 8)


def _steps(words: list[str]) -> int:
    return (*_counts("--profile", words, most=1), 20)[0]


Devices = Annotated[tuple[int, ...], read_by(_devices, tuple, "[N ...]", "*")]
Steps = Annotated[int, read_by(_steps, int, "[STEPS]", "*")]


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainConfig):  # noqa: D101, it shows the help of its base
    __doc__ = TrainConfig.__doc__

    dry_run: bool = False
    """Open the data, build the model, and stop."""
    plan: Devices | None = None
    """Measure 20 steps, print memory, time and device-hours of the whole run on these
    numbers of devices, and stop. Without numbers: 1 and 8."""
    profile: Steps | None = None
    """Measure where the time of N steps goes, and write it and a trace in the run
    directory. Without a number: 20 steps."""
    nproc: int | None = None
    """Start N processes on this machine, one for each GPU, or all on the CPU."""
    slurm: str | None = None
    """Submit the run to Slurm with the options of submitit, for example
    nodes=2,gpus_per_node=8,time=1440; time is in minutes or H:MM:SS. --dry-run prints the
    script."""
    json: PrintJson = False


def _body(argv: list[str]) -> None:
    norm = flag_value(argv, "--norm", "--constraint")
    over_file = flag_value(argv, "--config") is not None
    if norm and over_file and flag_value(argv, "--eps") is None:
        raise ConfigError(
            f"--norm {norm} over a --config file needs --eps as well: the file's radius is "
            "for the file's norm"
        )
    command = common.parse(TrainCommand, tried_out(resumed(plain_resume(argv))), PROG)
    config = TrainConfig(**ordered_values(command, TrainConfig))
    nproc, slurm, dry_run = command.nproc, command.slurm, command.dry_run
    if config.resume and not resumes_or_starts(argv):
        check_resumable(config.out_path)
    if slurm is not None and nproc is not None:
        raise ConfigError(
            f"--nproc {nproc} starts ranks on this machine, --slurm a task for each GPU "
            "of the job (gpus_per_node, ntasks_per_node); leave --nproc out"
        )
    if command.plan is not None:
        from fastadv.training.plan import plan_run

        found = plan_run(config, command.plan)
        common.show(command, found.to_dict(), found.text())
        return
    if slurm is not None:
        from fastadv.runs.slurm import submit

        job = submit(
            MODULE,
            without_rank_flags(plain_resume(argv)),
            slurm,
            config.out_path,
            program=PROG,
            dry_run=dry_run,
        )
        print(job)
        return
    if nproc is not None:
        from fastadv.runs.launch import launch

        raise SystemExit(launch(MODULE, nproc, without_rank_flags(argv)))

    from fastadv.runs.distributed import join_ranks
    from fastadv.training.trainer import Trainer

    with join_ranks(config.device) as world:
        trainer = Trainer(config, dry_run=dry_run, world=world, profile=command.profile)
        if dry_run:
            trainer.describe()
            return
        summary = trainer.fit()
    if world.leads:
        values = dataclasses.asdict(summary) | {"run": str(summary.run)}
        common.show(command, values, f"run: {summary.run}")


def without_rank_flags(argv: list[str]) -> list[str]:
    """Return the arguments of each rank: `argv` without the flags that start ranks."""
    return without_flag(without_flag(argv, "--nproc"), "--slurm")


main = functools.partial(common.run, PROG, _body)

if __name__ == "__main__":
    raise SystemExit(main())
