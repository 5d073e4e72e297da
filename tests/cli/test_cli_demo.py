"""fastadv-demo: its table, and its report, from given numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_results import row, typed

from fastadv.cli import demo
from fastadv.errors import ConfigError
from fastadv.reporting.evaluation import source_summary
from fastadv.results.row import AttackRecord, Row, SourceRecord, TargetRecord
from fastadv.results.settings import EvaluationSetting
from fastadv.statistics import wilson

ROOT = Path(__file__).parents[2]

# What the demo measured for README.md: clean and robust images of 480, and accuracy by
# seed that has the means and ranges of its table.
RIGHT = {"standard": (474, 174), "robust": (440, 397)}
TRANSFERRED = {
    ("standard", "fixed_feature"): (81.0, 83.0, 83.2),
    ("standard", "full_network"): (88.6, 89.2, 89.2),
    ("robust", "fixed_feature"): (86.6, 88.3, 88.8),
    ("robust", "full_network"): (91.6, 92.5, 93.4),
}


def test_the_table_is_that_of_the_readme() -> None:
    attack = AttackRecord(name="pgd", norm="l2", eps=1.0, num_steps=20)
    rows = []
    for name, counts in RIGHT.items():
        for right, under in zip(counts, (None, attack), strict=True):
            low, high = wilson(right, 480)
            rows.append(
                Row(
                    source=SourceRecord(name=name),
                    target=TargetRecord(name="shapetex"),
                    setting=EvaluationSetting(num_images=480),
                    attack=under,
                    value=100 * right / 480,
                    low=100 * low,
                    high=100 * high,
                )
            )
    rows += typed(
        row(source=source, dataset="digits", mode=mode, seed=seed, value=value)
        for (source, mode), values in TRANSFERRED.items()
        for seed, value in enumerate(values)
    )
    assert source_summary(rows) in (ROOT / "README.md").read_text()


def test_only_a_demo_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not a demo's"):
        demo._fresh(mine)
    assert (mine / "thesis.tex").exists()
    made = demo._fresh(tmp_path / "demo")
    (made / "old").write_text("")
    assert [path.name for path in demo._fresh(made).iterdir()] == ["demo.json"]
