"""What is measured after each epoch of a training, and that measuring changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tuned_runs import source_file, tuning_config

from fastadv.errors import ConfigError
from fastadv.results.row import EpochRecord
from fastadv.results.table import ResultsTable
from fastadv.transfer import transfer


def test_a_curve_over_epochs_is_that_of_the_row(tmp_path: Path) -> None:
    config = tuning_config(
        source_file(tmp_path), epochs=3, lrs=(0.05,), select_on="none", num_train=100
    )
    [plain] = transfer(config)
    [row] = transfer(replace(config, test_epochs=(1, 3)))
    assert row.per_class_correct == plain.per_class_correct
    assert row.identity != plain.identity  # so that a sweep measures what it lacks
    assert (plain.history, row.setting) == ((), plain.setting)
    # Until the rate falls after a third, a training of one epoch is the same.
    [short] = transfer(replace(config, epochs=1))
    first, last = row.history
    assert first == EpochRecord(epoch=1, value=pytest.approx(short.value))
    assert last == EpochRecord(epoch=3, value=pytest.approx(row.value))
    arrays = ResultsTable(config.results).arrays(row)
    assert arrays["history_loss"].shape == (1, 3)
    assert arrays["history_loss"][0, 2] < arrays["history_loss"][0, 0]
    np.testing.assert_array_equal(
        np.isnan(arrays["history_test"]), [[False, True, False]]
    )
    assert np.isnan(arrays["history_val"]).all()


@pytest.mark.parametrize("refit", [False, True])
def test_every_learning_rate_has_its_history(refit: bool, tmp_path: Path) -> None:
    config = tuning_config(
        source_file(tmp_path),
        epochs=2,
        lrs=(0.05, 1e-9),
        refit="all" if refit else "none",
        num_train=100,
    )
    [row] = transfer(replace(config, test_epochs=(1, 2)))
    arrays = ResultsTable(config.results).arrays(row)
    # The one that gave the network is the last.
    expected = [0.05, 1e-9, 0.05] if refit else [1e-9, 0.05]
    assert arrays["history_lr"].tolist() == expected
    assert arrays["history_refit"].tolist() == [False] * (len(expected) - 1) + [refit]
    chosen = arrays["history_val"][expected.index(0.05)]
    assert 100 * np.nanmax(chosen) == pytest.approx(row.val_value)
    assert row.history[-1].value == pytest.approx(row.value)
    assert 100 * arrays["history_test"][-1, -1] == pytest.approx(row.value)


def test_epochs_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    file = source_file(tmp_path)
    with pytest.raises(ConfigError, match="5 is beyond the 2 epochs"):
        transfer(tuning_config(file, epochs=2, test_epochs=(1, 5)))
    with pytest.raises(ConfigError, match="belongs to networks that train"):
        tuning_config(file, mode="fixed_feature", test_epochs=(1,))
