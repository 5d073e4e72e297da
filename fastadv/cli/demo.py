"""fastadv-demo: the whole story on the built-in data, in minutes, ending in a report.

Trains a standard and an L2-robust network on `shapetex`, measures both under attack,
transfers both to handwritten digits, and writes one HTML page. It uses the same pieces
as the other commands and adds nothing but their order.
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastadv.cli import common
from fastadv.cli.report import ReportCommand, make_report
from fastadv.errors import ConfigError
from fastadv.evaluation.config import EvaluationConfig
from fastadv.training.config import TrainConfig
from fastadv.transfer.config import Mode, TransferConfig

PROG = "fastadv-demo"
SOURCE_DATA, TARGET_DATA = "shapetex", "digits"
EPS = 1.0  # L2, pixel units: visible as a faint texture at 32 px
LRS = (0.05, 0.01)
MODES: tuple[Mode, ...] = ("fixed_feature", "full_network")
SOURCES = {"standard": 0.0, "robust": EPS}
_ABOUT = (
    "Two networks of one architecture, one budget and one seed, trained on "
    f"{SOURCE_DATA}: drawn images whose shape is the label, with textures, colours and "
    "backgrounds that are independent of it. The robust one saw only adversarial images "
    f"(l2 {EPS:g}) in training."
)
_NOTE = "in brackets: 95 % intervals; for transfer, lowest and highest seed"
_MARKER = "demo.json"


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Train a standard and a robust network, attack, transfer, report; no download."""

    out: str = "runs/demo"
    """Folder for runs, results and report; it is replaced if a demo made it."""
    arch: str = "resnet14_cifar"
    """Architecture of both networks."""
    epochs: int = 15
    """Training epochs of each network."""
    transfer_epochs: int = 15
    """Number of epochs of full-network fine-tuning."""
    num_transfer: int = 400
    """Number of digits to transfer with."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds of each transfer."""
    seed: int = 0
    """Random seed of the pretraining."""


def run_demo(command: DemoCommand, made_by: Sequence[str]) -> tuple[Path, str]:
    """Run every part; return the path of the report and the table of what came out."""
    from fastadv.evaluation.source import evaluate_checkpoint
    from fastadv.reporting.evaluation import source_summary
    from fastadv.reporting.training import training_section
    from fastadv.results.table import ResultsTable
    from fastadv.training.trainer import train
    from fastadv.transfer.protocol import transfer

    say = functools.partial(print, file=sys.stderr, flush=True)
    out = _fresh(Path(command.out).expanduser())
    table, runs = ResultsTable(out / "results"), {n: str(out / n) for n in SOURCES}
    for name, eps in SOURCES.items():
        say(f"\n== pretraining: {name}")
        config = TrainConfig(
            arch=command.arch,
            eps=eps,
            epochs=command.epochs,
            schedule="onecycle",
            eval_images=200,
            seed=command.seed,
            out=runs[name],
        )
        train(config)
    say(f"\n== under attack: PGD-20, l2 {EPS:g}")
    for run in runs.values():
        evaluation = EvaluationConfig(
            checkpoint=run,
            data=SOURCE_DATA,
            norm="l2",
            eps=EPS,
            num_images=480,
            results=str(table.path),
        )
        evaluate_checkpoint(evaluation)
    for mode, name in itertools.product(MODES, SOURCES):
        say(f"\n== transfer to {TARGET_DATA}: {name}, {mode}")
        tuned = mode == "full_network"
        experiment = TransferConfig(
            source=runs[name],
            name=name,
            dataset=TARGET_DATA,
            mode=mode,
            num_train=command.num_transfer,
            seeds=command.seeds,
            results=str(table.path),
            epochs=command.transfer_epochs if tuned else None,
            lrs=LRS if tuned else None,
        )
        transfer(experiment)
    say("\n== report")
    report = ReportCommand(
        results=str(table.path),
        out=str(out / "report.html"),
        title="fastadv demo: robust pretraining and transfer",
        examples=SOURCE_DATA,
    )
    path, _ = make_report(report, made_by, [training_section(runs, _ABOUT)])
    return path, f"{source_summary(table.rows())}\n{_NOTE}"


def _fresh(out: Path) -> Path:
    """Make an empty directory at `out`; only what an earlier demo made is removed."""
    if out.exists() and any(out.iterdir()):
        if not (out / _MARKER).exists():
            raise ConfigError(f"{out} exists and is not a demo's; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).write_text(json.dumps({"made_by": PROG}))
    return out


def _body(argv: list[str]) -> None:
    command = common.parse(DemoCommand, argv, PROG)
    began = time.monotonic()
    report, table = run_demo(command, [PROG, *argv])
    print(table)
    print(f"report: {report.resolve()}")
    print(f"done in {time.monotonic() - began:.0f} s", file=sys.stderr)


main = functools.partial(common.run, PROG, _body)

if __name__ == "__main__":
    raise SystemExit(main())
