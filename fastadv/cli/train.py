"""fastadv-train: pretrain a classifier, adversarially or not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastadv.cli import common
from fastadv.errors import ConfigError
from fastadv.flags import PrintJson
from fastadv.training.config import TrainConfig

PROG, MODULE = "fastadv-train", "fastadv.cli.train"
PLAN_DEVICES, PROFILE_STEPS = (1, 8), 20  # of the bare flags

Devices = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[N ...]",
        instance_from_str=lambda words: _counts("--plan", words) or PLAN_DEVICES,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [str(each) for each in value],
    ),
]
Steps = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[STEPS]",
        instance_from_str=lambda words: _steps(words),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]


def _counts(flag: str, words: list[str]) -> tuple[int, ...]:
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(
            f"{flag} {' '.join(words)} cannot work; it takes numbers above 0"
        )
    return tuple(map(int, words))


def _steps(words: list[str]) -> int:
    if len(words) > 1:
        raise ConfigError(
            f"--profile {' '.join(words)} cannot work; it takes one number"
        )
    return (*_counts("--profile", words), PROFILE_STEPS)[0]


@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """Where a run starts, and what is done instead of it."""

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


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainConfig, LaunchFlags):  # noqa: D101, it shows the help of TrainConfig
    __doc__ = TrainConfig.__doc__


def _body(argv: list[str]) -> None:
    norm = common.flag_value(argv, "--norm", "--constraint")
    over_file = common.flag_value(argv, "--config") is not None
    if norm and over_file and common.flag_value(argv, "--eps") is None:
        raise ConfigError(
            f"--norm {norm} over a --config file needs --eps as well: the file's radius is "
            "for the file's norm"
        )
    command = common.parse(TrainCommand, _resumed(_plain_resume(argv)), PROG)
    values = dataclasses.asdict(command)
    dry_run, as_json = values.pop("dry_run"), values.pop("json")
    nproc, slurm = values.pop("nproc"), values.pop("slurm")
    devices, profile = values.pop("plan"), values.pop("profile")
    config = TrainConfig(**values)
    if slurm is not None and nproc is not None:
        raise ConfigError(
            f"--nproc {nproc} starts ranks on this machine, --slurm a task for each GPU "
            "of the job (gpus_per_node, ntasks_per_node); leave --nproc out"
        )
    if devices is not None:
        from fastadv.training.plan import plan_run

        found = plan_run(config, devices)
        print(json.dumps(found.to_dict()) if as_json else found.text())
        return
    if slurm is not None:
        from fastadv.runs.slurm import submit

        job = submit(
            MODULE, _here(argv), slurm, config.out_path, program=PROG, dry_run=dry_run
        )
        print(job)
        return
    if nproc is not None:
        from fastadv.runs.launch import launch

        raise SystemExit(launch(MODULE, nproc, _here(argv)))

    from fastadv.runs.distributed import join_ranks
    from fastadv.training.trainer import Trainer

    with join_ranks(config.device) as world:
        trainer = Trainer(config, dry_run=dry_run, world=world, profile=profile)
        if dry_run:
            trainer.describe()
            return
        summary = trainer.fit()
    if not world.leads:
        return
    if as_json:
        result = dataclasses.asdict(summary) | {"run": str(summary.run)}
        print(json.dumps(result))
        return
    print(f"run: {summary.run}")


def _here(argv: list[str]) -> list[str]:
    """`argv` less what says where the run is started: the words of each rank."""
    return common.without_flag(common.without_flag(argv, "--nproc"), "--slurm")


def _plain_resume(argv: list[str]) -> list[str]:
    """`--resume auto` as `--resume`, which starts a run that is not there."""
    words: list[str] = []
    for word in argv:
        if word == "auto" and words[-1:] == ["--resume"]:
            continue
        words.append("--resume" if word == "--resume=auto" else word)
    return words


def _resumed(argv: list[str]) -> list[str]:
    """With --resume and --out, the run's own config comes under the flags."""
    out = common.flag_value(argv, "--out", "--out-dir")
    given = common.flag_value(argv, "--config") is not None
    if "--resume" not in argv or out is None or given:
        return argv
    saved = Path(out).expanduser() / "config.yaml"
    if saved.parent.is_dir() and not (saved.exists() and saved.read_bytes().strip()):
        from fastadv.runs.directory import RunDirectory

        RunDirectory(saved.parent).restore_config()
    return ["--config", str(saved), *argv] if saved.exists() else argv


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(PROG, _body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
