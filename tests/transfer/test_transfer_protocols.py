"""Both protocols against what they claim, and the rows they leave."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared_data import shared
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_runs import tiny

from fastadv.cli import transfer as command
from fastadv.data import make_loader, open_dataset, subset, train_val_split
from fastadv.errors import CheckpointError, ConfigError, DataError, TrainingDiverged
from fastadv.files import file_sha256
from fastadv.models import (
    NormalizedModel,
    create_model,
    load_model,
    save_model,
    state_hash,
)
from fastadv.models.source import Source
from fastadv.models.view import AttackView
from fastadv.statistics import wilson
from fastadv.training import train
from fastadv.transfer import ResultsTable, TransferConfig, transfer
from fastadv.transfer.experiment import Experiment
from fastadv.transfer.identity import row_identity
from fastadv.transfer.protocol import TransferRun

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A robust run on digits, of 16 px images."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "robust"
    train(tiny(out, num_train=100, epochs=1))
    return out


def _config(source: Path, results: Path, **changes: Any) -> TransferConfig:
    values: dict[str, Any] = {
        "source": str(source),
        "dataset": "digits",
        "num_train": 200,
        "results": str(results),
        "device": "cpu",
    }
    return TransferConfig(**(values | changes))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[NormalizedModel]:
    """Every copy of the source that a transfer loads."""
    models: list[NormalizedModel] = []
    real = Source.load

    def loading(self: Source) -> NormalizedModel:
        models.append(real(self))
        return models[-1]

    monkeypatch.setattr(Source, "load", loading)
    return models


# ---- fixed features ----


def _pixels(images: Any) -> torch.Tensor:
    """All images as the loader resizes them, in [0, 1]."""
    loader = make_loader(images, batch_size=500, resolution=16, train=False)
    return torch.cat([batch.images for batch in loader]) / 255


def _by_hand(source: Path, seed: int) -> tuple[float, float, float]:
    """Test accuracy, chosen C and validation accuracy, with scikit-learn alone."""
    splits = open_dataset("digits")
    pool = subset(splits.train, 200, seed)
    parts = [*train_val_split(pool, 0.1, seed), splits.test, pool]
    model = load_model(source)
    with torch.no_grad():
        features = [model.features(_pixels(part)).numpy() for part in parts]
    labels = [part.labels for part in parts]
    scaler = StandardScaler().fit(features[0])
    train_x, val_x = (scaler.transform(x) for x in features[:2])
    scores = []
    for strength in STRENGTHS:
        head = LogisticRegression(C=strength, max_iter=1000).fit(train_x, labels[0])
        scores.append((head.score(val_x, labels[1]), -strength))
    value, strength = max(scores)
    # The head that is tested is fitted to training and validation images together.
    whole = make_pipeline(
        StandardScaler(), LogisticRegression(C=-strength, max_iter=1000)
    ).fit(features[3], labels[3])
    return 100 * whole.score(features[2], labels[2]), -strength, 100 * value


def test_fixed_features_equal_an_independent_computation(
    source: Path, tmp_path: Path
) -> None:
    rows = transfer(_config(source, tmp_path / "results", seeds=(0, 1)))
    for row in rows:
        value, strength, val_value = _by_hand(source, row.seed)
        # Folding BatchNorm rounds differently: one image of 500 may change sides.
        assert row.value == pytest.approx(value, abs=0.2 + 1e-9)
        assert row.val_value == pytest.approx(val_value)
        assert row.setting.chosen_c == strength
        assert row.value > 50  # chance is 10
    assert rows[0].value != rows[1].value


def test_features_are_computed_once_and_the_trunk_stays(
    source: Path,
    tmp_path: Path,
    loaded: list[NormalizedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    real = AttackView.features

    def embedding(view: AttackView, z: torch.Tensor) -> torch.Tensor:
        sizes.append(len(z))
        return real(view, z)

    monkeypatch.setattr(AttackView, "features", embedding)
    file = source / "checkpoints" / "best" / "model.safetensors"
    digest, weights = file_sha256(file), state_hash(load_model(source))
    rows = transfer(_config(source, tmp_path / "results", seeds=(0, 1)))
    assert len(rows) == 2
    assert sum(sizes) == 1297 + 500  # every image once, for both seeds
    assert len(loaded) >= 1
    assert {state_hash(model) for model in loaded} == {weights}
    assert file_sha256(file) == digest


def test_mean_per_class_is_what_is_chosen_and_reported(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TransferRun(_config(source, tmp_path / "results"))
    object.__setattr__(run.experiment.splits, "metric", "mean_per_class")
    [row] = run.rows()
    correct = np.array(row.per_class_correct)
    total = np.array(row.per_class_total)
    assert row.metric == "mean_per_class"
    assert row.value == pytest.approx(100 * (correct / total).mean())
    assert row.value != pytest.approx(100 * correct.sum() / total.sum())


# ---- full network ----


def test_the_full_network_trains_and_beats_chance(
    source: Path, tmp_path: Path, loaded: list[NormalizedModel]
) -> None:
    before = {k: v.clone() for k, v in load_model(source).state_dict().items()}
    config = _config(
        source,
        tmp_path / "results",
        mode="full_network",
        num_train=300,
        epochs=3,
        batch_size=16,
        lrs=(0.05, 1e-6),
    )
    [row] = transfer(config)
    assert row.low > 40  # chance is 10
    assert row.setting.chosen_lr == 0.05
    assert row.setting.epochs == 3
    first, second = loaded[:2]  # one for each learning rate, in order
    after = first.state_dict()
    unmoved = [k for k, v in after.items() if torch.equal(v, before[k])]
    assert unmoved == ["mean", "std"] or unmoved == []
    # With lr 1e-6 weights hardly move, but BatchNorm statistics follow the images.
    for key, value in second.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            assert not torch.allclose(value, before[key], rtol=1e-3)
        elif key.endswith("conv1.weight"):
            torch.testing.assert_close(value, before[key], atol=1e-3, rtol=0)


def test_fine_tuning_is_reproducible(source: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "mode": "full_network", "epochs": 1, "batch_size": 32, "lrs": (0.05,)
    }  # fmt: skip
    rows = []
    for seeds in ((0, 1), (1,)):
        torch.manual_seed(len(rows))  # global random state must not matter
        rows += transfer(_config(source, tmp_path / "r", seeds=seeds, **options))
    values = [row.per_class_correct for row in rows]
    assert values[1] == values[2]  # a seed's row does not depend on the others
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mode": "full_network"}, r"lr 1e\+30 diverged in epoch 1; leave"),
        # One update, so that every loss there is was finite.
        ({"mode": "full_network", "batch_size": 500}, r"lr 1e\+30 diverged in epoch 1"),
        ({"solver": "sgd"}, r"heads diverged with lr 1e\+30; leave that out of `lrs`"),
    ],
)
def test_what_diverged_is_no_result(
    changes: dict[str, Any],
    complaint: str,
    source: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = _config(source, tmp_path / "r", epochs=1, lrs=(1e30,), **changes)
    with pytest.raises(TrainingDiverged, match=complaint):
        transfer(config)
    assert ResultsTable(tmp_path / "r").rows() == []
    [row] = transfer(dataclasses.replace(config, lrs=(1e30, 0.01)))
    assert row.setting.chosen_lr == 0.01
    assert re.search(complaint, caplog.text)


# ---- rows ----


def _missing(record: Any) -> set[str]:
    return {name for name, value in vars(record).items() if value is None}


def test_rows_say_all_that_is_needed_to_repeat_them(
    source: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    yielded = transfer(_config(source, results, seeds=(3, 1), name="mine"))
    rows = ResultsTable(results).rows()
    assert [row.seed for row in rows] == [3, 1]
    for row, same in zip(rows, yielded, strict=True):
        assert row == same
        assert _missing(row) == {"attack", "checks", "not_kept", "nonfinite_logits"}
        assert _missing(row.source) == {"accuracy"}
        assert _missing(row.target) == {"downscale"}
        file = source / "checkpoints" / "best" / "model.safetensors"
        assert row.source.digest == file_sha256(file)
        assert Path(row.source.path) == file
        assert (row.source.name, row.source.arch) == ("mine", "resnet8_cifar")
        assert (row.source.norm, row.source.eps) == ("l2", 0.25)
        assert (row.target.name, row.target.resolution) == ("digits", 16)
        assert (row.setting.mode, row.setting.select_on) == ("fixed_feature", "val")
        sizes = row.setting.num_train, row.setting.num_val, row.target.num_test
        assert (*sizes, row.target.num_classes) == (180, 20, 500, 10)
        correct, total = sum(row.per_class_correct), sum(row.per_class_total)
        assert total == 500
        assert row.value == pytest.approx(100 * correct / total)
        low, high = wilson(correct, total)
        assert (row.low, row.high) == pytest.approx((100 * low, 100 * high))
        assert row.bad_images == 0
        assert row.wall_seconds > 0
        assert row.provenance.torch
        assert row.provenance.command == "fastadv-transfer"
    assert rows[0].target.fingerprint == rows[1].target.fingerprint


def test_what_a_bare_checkpoint_does_not_say_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    save_model(create_model("resnet8_cifar", 3, seed=0), file)
    [row] = transfer(_config(file, tmp_path / "r", resolution=16, num_train=50))
    assert (row.source.name, row.source.norm, row.source.eps) == ("net", None, None)
    # Standard training has a radius, 0, and no norm.
    trained = {"config": {"norm": "l2", "eps": 0.0}, "resolution": 16}
    save_model(create_model("resnet8_cifar", 3, seed=0), file, trained)
    [row] = transfer(_config(file, tmp_path / "r", num_train=50))
    assert (row.source.norm, row.source.eps, row.target.resolution) == (None, 0.0, 16)


def test_choosing_on_the_test_set_is_labelled(source: Path, tmp_path: Path) -> None:
    [row] = transfer(_config(source, tmp_path / "r", select_on="test"))
    assert row.setting.select_on == "test"
    assert row.val_value == row.value  # so chosen, the two are one
    assert (row.setting.num_train, row.setting.num_val) == (
        200,
        0,
    )  # so nothing is held out
    [honest] = transfer(_config(source, tmp_path / "r"))
    assert honest.setting.select_on == "val"


def test_a_row_that_cannot_be_stored_is_printed(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(table: ResultsTable, rows: Any) -> None:
        raise CheckpointError("no space left")

    monkeypatch.setattr(ResultsTable, "append", full)
    with pytest.raises(CheckpointError, match="no space left"):
        transfer(_config(source, tmp_path / "r"))
    [message] = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    row = json.loads(message.removeprefix("the row was: "))
    assert row["value"] > 50
    assert row["setting"]["chosen_c"] in STRENGTHS
    missing = {name for name, value in row.items() if value is None}
    assert missing == {
        "attack",
        "checks",
        "arrays",
        "weights",
        "not_kept",
        "nonfinite_logits",
    }


def test_subsets_are_stratified_and_seeded(source: Path, tmp_path: Path) -> None:
    def sets(seed: int) -> tuple[Any, Any]:
        config = _config(source, tmp_path / "r", num_train=100)
        split = Experiment(config).split(seed)
        return split.train, split.val

    train_set, val_set = sets(0)
    assert np.bincount(train_set.labels).tolist() == [9] * 10
    assert np.bincount(val_set.labels).tolist() == [1] * 10
    assert train_set.fingerprint == sets(0)[0].fingerprint
    assert train_set.fingerprint != sets(1)[0].fingerprint


def test_more_images_than_there_are(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which has 1297; use n <= 1297"):
        transfer(_config(source, tmp_path / "r", num_train=2000))
    with pytest.raises(ConfigError, match="cannot contain all 10 classes"):
        transfer(_config(source, tmp_path / "r", num_train=9))
    with pytest.raises(DataError, match="perhaps you meant: shapetex"):
        transfer(_config(source, tmp_path / "r", dataset="shapetext"))
    assert not (tmp_path / "r").exists()


def test_the_command_prints_the_whole_table(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--source", str(source), "--dataset", "digits", "--num-train", "60"]
    words += ["--results", str(tmp_path / "r")]
    assert command.main([*words, "--name", "first"]) == 0
    assert command.main([*words, "--name", "second", "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    row = json.loads(out[-1])
    assert (row["source"]["name"], row["setting"]["num_pool"]) == ("second", 60)
    assert command.main([*words, "--seeds", "4", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("first ") for line in lines) == 1
    assert sum(line.startswith("second ") for line in lines) == 1
    assert sum(line.startswith("robust ") for line in lines) == 2
    value = f"{row['value']:.1f}% [{row['low']:.1f}, {row['high']:.1f}]"
    assert any(line.startswith("second ") and value in line for line in lines)


# ---- real images ----


@pytest.mark.slow
def test_real_photographs(tmp_path: Path) -> None:
    """Pretrain on a few, transfer to CIFAR-10 as JPEG files, small."""
    archive = shared("cifar10-jpeg-12k.zip")
    words: dict[str, Any] = {"data": str(archive), "resolution": 16, "epochs": 1}
    train(tiny(tmp_path / "run", num_train=300, eps=0.1, num_steps=1, **words))
    config = _config(tmp_path / "run", tmp_path / "r", dataset=str(archive))
    rows = transfer(TransferConfig(**(vars(config) | {"num_train": 1000})))
    [row] = rows
    sizes = row.setting.num_train, row.setting.num_val, row.target.num_test
    assert (*sizes, row.target.num_classes) == (900, 100, 2000, 10)
    assert (row.target.name, row.target.resolution) == (archive.stem, 16)
    assert row.per_class_total == (200,) * 10
    # Ten classes: 10 % is chance, and its 99.9 % bound with 2,000 images is 12.1 %.
    assert row.value > 15
    assert row.bad_images == 0
    assert not math.isnan(row.low)


def test_saying_what_would_be_taken_is_the_same_number(
    source: Path, tmp_path: Path
) -> None:
    def identity(**changes: Any) -> str:
        found = Experiment(_config(source, tmp_path / "r", **changes))
        known = found.source, found.splits, found.resolution
        return row_identity(found.config, 0, *known)

    plain = identity()
    assert plain == identity(solver="lbfgs", arch="resnet8_cifar")
    assert plain != identity(solver="sgd") == identity(solver="sgd", arch=None)
    assert identity(lrs=(0.1,)) == identity(lrs=(0.1,), solver="sgd")
