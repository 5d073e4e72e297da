"""How large and how slow a results table becomes: bytes, and seconds to open and append.

    python bench/bench_results.py FOLDER [--rows 100000] [--each 50]

Rows are those of tests/results/tables with other seeds, values and identities, appended
`--each` at a time, as a sweep does. The table stays in FOLDER, which must not exist.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from harness import Results

from fastadv.results.identity import digest
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable

OLD = Path(__file__).parents[1] / "tests" / "results" / "tables" / "schema3"


def made_up_rows(count: int) -> Iterator[Row]:
    """Yield rows that differ as measured ones do."""
    draw = random.Random(0)
    templates = ResultsTable(OLD).rows()
    for number, row in zip(range(count), itertools.cycle(templates)):
        value = draw.uniform(0, 100)
        correct = tuple(draw.randrange(50) for _ in row.per_class_correct)
        yield replace(
            row,
            identity=digest(number),
            experiment=digest(number - bool(row.attack)),
            seed=number % 97,
            value=value,
            low=value - 2,
            high=value + 2,
            val_value=draw.uniform(0, 100),
            per_class_correct=correct,
            wall_seconds=draw.uniform(1, 100),
            source=replace(row.source, name=f"source {number % 40}"),
        )


def seconds(call: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def size(folder: Path) -> tuple[int, float]:
    """Return the number of parts and their megabytes."""
    sizes = [file.stat().st_size for file in folder.glob("*.parquet")]
    return len(sizes), sum(sizes) / 1e6


def main() -> None:
    """Fill a table and measure it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--each", type=int, default=50)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    table = ResultsTable(options.folder)
    rows = list(made_up_rows(options.rows))
    appends = [
        seconds(lambda i=i: table.append(rows[i : i + options.each]))
        for i in range(0, len(rows), options.each)
    ]
    new = lambda **more: ResultsTable(options.folder, **more)  # noqa: E731
    once = new(once=True)
    results = Results("results")
    parts, megabytes = size(options.folder)
    results.add(
        rows=options.rows,
        rows_per_append=options.each,
        append_median_s=sorted(appends)[len(appends) // 2],
        append_longest_s=max(appends),
        append_all_s=sum(appends),
        parts=parts,
        megabytes=megabytes,
        open_and_filter_s=seconds(lambda: new().rows(source="source 3", eps=0.5)),
        columns_s=seconds(lambda: new().columns("source", "dataset", "value")),
        identities_s=seconds(lambda: new().identities()),
        contains_first_s=seconds(lambda: "x" in once),
        contains_then_s=seconds(lambda: "y" in once),
        append_to_it_s=seconds(lambda: new().append(rows[:1])),
        all_rows_s=seconds(lambda: new().rows()),
        compact_s=seconds(lambda: new().compact()),
        compacted_megabytes=sum(
            f.stat().st_size for f in options.folder.glob("*.parquet")
        )
        / 1e6,
        compacted_open_and_filter_s=seconds(
            lambda: new().rows(source="source 3", eps=0.5)
        ),
    )
    results.write()


if __name__ == "__main__":
    main()
