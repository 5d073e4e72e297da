"""The tables of docs/studies/low-resolution.md: accuracies by resolution, and robust leads.

    python bench/low_resolution.py RESULTS

RESULTS is the results table of the sweeps docs/studies/low-resolution.yaml and
low-resolution-tuned.yaml. Accuracies are means over seeds; the tests are those of
fastadv-report, corrected for the comparisons of one protocol.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.comparisons import study_comparisons
from fastadv.reporting.transfer.pairing import Pairing
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable
from fastadv.statistics import mean_interval


def moves(rows: Sequence[Row], robust: Sequence[str], standard: str) -> None:
    """Print how much more a lead is with the least detail than with the most."""
    values = {
        (r.target.name, r.target.downscale or 0, r.source.name, r.seed): r.value
        for r in rows
    }
    seeds = sorted({row.seed for row in rows})
    sides = sorted({row.target.downscale or 0 for row in rows})
    print(f"\n| target | source | lead at {sides[0]} px - lead at {sides[-1]} px | p |")
    print("| --- | --- | ---: | ---: |")
    for target, name in itertools.product(
        sorted({r.target.name for r in rows}), robust
    ):
        found = []
        for seed in seeds:
            least, most = (
                values[target, side, name, seed] - values[target, side, standard, seed]
                for side in (sides[0], sides[-1])
            )
            found.append(least - most)
        mean, low, high = mean_interval(found)
        p = float(stats.ttest_1samp(found, 0).pvalue)
        ends = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
        print(f"| {target} | {name} | {ends} | {p:.2g} |")


def tables(rows: Sequence[Row], pairing: Pairing) -> None:
    """Print both tables of the rows of one protocol as Markdown."""
    sources = sorted({row.source.name: row.source.eps for row in rows}.items(), key=str)
    sources.sort(key=lambda each: each[1] or 0)
    names = [name for name, _ in sources]
    found = study_comparisons(make_cells(rows), pairing).groups["sides"]
    heads = "target", "detail", *names, "robust lead", "95 % interval", "p, corrected"
    print("| " + " | ".join(heads) + " |")
    print("| --- | --- |" + " ---: |" * (len(heads) - 2))
    for pair in found:
        condition = pair.condition
        alike = [
            row
            for row in rows
            if row.target.name == condition.target
            and row.target.downscale == condition.downscale
        ]
        means = [
            f"{statistics.mean(r.value for r in alike if r.source.name == name):.1f}"
            for name in names
        ]
        estimate = pair.estimate
        ends = (
            "-"
            if estimate.low is None or estimate.high is None
            else f"{estimate.low:+.1f} to {estimate.high:+.1f}"
        )
        p = "-" if pair.adjusted is None else f"{pair.adjusted:.2g}"
        which = f"{estimate.value:+.1f} (eps {pair.threat[1]:g})"  # type: ignore[index]
        line = [condition.target, f"{condition.downscale} px", *means, which, ends, p]
        print("| " + " | ".join(line) + " |")
    moves(rows, names[1:], names[0])


def main() -> None:
    """Print the tables of each protocol."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    table = ResultsTable(parser.parse_args().results)
    rows = [row for row in table.rows() if row.setting.kind == "transfer"]
    for mode in sorted({row.setting.mode for row in rows}):
        print(f"\n{mode}\n")
        tables([row for row in rows if row.setting.mode == mode], Pairing(table.arrays))


if __name__ == "__main__":
    main()
