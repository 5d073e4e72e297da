"""What the runs of docs/studies reached, for its tables: accuracies, curves, logs, hashes.

    python bench/study.py RUNS RESULTS
    python bench/tables.py

RUNS holds the run directories of the study, each with the journal of `fastadv-eval --out
RUNS/NAME/autoattack`; RESULTS is its results table. Nothing is computed here but means.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import Results

from fastadv.files import file_sha256
from fastadv.reporting import training_curves
from fastadv.reporting.transfer.cells import make_cells
from fastadv.results.table import ResultsTable

PAGES = Path(__file__).parents[1] / "docs" / "studies"


def events(run: Path) -> list[dict[str, Any]]:
    """The log of a run, without the folder its data lay in."""
    found = [json.loads(line) for line in (run / "log.jsonl").open()]
    for event in found:
        if "config" in event:
            event["config"]["data"] = Path(event["config"]["data"]).name
    return found


def judgement(run: Path) -> dict[str, Any]:
    """What AutoAttack found, empty where it was not run to its end."""
    journal = run / "autoattack" / "log.jsonl"
    if journal.exists():
        for event in map(json.loads, journal.open()):
            if event["event"] == "result":
                return event
    return {}


def pretraining(results: Results, runs: Path) -> dict[str, list[dict[str, Any]]]:
    """One row per run; its log goes to the page's folder."""
    logs = {}
    for run in sorted(runs.glob("tiny-*"), key=lambda run: run.name):
        log = logs[run.name] = events(run)
        (PAGES / "logs").mkdir(exist_ok=True)
        lines = "".join(json.dumps(event) + "\n" for event in log)
        (PAGES / "logs" / f"{run.name}.jsonl").write_text(lines)
        test = next(event for event in log if event["event"] == "test")
        config = next(event for event in log if event["event"] == "start")["config"]
        judged = judgement(run)
        results.add(
            what="pretraining",
            run=run.name,
            eps=config["eps"],
            epochs=config["epochs"],
            clean_acc=test["clean_acc"],
            images=test["n"],
            pgd_acc=test.get("robust_acc"),
            pgd_images=test.get("robust_n"),
            attacked_images=judged.get("n"),
            attacked_clean_acc=judged.get("clean_acc"),
            autoattack_acc=judged.get("robust_acc"),
            sha256=file_sha256(run / "checkpoints" / "best" / "model.safetensors"),
        )
    return logs


def transfer(results: Results, table: Path) -> None:
    """Means and standard deviations over seeds, of the experiments of the report."""
    for cell in make_cells(ResultsTable(table).rows(kind="transfer")):
        accuracies = list(cell.values.values())
        results.add(
            what="transfer",
            **asdict(cell.condition),
            target=cell.condition.target,
            trains=cell.condition.trains,
            source=cell.source,
            source_eps=None if cell.threat is None else cell.threat[1],
            num_pool=cell.n,
            complete=cell.complete,
            seeds=len(accuracies),
            mean=statistics.mean(accuracies),
            std=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    results = Results("study")
    logs = pretraining(results, options.runs)
    transfer(results, options.results)
    results.write()
    figure = training_curves(logs)
    figure.savefig(PAGES / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
