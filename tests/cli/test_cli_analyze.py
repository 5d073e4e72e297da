"""fastadv-analyze: rows and arrays of every kind, computed once, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Caller

from fastadv.models import create_model, save_model
from fastadv.results.table import ResultsTable


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small networks of the ten digits at 16 px, and one of other classes."""
    folder = tmp_path_factory.mktemp("networks")
    found = {}
    for name, seed, classes in (("one", 0, 10), ("two", 1, 10), ("three", 2, 3)):
        model = create_model("resnet8_cifar", classes, seed=seed)
        found[name] = folder / f"{name}.safetensors"
        save_model(model, found[name], {"resolution": 16})
    return found


def test_influence_is_computed_once(
    call: Caller, networks: dict[str, Path], tmp_path: Path
) -> None:
    words = [
        "influence", "--source", networks["one"], networks["two"], "--data", "digits",
        "--num-train", 60, "--num-test", 40, "--results", tmp_path / "results",
        "--feature-cache", "off",
    ]  # fmt: skip
    first = call("analyze", *words)
    assert first.code == 0, first.err
    assert "one     digits, 60 training images on 40 test images" in first.out
    table = ResultsTable(tmp_path / "results")
    rows = table.rows(kind="influence")
    assert [(row.source.name, row.metric, row.n) for row in rows] == [
        (name, metric, 40)
        for name in ("one", "two")
        for metric in ("same_class_top1", "same_class_3_of_5")
    ]
    arrays = table.arrays(rows[0])
    assert arrays["top"].shape == (40, 60)
    same = arrays["train_labels"][arrays["top"]] == arrays["labels"][:, None]
    assert rows[0].value == 100 * same[:, 0].mean()
    assert rows[1].value == 100 * (same[:, :5].sum(1) >= 3).mean()
    assert np.all(np.diff(arrays["influence"], axis=1) <= 0)
    assert arrays["pairs"].shape == (8, 2, 3, 16, 16)
    again = call("analyze", *words, "--json")
    assert [each["value"] for each in json.loads(again.out)] == [r.value for r in rows]
    assert len(table.rows()) == 4
    damped = call("analyze", *words, "--damping", 1)
    assert damped.code == 0
    assert len(table.rows()) == 8
    report = tmp_path / "report.html"
    assert call("report", tmp_path / "results", "-o", report).code == 0
    assert "Influence of training images" in report.read_text()


@pytest.mark.parametrize("measure", ["cka", "svcca"])
def test_similarity_of_layers(
    call: Caller, networks: dict[str, Path], tmp_path: Path, measure: str
) -> None:
    words = [
        "similarity", "--data", "digits", "--measure", measure, "--num-images", 300,
        "--results", tmp_path,
    ]  # fmt: skip
    pair = ["--source", networks["one"], networks["two"], "--other", networks["one"]]
    done = call("analyze", *words, *pair)
    assert done.code == 0, done.err
    table = ResultsTable(tmp_path)
    rows = table.rows(kind="similarity")
    layers = ["layer1", "layer2", "layer3", "embedding"]
    assert [row.metric for row in rows] == 2 * [f"{measure}:{name}" for name in layers]
    assert [row.value for row in rows[:4]] == pytest.approx([1] * 4, abs=1e-6)
    assert all(row.value < 0.999 for row in rows[4:])
    arrays = table.arrays(rows[0])
    assert arrays["layers"].tolist() == layers
    # A network compared with itself: the matrix is symmetric.
    np.testing.assert_allclose(arrays["matrix"], arrays["matrix"].T, atol=1e-9)


def test_networks_at_different_resolutions_see_the_same_images(
    call: Caller, networks: dict[str, Path], tmp_path: Path
) -> None:
    large = tmp_path / "large.safetensors"
    model = create_model("resnet8_cifar", 10, seed=0)
    save_model(model, large, {"resolution": 24})
    words = ["--source", networks["one"], "--other", large, "--num-images", 200]
    folder = tmp_path / "results"
    call("analyze", "similarity", *words, "--data", "digits", "--results", folder)
    values = {row.metric: row.value for row in ResultsTable(folder).rows()}
    # The same weights see the same digits, larger.
    assert 0.5 < values["cka:embedding"] < 0.9999


BAD = [
    ("influence --data shapetex", "one", "12"),
    ("influence --data digits", "three", "3 classes"),
    ("influence --data digits --cutoff 1", "one", "--cutoff"),
    ("influence --data digits --damping 0", "one", "--damping"),
    ("similarity --data digits --other {one} --layers layer9", "one", "layer3"),
    ("similarity --data digits --other {one} --measure svcca --variance 1 "
     "--num-images 40", "one", "more images"),
    ("similarity --data digits --other nowhere.ckpt", "one", "nowhere.ckpt"),
    ("similarity --data digits", "one", "--other"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "source", "message"), BAD)
def test_bad_input_is_one_line(
    call: Caller,
    networks: dict[str, Path],
    tmp_path: Path,
    words: str,
    source: str,
    message: str,
) -> None:
    given = words.format(one=networks["one"]).split()
    more = ["--source", networks[source], "--results", tmp_path / "results"]
    done = call("analyze", *given, *more)
    assert done.code in (1, 2)
    assert message in done.err
    assert "Traceback" not in done.err
    assert not ResultsTable(tmp_path / "results").rows()


def test_the_head_must_be_linear(call: Caller, tmp_path: Path) -> None:
    file = tmp_path / "squeeze.safetensors"
    save_model(create_model("squeezenet1_1", 10, seed=0), file, {"resolution": 32})
    words = ["--source", file, "--data", "digits", "--results", tmp_path / "results"]
    assert "not a linear function" in call("analyze", "influence", *words).error
