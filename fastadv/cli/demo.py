"""fastadv-demo: the whole story on the built-in data, in minutes, ending in a report.

Trains a standard and an L2-robust network on `shapetex`, measures both under attack,
transfers both to handwritten digits, and writes one HTML page. It uses the same pieces
as the other commands and nothing of its own but the order.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastadv.cli import common
from fastadv.cli.eval import EvalCommand, evaluate_checkpoint
from fastadv.errors import ConfigError

if TYPE_CHECKING:
    from fastadv.reporting import Section

PROG = "fastadv-demo"
SOURCE_DATA, TARGET_DATA = "shapetex", "digits"
EPS = 1.0  # L2, pixel units: visible as a faint texture at 32 px
LRS = (0.05, 0.01)
_MARKER = "demo.json"


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Train a standard and a robust network, attack, transfer, report; no download."""

    out: str = "runs/demo"
    """Where runs, results and report go; replaced if a demo made it."""
    arch: str = "resnet14_cifar"
    """Architecture of both networks."""
    epochs: int = 15
    """Training epochs of each."""
    transfer_epochs: int = 15
    """Epochs of full-network fine-tuning."""
    num_transfer: int = 400
    """Digits to transfer with."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each transfer."""
    seed: int = 0
    """Of the pretraining."""


def run_demo(command: DemoCommand) -> tuple[Path, str]:
    """Run every part; returns the path of the report and the table of what came out."""
    out = _fresh(Path(command.out).expanduser())
    sources = {"standard": out / "standard", "robust": out / "robust"}
    for name, run in sources.items():
        _heading(f"pretraining: {name}")
        _pretrain(command, run, 0.0 if name == "standard" else EPS)
    _heading(f"under attack: PGD-20, l2 {EPS:g}")
    accuracy = {
        name: evaluate_checkpoint(
            EvalCommand(
                checkpoint=str(run),
                data=SOURCE_DATA,
                norm="l2",
                eps=EPS,
                num_images=480,
            )
        )
        for name, run in sources.items()
    }
    for name, found in accuracy.items():
        _say(
            f"{name}: clean {100 * found['clean_acc']:.1f} %, under attack "
            f"{100 * found['robust_acc']:.1f} % of {found['n']}"
        )
    rows = []
    for mode in ("fixed_feature", "full_network"):
        for name, run in sources.items():
            _heading(f"transfer to {TARGET_DATA}: {name}, {mode}")
            rows += _transfer(command, run, name, mode, out / "results")
    _heading("report")
    return _report(command, out, sources, accuracy, rows), _summary(accuracy, rows)


def _summary(accuracy: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """One line per source: accuracy, accuracy under attack, transfer."""
    from fastadv.reporting import format_percent_ci, text_table

    modes = list(dict.fromkeys(row["mode"] for row in rows))
    lines = []
    for name, found in accuracy.items():
        line = [name, *_shares(found)]
        for mode in modes:
            values = [
                r["value"] for r in rows if (r["source"], r["mode"]) == (name, mode)
            ]
            mean = sum(values) / len(values)
            line.append(format_percent_ci(mean, min(values), max(values)))
        lines.append(line)
    columns = ["source", "clean", f"PGD-20 l2 {EPS:g}"]
    table = text_table(columns + [f"{TARGET_DATA}, {mode}" for mode in modes], lines)
    return (
        f"{table}\nin brackets: 95 % intervals; for transfer, lowest and highest seed"
    )


def _shares(found: dict[str, Any]) -> list[str]:
    """Clean and robust accuracy of an evaluation, with their intervals."""
    from fastadv.reporting import format_percent_ci

    return [
        format_percent_ci(100 * found[f"{kind}_acc"], *_percent(found[f"{kind}_ci"]))
        for kind in ("clean", "robust")
    ]


def _fresh(out: Path) -> Path:
    """An empty directory at `out`; only what an earlier demo made is removed."""
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
) -> list[dict[str, Any]]:
    from fastadv.transfer.config import TransferConfig
    from fastadv.transfer.protocol import transfer

    tuning: dict[str, Any] = {}
    if mode == "full_network":
        tuning = {"epochs": command.transfer_epochs, "lrs": LRS}
    return transfer(
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
    command: DemoCommand,
    out: Path,
    sources: dict[str, Path],
    accuracy: dict[str, dict[str, Any]],
    rows: list[dict[str, Any]],
) -> Path:
    from fastadv.environment import provenance
    from fastadv.reporting import write_report

    sections = [
        _attack_section(accuracy, sources),
        _transfer_section(rows, command, sources),
        _training_section(sources, command),
    ]
    about = {"made": datetime.now().astimezone().isoformat(timespec="seconds")}
    about |= {k: v for k, v in provenance().items() if v is not None}
    return write_report(
        out / "report.html",
        "fastadv demo: robust pretraining and transfer",
        sections,
        about,
    )


def _attack_section(
    accuracy: dict[str, dict[str, Any]], sources: dict[str, Path]
) -> Section:
    from fastadv.attacks import PGD, ThreatModel
    from fastadv.data import make_loader, open_dataset, subset
    from fastadv.models import load_model
    from fastadv.reporting import (
        Section,
        Table,
        accuracy_under_attack,
        adversarial_examples,
        loss_gradients,
    )

    models = {name: load_model(run) for name, run in sources.items()}
    resolution = accuracy["standard"]["resolution"]
    test = open_dataset(SOURCE_DATA, resolution=resolution).test
    shown = subset(test, len(test.classes), seed=0)
    batch = next(
        iter(make_loader(shown, batch_size=6, resolution=resolution, train=False))
    )
    attack = PGD.judge(ThreatModel("l2", EPS), 20, random_start=False, keep="last")
    examples = adversarial_examples(
        models, batch.images, batch.labels, test.classes, attack
    )
    gradients = loss_gradients(models, batch.images, batch.labels)
    cells = [[name, *_shares(found)] for name, found in accuracy.items()]
    return Section(
        "Under attack",
        [
            "Two networks of one architecture, one budget and one seed; the robust one saw "
            f"only adversarial images (l2 {EPS:g}) in training. Both are attacked with "
            f"PGD-20 within l2 {EPS:g}; an image counts when no iterate changes its class."
        ],
        [
            (
                accuracy_under_attack(accuracy, attack="PGD-20"),
                "Accuracy on clean images and under attack, with 95 % intervals.",
            ),
            (
                examples,
                "Clean images, adversarial ones, and the difference, amplified.",
            ),
            (gradients, "Gradient of the loss with respect to the pixels."),
        ],
        [
            Table(
                ["source", "clean", "PGD-20"],
                cells,
                f"Accuracy on {accuracy['standard']['n']} test images, 95 % intervals.",
            )
        ],
        "".join(
            f"fastadv-eval --checkpoint {run} --data {SOURCE_DATA} --eps {EPS:g} --norm l2 "
            "--num-images 480\n"
            for run in sources.values()
        ),
    )


def _percent(interval: Sequence[float]) -> list[float]:
    return [100 * bound for bound in interval]


def _transfer_section(
    rows: list[dict[str, Any]], command: DemoCommand, sources: dict[str, Path]
) -> Section:
    from fastadv.reporting import Section, Table, format_percent_ci, transfer_bars

    cells = [
        [
            row["source"],
            row["mode"],
            row["seed"],
            row["num_train"],
            format_percent_ci(row["value"], row["ci_low"], row["ci_high"]),
        ]
        for row in rows
    ]
    seeds = " ".join(map(str, command.seeds))
    common_flags = (
        f"--dataset {TARGET_DATA} --num-train {command.num_transfer} --seeds {seeds}"
    )
    tuning = f"--epochs {command.transfer_epochs} --lrs {' '.join(map(str, LRS))}"
    commands = "".join(
        f"fastadv-transfer --source {run} --name {name} {common_flags} --mode {mode} "
        f"--results {run.parent / 'results'}\n"
        for mode in ("fixed_feature", f"full_network {tuning}")
        for name, run in sources.items()
    )
    return Section(
        f"Transfer to {TARGET_DATA}",
        [
            "Both networks on handwritten digits they never saw: with a logistic regression "
            "on their frozen features, and fine-tuned whole. Subset, validation split and "
            "head differ between seeds; the test images do not."
        ],
        [(transfer_bars(rows), f"Accuracy on {TARGET_DATA} by source and mode.")],
        [
            Table(
                ["source", "mode", "seed", "training images", "accuracy"],
                cells,
                f"Every run, on {rows[0]['num_test']} test images; 95 % intervals.",
            )
        ],
        commands,
    )


def _training_section(sources: dict[str, Path], command: DemoCommand) -> Section:
    from fastadv.reporting import Section, training_curves
    from fastadv.runs.directory import RunDirectory

    events = {name: RunDirectory(run).events() for name, run in sources.items()}
    commands = "".join(
        f"fastadv-train --arch {command.arch} --eps {eps:g} --epochs {command.epochs} "
        f"--schedule onecycle --eval-images 200 --seed {command.seed} --out {run}\n"
        for run, eps in zip(sources.values(), (0.0, EPS), strict=True)
    )
    return Section(
        "Training",
        [
            f"{command.arch} on {SOURCE_DATA}: procedural images whose shape is the label, "
            "with textures, colours and backgrounds that are independent of it."
        ],
        [(training_curves(events), "Training loss and validation accuracy by epoch.")],
        command=commands,
    )


def _body(argv: list[str]) -> None:
    command = common.parse(DemoCommand, argv, PROG)
    began = time.monotonic()
    report, table = run_demo(command)
    print(table)
    print(f"report: {report.resolve()}")
    _say(f"done in {time.monotonic() - began:.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(PROG, _body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
