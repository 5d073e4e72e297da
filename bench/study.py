"""What the runs of docs/studies reached, for its tables: accuracies, curves, logs, hashes.

    python bench/study.py RESULTS [--runs RUNS]
    python bench/tables.py

RESULTS is a results table, to which `fastadv-eval` and `fastadv-transfer` wrote;
docs/studies/results holds its evaluations. RUNS holds the run directories, each with the
table of its final test; their logs are copied to docs/studies/logs. Without RUNS those are
read, and RESULTS has the final tests. Lines of
bench/results/study.jsonl about transfers stay where RESULTS has none. Nothing is computed
here but means.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import Results

from fastadv.reporting import training_curves
from fastadv.reporting.transfer.cells import make_cells
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable

PAGES = Path(__file__).parents[1] / "docs" / "studies"


def logs(runs: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Return the log of every run, without the folder its data lay in.

    Args:
        runs: Folder of the runs; their logs are copied to the page's folder.
    """
    found = {}
    for run in sorted(
        (runs or PAGES / "logs").glob("tiny-*"), key=lambda run: run.name
    ):
        file = run / "log.jsonl" if runs else run
        log = found[run.name.removesuffix(".jsonl")] = [
            json.loads(line) for line in file.open()
        ]
        for event in log:
            if "config" in event:
                event["config"]["data"] = Path(event["config"]["data"]).name
    (PAGES / "logs").mkdir(exist_ok=True)
    for name, log in found.items():
        lines = "".join(json.dumps(event) + "\n" for event in log)
        (PAGES / "logs" / f"{name}.jsonl").write_text(lines)
    return found


def pretraining(
    results: Results,
    table: ResultsTable,
    log_of: dict[str, list[dict[str, Any]]],
    runs: Path | None,
) -> None:
    """Add a line per run: its test at the end of training, and AutoAttack's verdict."""
    for name, log in log_of.items():
        rows = table.rows(kind="evaluation", source=name)
        if runs is not None:
            rows += ResultsTable(runs / name / "results").rows(kind="evaluation")
        pgd = _first(rows, lambda row: _attack(row) == "pgd")
        judged = _first(rows, lambda row: _attack(row) == "autoattack")
        clean = [row for row in rows if row.attack is None]
        test = max(clean, key=lambda row: row.n or 0)
        pair = {row.experiment: row for row in clean}
        beside = judged and pair[judged.experiment]
        config = next(event for event in log if event["event"] == "start")["config"]
        results.add(
            what="pretraining",
            run=name,
            eps=config["eps"],
            epochs=config["epochs"],
            clean_acc=test.value / 100,
            images=test.n,
            pgd_acc=pgd and pgd.value / 100,
            pgd_images=pgd and pgd.n,
            attacked_images=judged and judged.n,
            attacked_clean_acc=beside and beside.value / 100,
            autoattack_acc=judged and judged.value / 100,
            sha256=test.source.digest,
        )


def _attack(row: Row) -> str | None:
    return row.attack and row.attack.name


def _first(rows: Iterable[Row], holds: Callable[[Row], object]) -> Row | None:
    return next((row for row in rows if holds(row)), None)


def transfer(results: Results, table: ResultsTable) -> None:
    """Means and standard deviations over seeds, of the experiments of the report."""
    for cell in make_cells(table.rows(kind="transfer")):
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
    parser.add_argument("results", type=Path)
    parser.add_argument("--runs", type=Path)
    options = parser.parse_args()
    results = Results("study")
    before = [json.loads(line) for line in results.path.open()]
    log_of = logs(options.runs)
    table = ResultsTable.existing(options.results)
    pretraining(results, table, log_of, options.runs)
    transfer(results, table)
    if all(row["what"] != "transfer" for row in results.rows):
        results.rows += [row for row in before if row["what"] == "transfer"]
    results.write()
    figure = training_curves(log_of)
    figure.savefig(PAGES / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
