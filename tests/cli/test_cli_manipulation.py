"""fastadv-analyze manipulation, and shape on drawn images and exchanged textures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from brightness import brightness_net
from command_line import Caller
from PIL import Image
from torch import Tensor

from fastadv.analysis import cues
from fastadv.data import ShapeTex, open_dataset
from fastadv.models import create_model, save_model
from fastadv.results.table import ResultsTable

CLASSES = ("bright", "dark")


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark noise, one image of the wrong shade among the bright ones."""
    root, draw = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 10)):
        for name, level in zip(CLASSES, (170, 60), strict=True):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                shade = 60 if name == "bright" and i == 1 and count == 10 else level
                pixels = shade + draw.integers(-20, 21, (16, 16, 3))
                Image.fromarray(np.uint8(pixels)).save(root / split / name / f"{i}.png")
    return root


def found(results: Path) -> dict[str, float]:
    rows = ResultsTable(results).rows()
    values = {row.metric: row.value for row in rows}
    assert len(values) == len(rows)
    return values


@pytest.mark.parametrize(
    ("how", "levels"),
    [
        ("patch_shuffle", [1, 2, 4, 8]),
        ("low_pass", [1, 4, 12]),
        ("high_pass", [0, 1, 4]),
        ("band_pass", [0, 2, 6]),
    ],
)
def test_mean_brightness_survives(
    call: Caller, shades: Path, tmp_path: Path, how: str, levels: list[int]
) -> None:
    """A network of the mean alone keeps its 95 %, since the mean is kept everywhere."""
    net = brightness_net(tmp_path, 0, 1, CLASSES)
    words = ["manipulation", "--how", how, "--source", net, "--data", shades]
    done = call("analyze", *words, "--levels", *levels, "--results", tmp_path / "r")
    assert done.code == 0, done.err
    names = [str(level) for level in levels]
    if how == "band_pass":
        names = ["0-2", "2-6"]
    assert found(tmp_path / "r") == {"top1": 95} | {f"top1:{n}": 95 for n in names}
    rows = ResultsTable(tmp_path / "r").rows()
    arrays = ResultsTable(tmp_path / "r").arrays(rows[0])
    assert arrays["levels"].tolist() == ["clean", *names]
    assert arrays["decisions"].shape == (1 + len(names), 20)
    shown = arrays["examples"]
    assert shown.shape == (6, 1 + len(names), 3, 16, 16)
    if how in ("low_pass", "patch_shuffle"):  # radius 12, and a grid of 1, take nothing
        whole = shown[:, 3] if how == "low_pass" else shown[:, 1]
        np.testing.assert_array_equal(whole, shown[:, 0])
    page = tmp_path / "report.html"
    assert call("report", tmp_path / "r", "-o", page).code == 0
    assert "Accuracy on manipulated images" in page.read_text()


def test_a_network_that_knows_more_classes(
    call: Caller, shades: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It chooses among the classes of the data alone, which are found by their names."""
    net = brightness_net(tmp_path, 3, 1, ("other", "dark", "third", "bright"))
    words = ["manipulation", "--how", "low_pass", "--source", net, "--data", shades]
    done = call("analyze", *words, "--levels", 1, "--results", tmp_path / "r")
    assert done.code == 0, done.err
    assert "2 classes by 2 of 4 outputs" in caplog.text
    assert "all_outputs" not in caplog.text  # no choice of an analysis
    assert found(tmp_path / "r") == {"top1": 95, "top1:1": 95}
    table = ResultsTable(tmp_path / "r")
    [row, _] = table.rows()
    assert row.setting.class_map is not None
    assert set(table.arrays(row)["decisions"].ravel().tolist()) == {0, 1}
    other = brightness_net(tmp_path, 0, 1, ("one", "two", "three"))
    refused = call(
        "analyze", *words[:4], other, *words[5:], "--results", tmp_path / "x"
    )
    assert refused.code != 0
    assert "knows" in refused.error


@pytest.mark.parametrize("downscale", [None, 4])
def test_what_takes_nothing_has_the_clean_accuracy(
    call: Caller, tmp_path: Path, downscale: int | None
) -> None:
    """Of a network that sees everything; accuracies and decisions are equal exactly."""
    net, about = (
        tmp_path / "net.safetensors",
        {"resolution": 16, "downscale": downscale},
    )
    save_model(create_model("resnet8_cifar", 10, seed=3), net, about)
    words = ["--source", net, "--data", "digits", "--num-images", 100]
    for how, level in (("low_pass", 12), ("patch_shuffle", 1), ("high_pass", 0)):
        if downscale and how != "low_pass":
            continue
        results = tmp_path / how
        more = ["--how", how, "--levels", level, "--results", results]
        assert call("analyze", "manipulation", *words, *more).code == 0
        values = found(results)
        assert values["top1"] == values[f"top1:{level}"]
        table = ResultsTable(results)
        decisions = table.arrays(table.rows()[0])["decisions"]
        np.testing.assert_array_equal(decisions[0], decisions[1])
    usual = call(
        "analyze",
        "manipulation",
        *words,
        "--how",
        "low_pass",
        "--results",
        tmp_path / "u",
    )
    assert usual.code == 0
    assert list(found(tmp_path / "u")) == ["top1", "top1:2", "top1:4", "top1:8"]
    # The same images have the same accuracy in an evaluation.
    done = call("eval", "--checkpoint", *words[1:], "--results", tmp_path / "e")
    assert done.code == 0, done.err
    [row] = ResultsTable(tmp_path / "e").rows()
    assert row.value == pytest.approx(found(tmp_path / "u")["top1"])
    assert row.target.downscale == downscale
    assert ResultsTable(tmp_path / "u").rows()[0].target.downscale == downscale


BAD = [
    ("--how patch_shuffle --levels 3", "--levels 3: images of 16 px cannot be cut"),
    ("--how patch_shuffle --levels 2.5", "use one of 2, 4, 8, 16"),
    ("--how low_pass --levels -1", "different numbers of cycles"),
    ("--how low_pass --levels 2 2", "different numbers of cycles"),
    ("--how band_pass --levels 4", "give at least two"),
    ("--how blur", "--how"),
    ("--how low_pass --levels two", "--levels"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_levels_that_cannot_be(
    call: Caller, shades: Path, tmp_path: Path, words: str, message: str
) -> None:
    net = brightness_net(tmp_path, 0, 1, CLASSES)
    given = ["--source", net, "--data", shades, *words.split()]
    done = call("analyze", "manipulation", *given)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_network_of_nan_is_named(call: Caller, shades: Path, tmp_path: Path) -> None:
    net = tmp_path / "broken.safetensors"
    model = create_model("resnet8_cifar", 2, seed=0)
    with torch.no_grad():
        model.head.weight[0] = 3e38  # logits overflow
    save_model(model, net, {"resolution": 16, "classes": CLASSES})
    words = ["--source", net, "--data", shades, "--results", tmp_path / "r"]
    for kind in (["manipulation", "--how", "low_pass"], ["shape"]):
        more = ["--dataset-option", "texture=exchange"] if kind == ["shape"] else []
        error = call("analyze", *kind, *words, *more).error
        assert "broken" in error
        assert "not finite" in error


# ---- shape and texture of images whose both cues are known ----


def test_brightness_follows_the_texture(
    call: Caller, shades: Path, tmp_path: Path
) -> None:
    """An exchange of spectra takes the mean along, and with it the decision."""
    net = brightness_net(tmp_path, 0, 1, CLASSES)
    words = ["--data", shades, "--dataset-option", "texture=exchange"]
    done = call(
        "analyze", "shape", "--source", net, *words, "--results", tmp_path / "r"
    )
    assert done.code == 0, done.err
    values = found(tmp_path / "r")
    assert values["plain_accuracy"] == values["texture_accuracy"] == 95
    view = open_dataset(shades, texture="exchange").test
    conflict = view.labels != view.texture_labels
    # One bright texture is dark: where its carrier is dark, that decision is the shape's.
    dark = view.partners == int(np.flatnonzero(view.labels == 0)[1])
    expected = (conflict & dark).sum() / conflict.sum()
    assert values["shape_share"] == pytest.approx(100 * expected)
    assert values["cued_share"] == 100
    page = tmp_path / "report.html"
    assert call("report", tmp_path / "r", "-o", page).code == 0
    assert "right by the texture" in page.read_text()


@pytest.fixture
def by_cue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks called shape... and texture... that know what was drawn."""
    known: dict[bytes, tuple[int, int]] = {}
    for correlation in (0.0, 1.0):
        images = ShapeTex(
            288, split="test", resolution=32, correlation=correlation, cache=False
        )
        for pixels, each in zip(images.images, images.attributes, strict=True):
            known[pixels.tobytes()] = int(each["shape"]), int(each["texture"])

    def decide(view: object, images: Tensor, what: str) -> Tensor:
        cue = 0 if what.startswith("shape") else 1
        classes = [
            known[image.permute(1, 2, 0).contiguous().numpy().tobytes()][cue]
            for image in images
        ]
        return torch.nn.functional.one_hot(torch.tensor(classes), 12).float()

    monkeypatch.setattr(cues, "finite_logits", decide)


def test_drawn_cues(call: Caller, by_cue: None, tmp_path: Path) -> None:
    """Who decides by a cue is always right by it, and right by the other by chance."""
    words: list[object] = ["--data", "shapetex", "--dataset-option", "n_test=288"]
    nets = []
    for name, classes in (
        ("shape", ShapeTex.SHAPE_NAMES),
        ("texture", ShapeTex.TEXTURE_NAMES),
    ):
        nets.append(tmp_path / f"{name}.safetensors")
        model = create_model("resnet8_cifar", 12, seed=0)
        save_model(model, nets[-1], {"resolution": 32, "classes": classes})
    done = call(
        "analyze", "shape", "--source", *nets, *words, "--results", tmp_path / "r"
    )
    assert done.code == 0, done.err
    rows = ResultsTable(tmp_path / "r").rows()
    values = Counter({(row.source.name, row.metric): row.value for row in rows})
    for name, other in (("shape", "texture"), ("texture", "shape")):
        assert values[name, f"{name}_accuracy"] == 100
        # Each block of 144 images has each pair once.
        assert values[name, f"{other}_accuracy"] == pytest.approx(100 / 12)
        assert values[name, "agreeing_accuracy"] == 100
        assert values[name, "shape_share"] == (100 if name == "shape" else 0)
        assert values[name, "cued_share"] == 100


def test_bad_cues(call: Caller, shades: Path, tmp_path: Path) -> None:
    def error(*words: object) -> str:
        net = brightness_net(tmp_path, 0, 1, CLASSES)
        return call("analyze", "shape", "--source", net, *words).error

    assert "2 classes (bright, dark, ...)" in error("--data", "shapetex")
    correlated = ("--dataset-option", "test_correlation=0.5")
    assert "leave out the option" in error("--data", "shapetex", *correlated)
    elsewhere = ("--dataset-option", f"texture={shades}")
    assert "texture=exchange" in error("--data", shades, *elsewhere)
    exchange = ("--dataset-option", "texture=exchange")
    assert "draws its own textures" in error("--data", "shapetex", *exchange)
    assert "has 10" in error("--data", "digits", *exchange)
