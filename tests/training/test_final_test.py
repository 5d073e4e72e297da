"""The final test of a run is in a results table in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_runs import tiny

from fastadv.data import open_dataset
from fastadv.files import file_sha256
from fastadv.results.table import ResultsTable
from fastadv.results.verdicts import read_verdicts
from fastadv.training import train

_LABELS = open_dataset("digits").test.labels


@pytest.mark.parametrize(("eps", "eval_images"), [(0.25, 20), (0.25, 1000), (0.0, 20)])
def test_the_table_holds_what_the_log_holds(
    tmp_path: Path, eps: float, eval_images: int
) -> None:
    out = tmp_path / "run"
    train(tiny(out, eps=eps, eval_images=eval_images, num_train=60, epochs=1))
    events = [json.loads(line) for line in (out / "log.jsonl").open()]
    [test] = [event for event in events if event["event"] == "test"]
    clean, *attacked = ResultsTable(out / "results").rows(kind="evaluation")
    assert clean.value == pytest.approx(100 * test["clean_acc"])
    assert (clean.n, clean.target.name, clean.source.eps) == (test["n"], "digits", eps)
    weights = out / "checkpoints" / "best" / "model.safetensors"
    assert clean.source.digest == file_sha256(weights)
    assert clean.provenance.command == "fastadv-train"
    assert len(attacked) == (1 if eps else 0)
    for robust in attacked:
        assert robust.value == pytest.approx(100 * test["robust_acc"])
        assert (robust.n, robust.experiment) == (test["robust_n"], clean.identity)
        assert robust.attack is not None
        assert (robust.attack.num_steps, robust.attack.eps) == (2, eps)
    # The verdicts on the images are there, also where only some of them were attacked.
    table = ResultsTable(out / "results")
    for row in (clean, *attacked):
        verdicts = read_verdicts(table.arrays, row)
        right = np.bincount(verdicts.labels[verdicts.right], minlength=10)
        assert right.tolist() == list(row.per_class_correct)
        np.testing.assert_array_equal(verdicts.labels, _LABELS[verdicts.indices])


def test_a_run_that_is_resumed_at_its_end_adds_nothing(tmp_path: Path) -> None:
    choices = {"num_train": 60, "epochs": 1}
    train(tiny(tmp_path, **choices))
    before = ResultsTable(tmp_path / "results").rows()
    train(tiny(tmp_path, **choices, resume=True))
    assert ResultsTable(tmp_path / "results").rows() == before
