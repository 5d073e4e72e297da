"""The folder of a table: what its name means, and processes that write to it at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from result_rows import transfer_row
from small_runs import environment

from fastadv.results.table import ResultsTable


def test_a_folder_name_is_no_column(tmp_path: Path) -> None:
    """Arrow can read `seed=7/` as a column seed of value 7."""
    for name in ("seed=7", "eps=3"):
        table = ResultsTable(tmp_path / name / "results")
        table.append([transfer_row(seed=1)])
        assert table.rows() == [transfer_row(seed=1)]


_APPEND = """
import sys
from fastadv.results.row import Row, SourceRecord, TargetRecord
from fastadv.results.settings import EvaluationSetting
from fastadv.results.table import ResultsTable
table = ResultsTable(sys.argv[1])
for i in range(40):
    source, target = SourceRecord(name=sys.argv[2]), TargetRecord(name="x")
    setting = EvaluationSetting()
    table.append([Row(source=source, target=target, setting=setting, seed=i, value=1.0)])
"""


def test_processes_append_at_once(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _APPEND, str(tmp_path / "results")]
    running = [
        subprocess.Popen([*words, name], env=environment()) for name in ("a", "b", "c")
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    rows = ResultsTable(tmp_path / "results").rows()
    assert len(rows) == 120
    for name in ("a", "b", "c"):  # nothing lost, and each in its own order
        assert [r.seed for r in rows if r.source.name == name] == list(range(40))
    assert [
        p.name for p in (tmp_path / "results").iterdir() if p.suffix == ".tmp"
    ] == []
