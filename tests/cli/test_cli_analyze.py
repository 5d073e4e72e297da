"""fastadv-analyze: rows and arrays of every kind, computed once, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from brightness import brightness_net
from command_line import Caller
from PIL import Image

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


# ---- shape and texture ----


@pytest.fixture(scope="module")
def cues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images called as of cue conflicts: bright, or dark, and the categories of classes."""
    folder = tmp_path_factory.mktemp("cues")
    names = ["cat1-dog1", "dog1-cat1", "cat2-bear1", "cat3-cat1", "knife1-cat1"]
    for name in names:
        place = folder / "style-transfer" / name.partition("1")[0]
        place.mkdir(parents=True, exist_ok=True)
        level = 250 if name.startswith("cat") else 5
        Image.new("RGB", (16, 16), (level,) * 3).save(place / f"{name}.png")
    categories = {"cat": ["n1", "n2"], "dog": ["n3"], "bear": ["n4"], "knife": ["n9"]}
    (folder / "categories16.json").write_text(json.dumps(categories))
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_shape_decisions(
    call: Caller, cues: Path, tmp_path: Path, packed: bool
) -> None:
    """Cats are bright: who calls bright images cats decides by the shape of cats."""
    data = cues
    if packed:
        data = Path(shutil.make_archive(str(tmp_path / "cues"), "zip", cues))
    by_shape, by_texture = (
        brightness_net(tmp_path, 0, 2),
        brightness_net(tmp_path, 2, 1),
    )
    words = ["--data", data, "--results", tmp_path / "results"]
    done = call("analyze", "shape", "--source", by_shape, by_texture, *words)
    assert done.code == 0, done.err
    rows = ResultsTable(tmp_path / "results").rows(kind="shape")
    # The knife is no class of the network, and two cats are no conflict.
    assert [(row.metric, row.value, row.n) for row in rows] == [
        ("shape_share", 100, 3),
        ("cued_share", 100, 3),
        ("shape_share", 0, 2),  # a dog for the cat with a bear's texture: neither
        ("cued_share", pytest.approx(200 / 3), 3),
    ]
    page = tmp_path / "report.html"
    assert call("report", tmp_path / "results", "-o", page).code == 0
    assert "resnet50 (published)" in page.read_text()


def test_bad_cue_conflicts(
    call: Caller, cues: Path, networks: dict[str, Path], tmp_path: Path
) -> None:
    def error(source: Path, *words: object) -> str:
        more = ["--source", source, "--results", tmp_path / "results"]
        return call("analyze", "shape", *more, "--data", *words).error

    source = brightness_net(tmp_path, 0, 2)
    assert "does not state the names" in error(networks["one"], cues)
    other = tmp_path / "other.json"
    other.write_text('{"cat": ["n1"], "chair": ["n77"]}')
    assert "knows classes of 1 of" in error(source, cues, "--categories", other)
    other.write_text("[1, 2]")
    assert "cannot be read" in error(source, cues, "--categories", other)
    plain = tmp_path / "plain"
    (plain / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(plain / "cat" / "IMG_1.png")
    assert "cannot be read" in error(source, plain)
    shutil.copy(cues / "categories16.json", plain)
    assert "no cue conflict images" in error(source, plain)
    assert "no images" in error(source, tmp_path / "results")
