"""Both ways of fitting return the network whose accuracy the row states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tuned_runs import source_file, tuning_config

from fastadv.evaluation.accuracy import Accuracy
from fastadv.evaluation.judging import evaluate
from fastadv.models import NormalizedModel
from fastadv.transfer import fixed, transfer, tuned
from fastadv.transfer.experiment import Experiment


def _accuracy(experiment: Experiment, model: NormalizedModel | None, part: Any) -> Any:
    assert model is not None
    found: Accuracy = evaluate(model, experiment.loader(part, train=False)).clean
    return found.correct


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_a_head_on_cached_features_becomes_a_network(
    solver: str, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"mode": "fixed_feature", "num_train": 200, "seeds": (0, 1)}
    if solver == "sgd":
        words |= {"lrs": (1.0, 1e-3), "epochs": 40, "batch_size": 16}
    experiment = Experiment(tuning_config(source_file(tmp_path), **words))
    splits = [experiment.split(seed) for seed in (0, 1)]
    first, second = fixed.fit(experiment, splits)
    test = experiment.splits.test
    for fitted in (first, second):
        assert fitted.head is not None
        by_head = fitted.head.evaluate(experiment.features.test()).clean.correct
        by_network = _accuracy(experiment, fitted.model, test)
        assert (by_head - by_network).abs().sum() <= 2  # of 500 images, to rounding
        assert by_head.sum() > 100  # chance is 50
    # Each has its own head, all have the tensors of one trunk, which stayed as it was.
    assert first.model is not None
    assert second.model is not None
    assert not torch.equal(first.model.head.weight, second.model.head.weight)
    before = experiment.load_model().state_dict()
    mine, other = first.model.state_dict(), second.model.state_dict()
    for name, tensor in before.items():
        if not name.startswith("net.linear."):
            assert mine[name].data_ptr() == other[name].data_ptr()
            assert torch.equal(mine[name], tensor)
    assert experiment.frozen.num_classes == 3


def test_a_head_that_fits_no_network_is_returned_alone(tmp_path: Path) -> None:
    config = tuning_config(
        source_file(tmp_path, "squeezenet1_1"), mode="fixed_feature", resolution=32
    )
    experiment = Experiment(config)
    [fitted] = fixed.fit(experiment, [experiment.split(0)])
    assert fitted.model is None
    assert fitted.head is not None


def test_fine_tuning_returns_the_network_it_chose(tmp_path: Path) -> None:
    # The second learning rate is far too small, so the first is chosen.
    config = tuning_config(
        source_file(tmp_path), lrs=(0.05, 1e-9), num_train=200, epochs=2
    )
    experiment = Experiment(config)
    split = experiment.split(0)
    assert split.val is not None
    fitted = tuned.fit(experiment, split)
    chosen = fitted.chosen["chosen_lr"], fitted.chosen["chosen_epoch"]
    assert (chosen, fitted.head) == ((0.05, 2), None)
    right = _accuracy(experiment, fitted.model, split.val).sum()
    assert fitted.value == pytest.approx(float(right) / len(split.val))
    [row] = transfer(config)
    correct = _accuracy(experiment, fitted.model, experiment.splits.test)
    assert row.per_class_correct == tuple(correct.tolist())
