"""fastadv-demo: the whole story on the built-in data, in minutes, ending in a report.

Trains a standard and an L2-robust network on `shapetex`, measures both under attack,
transfers both to handwritten digits, and writes one HTML page. It uses the same pieces
as the other commands and adds nothing but their order.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastadv.cli import common
from fastadv.cli.report import ReportCommand, make_report
from fastadv.errors import ConfigError
from fastadv.evaluation.config import EvaluationConfig

if TYPE_CHECKING:
    from fastadv.results.row import Row

PROG = "fastadv-demo"
SOURCE_DATA, TARGET_DATA = "shapetex", "digits"
EPS = 1.0  # L2, pixel units: visible as a faint texture at 32 px
LRS = (0.05, 0.01)
MODES = ("fixed_feature", "full_network")
_MARKER = "demo.json"


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Train a standard and a robust network, attack, transfer, report; no download."""

    out: str = "runs/demo"
    """Where runs, results and report go; replaced if a demo made it."""
    arch: str = "resnet14_cifar"
    """Architecture of both networks."""
    epochs: int = 15
    """Training epochs of each network."""
    transfer_epochs: int = 15
    """Epochs of full-network fine-tuning."""
    num_transfer: int = 400
    """Digits to transfer with."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each transfer."""
    seed: int = 0
    """Random seed of the pretraining."""


def run_demo(command: DemoCommand) -> tuple[Path, str]:
    """Run every part; return the path of the report and the table of what came out."""
    from fastadv.evaluation.source import evaluate_checkpoint
    from fastadv.results.table import ResultsTable

    out = _fresh(Path(command.out).expanduser())
    sources = {"standard": out / "standard", "robust": out / "robust"}
    for name, run in sources.items():
        _heading(f"pretraining: {name}")
        _pretrain(command, run, 0.0 if name == "standard" else EPS)
    _heading(f"under attack: PGD-20, l2 {EPS:g}")
    accuracy = {
        name: evaluate_checkpoint(
            EvaluationConfig(
                checkpoint=str(run),
                data=SOURCE_DATA,
                norm="l2",
                eps=EPS,
                num_images=480,
                results=str(out / "results"),
            )
        ).result
        for name, run in sources.items()
    }
    for name, found in accuracy.items():
        _say(
            f"{name}: clean {100 * found['clean_acc']:.1f} %, under attack "
            f"{100 * found['robust_acc']:.1f} % of {found['n']}"
        )
    for mode in MODES:
        for name, run in sources.items():
            _heading(f"transfer to {TARGET_DATA}: {name}, {mode}")
            _transfer(command, run, name, mode, out / "results")
    _heading("report")
    rows = ResultsTable(out / "results").rows(kind="transfer")
    return _report(out, sources, accuracy), _summary(accuracy, rows)


def _summary(accuracy: dict[str, dict[str, Any]], rows: list[Row]) -> str:
    """Return a table of one line per source: accuracy, under attack, after transfer."""
    from fastadv.reporting import format_percent_ci, text_table
    from fastadv.results.settings import TransferSetting

    lines = []
    for name, found in accuracy.items():
        line = [name]
        for kind in ("clean", "robust"):
            shares = (found[f"{kind}_acc"], *found[f"{kind}_ci"])
            line.append(format_percent_ci(*(100 * share for share in shares)))
        for mode in MODES:
            values = [
                row.value
                for row in rows
                if isinstance(row.setting, TransferSetting)
                and (row.source.name, row.setting.mode) == (name, mode)
            ]
            mean = sum(values) / len(values)
            line.append(format_percent_ci(mean, min(values), max(values)))
        lines.append(line)
    columns = ["source", "clean", f"PGD-20 l2 {EPS:g}"]
    table = text_table(columns + [f"{TARGET_DATA}, {mode}" for mode in MODES], lines)
    return (
        f"{table}\nin brackets: 95 % intervals; for transfer, lowest and highest seed"
    )


def _fresh(out: Path) -> Path:
    """Make an empty directory at `out`; only what an earlier demo made is removed."""
    if out.exists() and any(out.iterdir()):
        if not (out / _MARKER).exists():
            raise ConfigError(f"{out} exists and is not a demo's; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).write_text(json.dumps({"made_by": PROG}))
    return out


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _heading(text: str) -> None:
    _say(f"\n== {text}")


def _pretrain(command: DemoCommand, run: Path, eps: float) -> None:
    from fastadv.training.config import TrainConfig
    from fastadv.training.trainer import train

    train(
        TrainConfig(
            arch=command.arch,
            eps=eps,
            epochs=command.epochs,
            schedule="onecycle",
            eval_images=200,
            seed=command.seed,
            out=str(run),
        )
    )


def _transfer(
    command: DemoCommand, run: Path, name: str, mode: Any, results: Path
) -> None:
    from fastadv.transfer.config import TransferConfig
    from fastadv.transfer.protocol import transfer

    tuning: dict[str, Any] = {}
    if mode == "full_network":
        tuning = {"epochs": command.transfer_epochs, "lrs": LRS}
    transfer(
        TransferConfig(
            source=str(run),
            name=name,
            dataset=TARGET_DATA,
            mode=mode,
            num_train=command.num_transfer,
            seeds=command.seeds,
            results=str(results),
            **tuning,
        )
    )


def _report(
    out: Path, sources: dict[str, Path], accuracy: dict[str, dict[str, Any]]
) -> Path:
    """Write the report of the results table, with how the sources were trained."""
    from fastadv.reporting import Section, accuracy_under_attack, training_curves
    from fastadv.runs.directory import RunDirectory

    logs = {name: RunDirectory(run).events() for name, run in sources.items()}
    first = Section(
        "Two sources",
        [
            f"Two networks of one architecture, one budget and one seed, trained on "
            f"{SOURCE_DATA}: drawn images whose shape is the label, with textures, colours "
            "and backgrounds that are independent of it. The robust one saw only "
            f"adversarial images (l2 {EPS:g}) in training. Both are attacked with PGD-20 "
            f"within l2 {EPS:g}; an image counts when no iterate changes its class."
        ],
        [
            (training_curves(logs), "Training loss and validation accuracy by epoch."),
            (
                accuracy_under_attack(accuracy, attack="PGD-20"),
                f"Accuracy on {accuracy['standard']['n']} test images, clean and under "
                "attack, with 95 % intervals.",
            ),
        ],
    )
    command = ReportCommand(
        results=str(out / "results"),
        out=str(out / "report.html"),
        title="fastadv demo: robust pretraining and transfer",
        examples=SOURCE_DATA,
    )
    return make_report(command, [first])[0]


def _body(argv: list[str]) -> None:
    command = common.parse(DemoCommand, argv, PROG)
    began = time.monotonic()
    report, table = run_demo(command)
    print(table)
    print(f"report: {report.resolve()}")
    _say(f"done in {time.monotonic() - began:.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return common.run(PROG, _body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
