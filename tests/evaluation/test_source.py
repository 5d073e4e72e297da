"""Evaluations of a pretrained network: rows, arrays, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastadv.attacks import PGD, Budget, ThreatModel, make_attack
from fastadv.data import ImageSet, make_loader, open_dataset, subset
from fastadv.errors import ConfigError
from fastadv.evaluation.config import EvaluationConfig
from fastadv.evaluation.journal import Journal
from fastadv.evaluation.rows import store
from fastadv.evaluation.source import (
    SourceEvaluation,
    evaluate_checkpoint,
    evaluate_source,
)
from fastadv.models import create_model, save_model
from fastadv.models.source import Source, open_source
from fastadv.results.settings import EvaluationSetting
from fastadv.results.table import ResultsTable

THREAT = ThreatModel("linf", "4/255")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """An untrained network, which is right on some digits."""
    file = tmp_path_factory.mktemp("source") / "net.safetensors"
    model = create_model("resnet8_cifar", 10, seed=3)
    save_model(model, file, {"resolution": 8, "config": {"augment": "none"}})
    return open_source(str(file), "mine")


def _images() -> ImageSet:
    return subset(open_dataset("digits").test, 50, seed=0)


def _evaluated(source: Source, attack: Any = None, **options: Any) -> SourceEvaluation:
    images = _images()
    loader = make_loader(
        images, batch_size=20, resolution=8, train=False, augment="none", workers=0
    )
    return evaluate_source(source, loader, attack, **options)


def test_clean_and_robust_accuracy_are_two_rows(source: Source, tmp_path: Path) -> None:
    attack = PGD.judge(THREAT, 2)
    evaluated = _evaluated(
        source, attack, seed=4, setting=EvaluationSetting(num_images=50)
    )
    table = ResultsTable(tmp_path / "results")
    store(table, evaluated.rows, evaluated.found, _images())
    clean, robust = table.rows(kind="evaluation", dataset="digits")
    result = evaluated.result
    assert clean.attack is None
    assert robust.attack is not None
    assert (clean.value, robust.value) == pytest.approx(
        (100 * result["clean_acc"], 100 * result["robust_acc"])
    )
    assert robust.low == pytest.approx(100 * result["robust_ci"][0])
    assert robust.value <= clean.value
    assert (clean.n, clean.seed, clean.metric) == (50, 4, "top1")
    assert sum(clean.per_class_total) == 50
    described = attack.describe()
    assert {key: getattr(robust.attack, key) for key in described} == described
    assert (clean.source.name, clean.source.digest) == ("mine", source.digest)
    assert open_source(str(clean.source.given)).digest == source.digest
    assert clean.setting == robust.setting
    assert isinstance(clean.setting, EvaluationSetting)
    assert (clean.setting.num_images, clean.setting.batch_size) == (50, 20)
    assert clean.experiment == robust.experiment == clean.identity != robust.identity
    assert robust.stages == ()
    assert robust.checks is not None
    assert robust.checks.zero_gradient_share == 0


def test_verdicts_and_logits_lie_beside_the_rows(
    source: Source, tmp_path: Path
) -> None:
    evaluated = _evaluated(source, PGD.judge(THREAT, 2))
    table = ResultsTable(tmp_path)
    stored = store(table, evaluated.rows, evaluated.found, _images())
    assert stored == table.rows()
    clean, robust = (table.arrays(row) for row in stored)
    images = evaluated.found.images
    assert images is not None
    for name, values in images.arrays().items():
        np.testing.assert_array_equal(robust[name], values.numpy())
    assert clean["clean_logits"].shape == (50, 10)
    right = robust["clean_logits"].argmax(1) == robust["labels"]
    assert 100 * right.mean() == pytest.approx(stored[0].value)
    assert 100 * (robust["fell_to"] == 1).mean() == pytest.approx(stored[1].value)


def test_the_attacks_of_a_cascade_are_in_its_row(source: Source) -> None:
    pytest.importorskip("pyautoattack")
    budget = Budget(num_steps=3, num_targets=2, num_queries=10)
    evaluated = _evaluated(source, make_attack("autoattack", THREAT, budget))
    robust = evaluated.rows[1]
    assert robust.attack is not None
    assert (robust.attack.name, robust.attack.num_queries) == ("autoattack", 10)
    names = [stage.name for stage in robust.stages]
    assert names == ["apgd-ce", "apgd-t", "fab", "square"]
    assert robust.stages[-1].value == robust.value
    assert robust.stages[0].attacked == sum(evaluated.rows[0].per_class_correct)


def test_identities_tell_numbers_apart(source: Source) -> None:
    def identities(attack: Any, **options: Any) -> list[str | None]:
        rows = _evaluated(source, attack, **options).rows
        return [row.identity for row in rows]

    one = identities(PGD.judge(THREAT, 1))
    assert identities(PGD.judge(THREAT, 1)) == one
    other = identities(PGD.judge(THREAT, 2))
    assert other[0] == one[0]
    assert other[1] != one[1]
    assert not set(identities(PGD.judge(THREAT, 1), seed=1)) & set(one)


def test_a_journal_resumes_and_is_of_the_settings(
    source: Source, tmp_path: Path
) -> None:
    attack = PGD.judge(THREAT, 2)
    whole = _evaluated(source, attack, journal=partial(Journal, tmp_path))
    path = tmp_path / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))  # two of three batches
    opened = partial(Journal, tmp_path, resume=True)
    resumed = _evaluated(source, attack, journal=opened)
    for name in ("clean_acc", "robust_acc", "checks"):
        assert resumed.result[name] == whole.result[name]
    assert json.loads(path.read_text().splitlines()[-1])["event"] == "result"
    assert resumed.found.images is not None
    assert whole.found.images is not None
    for name, values in whole.found.images.arrays().items():
        assert torch.equal(values, resumed.found.images.arrays()[name])
    with pytest.raises(ConfigError, match="num_steps: 2 -> 3"):
        _evaluated(source, PGD.judge(THREAT, 3), journal=opened)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    classes = [*open_dataset("digits").test.classes]
    classes[2], classes[7] = classes[7], classes[2]
    file = tmp_path / "net.safetensors"
    model = create_model("resnet8_cifar", 10, seed=0)
    save_model(model, file, {"resolution": 8, "classes": classes})
    with pytest.raises(ConfigError, match=r"class '\w+' stands where the data has"):
        _evaluated(open_source(str(file)))


def test_a_configuration_names_everything(source: Source, tmp_path: Path) -> None:
    config = EvaluationConfig(
        checkpoint=str(source.file),
        data="digits",
        eps=THREAT.eps,
        norm="linf",
        num_steps=2,
        num_images=50,
        batch_size=20,
        device="cpu",
        workers=0,
        results=str(tmp_path / "results"),
    )
    evaluated = evaluate_checkpoint(config)
    direct = _evaluated(
        source, PGD.judge(THREAT, 2), setting=EvaluationSetting(num_images=50)
    )
    for ours, theirs in zip(evaluated.rows, direct.rows, strict=True):
        assert ours.identity == theirs.identity
        assert ours.value == theirs.value
    assert ResultsTable(config.results).rows() == evaluated.rows
    options = EvaluationConfig(
        checkpoint="c", data="dtd", dataset_option=("root=/data", "partition=2")
    )
    assert options.name_with_options("dtd") == "dtd (partition 2)"
