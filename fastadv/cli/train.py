"""fastadv-train: pretrain a classifier, adversarially or not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from fastadv.cli import common
from fastadv.errors import ConfigError
from fastadv.training.config import TrainConfig

PROG = "fastadv-train"


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainConfig):  # noqa: D101, it shows the help of TrainConfig
    __doc__ = TrainConfig.__doc__

    dry_run: Annotated[bool, arg(help="Open the data, build the model, and stop.")] = (
        False
    )
    json: Annotated[bool, arg(help="Print the result as one JSON object.")] = False


def _body(argv: list[str]) -> None:
    norm = common.flag_value(argv, "--norm", "--constraint")
    if norm and "--config" in argv and common.flag_value(argv, "--eps") is None:
        raise ConfigError(
            f"--norm {norm} over a --config file needs --eps as well: the file's radius is "
            "for the file's norm"
        )
    command = common.parse(TrainCommand, _resumed(argv), PROG)
    values = dataclasses.asdict(command)
    dry_run, as_json = values.pop("dry_run"), values.pop("json")
    config = TrainConfig(**values)

    from fastadv.training.trainer import Trainer

    trainer = Trainer(config, dry_run=dry_run)
    if dry_run:
        trainer.describe()
        return
    summary = trainer.fit()
    if as_json:
        result = dataclasses.asdict(summary) | {"run": str(summary.run)}
        print(json.dumps(result))
        return
    print(f"run: {summary.run}")


def _resumed(argv: list[str]) -> list[str]:
    """With --resume and --out, the run's own config comes under the flags."""
    out = common.flag_value(argv, "--out", "--out-dir")
    given = common.flag_value(argv, "--config") is not None
    if "--resume" not in argv or out is None or given:
        return argv
    saved = Path(out) / "config.yaml"
    return ["--config", str(saved), *argv] if saved.exists() else argv


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(PROG, _body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
