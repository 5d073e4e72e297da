"""fastadv-analyze gradients, visualization and inversion, their report and gallery."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Caller, image_folder
from synthetic_results import synthetic_rows, typed

from fastadv.models import create_model, save_model
from fastadv.reporting.seeing import readable
from fastadv.results.table import ResultsTable

CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks of the digits: a standard and a robust one, a larger, and a broken one."""
    folder = tmp_path_factory.mktemp("networks")
    found = {}
    for name, seed, side, eps in (
        ("robust", 0, 16, 0.5),
        ("standard", 1, 16, 0.0),
        ("large", 1, 24, 0.0),
        ("broken", 0, 16, 0.0),
    ):
        model = create_model("resnet8_cifar", 10, seed=seed)
        if name == "broken":
            with torch.no_grad():
                model.net.get_submodule("layer3.0.bn2").weight[5] = 3e38  # overflows
        found[name] = folder / f"{name}.safetensors"
        facts = {
            "resolution": side,
            "classes": CLASSES,
            "config": {"eps": eps, "norm": "l2"},
        }
        save_model(model, found[name], facts)
    return found


def test_gradients_of_two_networks(
    call: Caller, networks: dict[str, Path], tmp_path: Path
) -> None:
    words = [
        "gradients", "--source", networks["robust"], networks["standard"], "--data", "digits",
        "--num-images", 30, "--results", tmp_path,
    ]  # fmt: skip
    first = call("analyze", *words)
    assert first.code == 0, first.err
    table = ResultsTable(tmp_path)
    rows = table.rows(kind="gradients")
    assert [(row.metric, row.n) for row in rows] == 2 * [
        ("alignment", 30),
        ("cosine", 30),
    ]
    arrays = table.arrays(rows[1])
    assert rows[1].value == pytest.approx(arrays["cosine"].mean())
    assert rows[1].low is not None
    assert rows[1].low < rows[1].value < 1
    assert arrays["gradients"].shape == arrays["images"].shape == (16, 3, 16, 16)
    assert arrays["gradients"].std((1, 2, 3)).min() > 20  # clipped at three deviations
    assert call("analyze", *words).out == first.out  # computed once
    assert len(table.rows()) == 4
    some = call("analyze", *words[:-3], 12, "--batch-size", 5, "--results", tmp_path)
    assert some.code == 0, some.err
    assert len(table.rows()) == 8


def test_units_from_noise_and_photographs_on_one_gallery(
    call: Caller, networks: dict[str, Path], tmp_path: Path
) -> None:
    pair = ["--source", networks["robust"], networks["large"], "--data", "digits"]
    words = [*pair, "--num-steps", 3, "--results", tmp_path]
    units = ["visualization", *words, "--layer", "layer2", "--units", 3, 31]
    done = call("analyze", *units, "--num-images", 3, "--start", "images", "--eps", 0.5)
    assert done.code == 0, done.err
    table = ResultsTable(tmp_path)
    rows = table.rows()
    assert [row.metric for row in rows] == 2 * ["activation:3", "activation:31"]
    arrays = table.arrays(rows[0])
    assert arrays["images"].shape == (2, 3, 3, 16, 16)
    assert arrays["starts"].shape == (1, 3, 3, 16, 16)
    assert (arrays["after"] > arrays["before"]).all()
    assert (arrays["distance"] <= 0.5 + 1e-5).all()
    assert rows[0].value == pytest.approx(arrays["after"][0].mean())
    assert rows[0].n == 3
    # Each network at its own size, and the defaults that follow from it.
    assert [row.target.resolution for row in rows[1:3]] == [16, 24]
    assert call("analyze", *units).code == 0
    of_default = table.rows()[4:]
    assert [row.setting.eps for row in of_default[::2]] == pytest.approx(  # type: ignore[union-attr]
        [40 * 16 / 224, 40 * 24 / 224]
    )
    assert call("analyze", "gradients", *pair, "--results", tmp_path).code == 0
    blends = ["--blends", 0, 0.5, 1, "--num-images", 4]
    assert call("analyze", "inversion", *words, *blends).code == 0
    assert call("analyze", "inversion", *words, "--start", "noise").code == 0
    report, gallery = tmp_path / "report.html", tmp_path / "gallery.html"
    both = ["report", tmp_path, "-o", report, "--gallery", gallery]
    assert str(gallery) in call(*both).out
    few, many = (page.read_text("utf-8") for page in (report, gallery))
    for page in (few, many):
        titles = re.findall("<h2>(.*)</h2>", page)
        assert titles == [
            "Input gradients", "Units and classes", "Inversion of representations"
        ]  # fmt: skip
        assert '="http' not in page
        # Standard networks come first, and what moved says by how far at most.
        assert page.index(">large<") < page.index(">robust<")
        assert "standard, 24 px" in page
        assert "l2 0.5, 16 px" in page
        assert "l2 7.14, 3 steps" not in page
        assert "l2 4.29, 3 steps" in page
    assert few.count("<figure>") < many.count("<figure>")
    assert many.count("<image") > 60


def test_units_that_nothing_moves_are_named(
    call: Caller, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A unit behind a ReLU that is off has no gradient."""
    model = create_model("resnet8_cifar", 10, seed=0)
    with torch.no_grad():
        model.net.get_submodule("bn1").bias[7] = -1e3
    file = tmp_path / "off.safetensors"
    save_model(model, file, {"resolution": 16})
    words = ["--source", file, "--data", "digits", "--results", tmp_path / "r"]
    chosen = ["--layer", "layer1.0", "--units", 6, 7, "--num-steps", 2]
    with torch.no_grad():
        model.net.get_submodule("layer1.0.bn2").weight[7] = 0
    save_model(model, file, {"resolution": 16})
    assert call("analyze", "visualization", *words, *chosen).code == 0
    assert "no starting image moved for 7:" in caplog.text


def test_classes_from_a_gaussian(
    call: Caller, networks: dict[str, Path], tmp_path: Path
) -> None:
    words = [
        "visualization", "--source", networks["standard"], "--data", "digits", "--classes",
        "8", "3", "--start", "gaussian", "--num-images", 2, "--num-steps", 20,
        "--results", tmp_path,
    ]  # fmt: skip
    done = call("analyze", *words)
    assert done.code == 0, done.err
    table = ResultsTable(tmp_path)
    rows = table.rows()
    assert [row.metric for row in rows] == ["log_probability:8", "log_probability:3"]
    arrays = table.arrays(rows[0])
    assert arrays["starts"].shape == arrays["images"].shape == (2, 2, 3, 16, 16)
    assert (arrays["before"] < arrays["after"]).all()
    assert (arrays["after"] <= 0).all()
    # What is drawn for a digit looks like the mean of its images, and not of the other's.
    means = arrays["starts"].mean(1).reshape(2, -1).astype(float)
    assert np.corrcoef(means)[0, 1] < 0.9


def test_one_gaussian_of_fewer_images_than_classes(
    call: Caller, networks: dict[str, Path], tmp_path: Path
) -> None:
    done = call(
        "analyze", "visualization", "--source", networks["standard"], "--data", "digits",
        "--units", "3", "--start", "gaussian", "--num-fitted", 4, "--num-steps", 2,
        "--results", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err


def test_inversion_from_other_images(
    call: Caller, networks: dict[str, Path], tmp_path: Path
) -> None:
    words = [
        "inversion", "--source", networks["standard"], "--data", "digits",
        "--num-images", 4, "--num-steps", 30, "--results", tmp_path,
    ]  # fmt: skip
    done = call("analyze", *words)
    assert done.code == 0, done.err
    table = ResultsTable(tmp_path)
    rows = table.rows()
    assert [(row.metric, row.n) for row in rows] == [
        ("distance", 4),
        ("image_distance", 4),
    ]
    arrays = table.arrays(rows[0])
    assert rows[0].value == pytest.approx(arrays["after"].mean(), rel=1e-6)
    assert (arrays["after"] < arrays["before"]).all()
    assert not np.array_equal(arrays["targets"], arrays["others"])
    assert np.array_equal(arrays["starts"], arrays["others"])
    far = (arrays["images"][0].astype(float) - arrays["starts"]) / 255
    moved = np.sqrt((far**2).sum((1, 2, 3)))
    np.testing.assert_allclose(moved, arrays["distance"][0], atol=0.1)  # rounded pixels


def test_what_is_not_finite_is_named_and_not_drawn(
    call: Caller,
    networks: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ["--source", networks["broken"], "--data", "digits", "--num-steps", 2]
    units = ["visualization", *words, "--results", tmp_path, "--layer", "layer3.0.bn2"]
    done = call("analyze", *units, "--units", 4, 5)
    assert done.code == 0
    assert "not finite are left out: 5" in caplog.text
    assert "no starting image moved" not in caplog.text
    assert [row.metric for row in ResultsTable(tmp_path).rows()] == ["activation:4"]
    report = tmp_path / "report.html"
    assert call("report", tmp_path, "-o", report).code == 0
    page = report.read_text("utf-8")
    assert page.count("not finite") == 1
    assert "no activation is finite" in call("analyze", *units, "--units", 5).error
    inverted = call("analyze", "inversion", *words, "--results", tmp_path)
    assert "no representation by embedding is finite" in inverted.error
    gradients = call("analyze", "gradients", *words[:-2], "--results", tmp_path)
    assert re.search("gradients of 500 of 500 images.*digits", gradients.error)


BAD = [
    ("visualization --layer layer9", "perhaps you meant: layer3"),
    ("visualization --units 63 64", "64 units, 0 to 63; there is no unit 64"),
    ("visualization --units -1", "--units"),
    ("visualization --classes 11", "unknown class '11'"),
    ("visualization --eps 0", "--eps"),
    ("visualization --num-steps 0", "--num-steps"),
    ("visualization --start photos", "photos"),
    ("inversion --blends 0.5 1.5", "--blends"),
    ("inversion --layer conv2", "perhaps you meant: conv1"),
    ("gradients --num-images 0", "--num-images"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_line(
    call: Caller, networks: dict[str, Path], tmp_path: Path, words: str, message: str
) -> None:
    more = ["--source", networks["robust"], "--data", "digits", "--results", tmp_path]
    done = call("analyze", *words.split(), *more)
    assert done.code in (1, 2)
    assert message in done.err
    assert "Traceback" not in done.err
    assert not ResultsTable(tmp_path).rows()


def test_fewer_images_than_were_asked_for(
    call: Caller,
    networks: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A folder of three test images, whose classes are not those of the network."""
    folder = image_folder(tmp_path / "data", train=2, val=2)
    (folder / "val" / "below" / "01.jpg").unlink()
    words = [
        "--source",
        networks["robust"],
        "--data",
        folder,
        "--results",
        tmp_path / "r",
    ]
    steps = ["--num-steps", 2, "--num-images", 9]
    assert call("analyze", "inversion", *words, *steps).code == 0
    assert "3 test images: 1 are targets, not 9" in caplog.text
    photos = ["--start", "images", "--units", 0]
    assert call("analyze", "visualization", *words, *steps, *photos).code == 0
    assert "has 3 test images, not 9" in caplog.text
    assert call("analyze", "gradients", *words).code == 0
    rows = ResultsTable(tmp_path / "r").rows()
    assert [(row.kind, row.n) for row in rows] == [
        ("inversion", 1), ("inversion", 1), ("visualization", 3), ("gradients", 3),
        ("gradients", 3),
    ]  # fmt: skip
    assert rows[-1].setting.loss_of == "prediction"  # type: ignore[union-attr]
    classes = ["--classes", 1, "--start", "gaussian"]
    refused = call("analyze", "visualization", *words, *classes)
    assert "10 classes" in refused.error
    (folder / "val" / "below" / "00.jpg").unlink()
    (folder / "val" / "above" / "01.jpg").unlink()
    one = ["--dataset-option", "strict=false"]
    refused = call("analyze", "inversion", *words, *one)
    assert "needs two" in refused.error


def test_wordnet_identifiers_are_shown_as_nouns() -> None:
    pytest.importorskip("timm")
    assert readable("n01443537") == "goldfish"
    assert [readable(name) for name in ("n00000001", "cat")] == ["n00000001", "cat"]


def test_a_gallery_needs_pictures(call: Caller, tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results")
    table.append(typed(synthetic_rows())[:2])
    words = [tmp_path / "results", "-o", tmp_path / "r.html"]
    refused = call("report", *words, "--gallery", tmp_path / "g.html")
    assert "has no pictures" in refused.error
