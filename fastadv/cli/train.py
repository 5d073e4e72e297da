"""fastadv-train: pretrain a classifier, adversarially or not."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

from fastadv.cli import common
from fastadv.cli.train_flags import LaunchFlags
from fastadv.cli.words import flag_value, without_flag
from fastadv.errors import ConfigError
from fastadv.training.config import TrainConfig

PROG, MODULE = "fastadv-train", "fastadv.cli.train"


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainConfig, LaunchFlags):  # noqa: D101, it shows the help of TrainConfig
    __doc__ = TrainConfig.__doc__


def _body(argv: list[str]) -> None:
    norm = flag_value(argv, "--norm", "--constraint")
    over_file = flag_value(argv, "--config") is not None
    if norm and over_file and flag_value(argv, "--eps") is None:
        raise ConfigError(
            f"--norm {norm} over a --config file needs --eps as well: the file's radius is "
            "for the file's norm"
        )
    command = common.parse(TrainCommand, _resumed(_plain_resume(argv)), PROG)
    config = common.part(command, TrainConfig)
    nproc, slurm, dry_run = command.nproc, command.slurm, command.dry_run
    if slurm is not None and nproc is not None:
        raise ConfigError(
            f"--nproc {nproc} starts ranks on this machine, --slurm a task for each GPU "
            "of the job (gpus_per_node, ntasks_per_node); leave --nproc out"
        )
    if command.plan is not None:
        from fastadv.training.plan import plan_run

        found = plan_run(config, command.plan)
        common.show(command, found.to_dict, found.text)
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
        trainer = Trainer(config, dry_run=dry_run, world=world, profile=command.profile)
        if dry_run:
            trainer.describe()
            return
        summary = trainer.fit()
    if world.leads:
        common.show(
            command,
            lambda: dataclasses.asdict(summary) | {"run": str(summary.run)},
            lambda: f"run: {summary.run}",
        )


def _here(argv: list[str]) -> list[str]:
    """Return the words of each rank: `argv` without the flags of where it starts."""
    return without_flag(without_flag(argv, "--nproc"), "--slurm")


def _plain_resume(argv: list[str]) -> list[str]:
    """Return `argv` with `--resume` for `--resume auto`."""
    words: list[str] = []
    for word in argv:
        if word == "auto" and words[-1:] == ["--resume"]:
            continue
        words.append("--resume" if word == "--resume=auto" else word)
    return words


def _resumed(argv: list[str]) -> list[str]:
    """Return `argv` with the config of the run that --resume and --out name, if any."""
    out = flag_value(argv, "--out", "--out-dir")
    given = flag_value(argv, "--config") is not None
    if "--resume" not in argv or out is None or given:
        return argv
    saved = Path(out).expanduser() / "config.yaml"
    if saved.parent.is_dir() and not (saved.exists() and saved.read_bytes().strip()):
        from fastadv.runs.directory import RunDirectory

        RunDirectory(saved.parent).restore_config()
    return ["--config", str(saved), *argv] if saved.exists() else argv


main = functools.partial(common.run, PROG, _body)

if __name__ == "__main__":
    raise SystemExit(main())
