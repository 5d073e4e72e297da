"""fastadv-analyze shift, calibration, corruption-error and effective-robustness."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Caller
from PIL import Image

from fastadv.cli import analyze, eval as eval_
from fastadv.data import open_dataset
from fastadv.data.corruptions.corrupt import Corrupted, corrupt
from fastadv.data.loading.geometry import resize_center_crop, usual_preparation
from fastadv.models import create_model, save_model
from fastadv.models.source import open_source
from fastadv.results.table import ResultsTable
from fastadv.statistics.calibration import calibration_error, decisions, equal_width

NAMES = ("one", "two", "three", "four", "five", "six", "robust")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small networks of the ten digits at 16 px, whose heads know their classes.

    Each is a random trunk with the least-squares head on more or fewer digits.
    """
    folder = tmp_path_factory.mktemp("networks")
    digits = open_dataset("digits").train
    images = torch.from_numpy(np.stack([digits.load(i) for i in range(400)]))
    images = torch.nn.functional.interpolate(images.permute(0, 3, 1, 2), (16, 16))
    labels = torch.eye(10)[torch.from_numpy(digits.labels[:400])]
    found = {}
    for seed, name in enumerate(NAMES):
        model = create_model("resnet8_cifar", 10, seed=seed).eval()
        count = 40 + 50 * seed
        with torch.no_grad():
            h = model.features(model.normalize(images[:count].float() / 255)).double()
            h = torch.cat([h, torch.ones(count, 1)], 1)
            ridge = h.T @ h
            ridge += 1e-4 * ridge.trace() / len(ridge) * torch.eye(len(ridge))
            weight = torch.linalg.solve(ridge, h.T @ (labels[:count].double() - 0.1))
            model.head.weight.copy_(8 * weight[:-1].T)
            model.head.bias.copy_(8 * weight[-1])
        found[name] = folder / f"{name}.safetensors"
        config = {"eps": 1.0, "norm": "l2"} if name == "robust" else {"eps": 0.0}
        save_model(model, found[name], {"resolution": 16, "config": config})
    return found


CHOICE = ["--corruptions", "gaussian_noise", "fog", "pixelate", "--severities", 1, 4]


@pytest.fixture(scope="module")
def measured(
    networks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A table with the shifts of all networks, and an attacked evaluation of one."""
    results = tmp_path_factory.mktemp("results")
    words: list[object] = [
        "shift", "--source", *networks.values(), "--data", "digits",
        "--num-images", 60, *CHOICE, "--results", results, "--batch-size", 25,
    ]  # fmt: skip
    assert analyze.main([str(word) for word in words]) == 0
    words = [
        "--checkpoint", networks["one"], "--data", "digits", "--num-images", 50,
        "--norm", "linf", "--eps", "8/255", "--num-steps", 2, "--results", results,
    ]  # fmt: skip
    assert eval_.main([str(word) for word in words]) == 0
    return results


def test_shift_equals_corrupted_sets(
    call: Caller, networks: dict[str, Path], measured: Path
) -> None:
    """The accuracy under fog 4, from images that are corrupted one by one."""
    table = ResultsTable(measured)
    rows = {r.metric: r for r in table.rows(kind="shift") if r.source.name == "three"}
    assert list(rows) == [
        "top1", "corrupted_top1", "top1:gaussian_noise", "top1:fog", "top1:pixelate",
    ]  # fmt: skip
    arrays = table.arrays(rows["top1"])
    assert arrays["right"].shape == (3, 2, 60)
    assert arrays["corruptions"].tolist() == ["gaussian_noise", "fog", "pixelate"]
    assert arrays["severities"].tolist() == [1, 4]
    digits = open_dataset("digits").test
    how = usual_preparation(digits.augment_default, 16)
    images = Corrupted(digits, how, "fog", 4)
    model = open_source(str(networks["three"])).load().eval()
    batch = np.stack([images.load(i) for i in arrays["indices"]])
    with torch.no_grad():
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        logits = model.net(model.normalize(x)).numpy()
    found = decisions(logits, arrays["labels"])
    np.testing.assert_array_equal(found.right, arrays["right"][1, 1])
    for name in ("confidence", "nll", "brier"):
        np.testing.assert_allclose(
            getattr(found, name), arrays[name][1, 1], rtol=1e-3, atol=1e-4
        )
    assert rows["top1:fog"].value == pytest.approx(100 * arrays["right"][1].mean())
    assert rows["corrupted_top1"].value == pytest.approx(100 * arrays["right"].mean())
    assert rows["top1"].value == pytest.approx(100 * (arrays["fell_to"] == 0).mean())
    for row in rows.values():
        assert row.low <= row.value <= row.high
        assert row.n == 60


def test_neither_batches_nor_subsets_count(
    call: Caller, networks: dict[str, Path], measured: Path, tmp_path: Path
) -> None:
    words = ["shift", "--source", networks["two"], "--data", "digits", *CHOICE]
    done = call(
        "analyze", *words, "--num-images", 60, "--batch-size", 7, "--results", tmp_path
    )
    assert done.code == 0, done.err
    values = [
        [
            r.value
            for r in ResultsTable(folder).rows(kind="shift")
            if r.source.name == "two"
        ]
        for folder in (tmp_path, measured)
    ]
    assert values[0] == values[1]
    # What the table has is not computed again.
    before = len(ResultsTable(tmp_path).rows())
    call("analyze", *words, "--num-images", 60, "--results", tmp_path)
    assert len(ResultsTable(tmp_path).rows()) == before


def test_calibration_from_kept_logits(call: Caller, measured: Path) -> None:
    """Without the networks: nothing but the table is opened."""
    done = call("analyze", "calibration", "--results", measured, "--json")
    assert done.code == 0, done.err
    table = ResultsTable(measured)
    rows = table.rows(kind="calibration")
    by_row: dict[str, dict] = {}
    for row in rows:
        by_row.setdefault(row.setting.measured, {})[row.metric] = row
    assert len(by_row) == len(NAMES) + 2
    for identity, found in by_row.items():
        (measured_row, *_) = table.find(identity)
        arrays = table.arrays(measured_row)
        attacked = measured_row.attack is not None
        assert found["ece"].attack == measured_row.attack
        logits = arrays["attacked_logits" if attacked else "clean_logits"]
        expected = decisions(logits, arrays["labels"])
        which = equal_width(expected.confidence)
        error = calibration_error(expected.confidence, expected.right, which)
        assert found["ece"].value == pytest.approx(100 * error)
        assert found["nll"].value == pytest.approx(expected.nll.mean())
        assert found["brier"].value == pytest.approx(expected.brier.mean())
        if not attacked:
            assert found["accuracy"].value == pytest.approx(measured_row.value)
    shift = next(f for f in by_row.values() if "corrupted_ece" in f)
    assert table.arrays(shift["ece"])["ece_by_corruption"].shape == (3, 2)


def test_corruption_errors(call: Caller, measured: Path) -> None:
    words = ["corruption-error", "--results", measured]
    done = call("analyze", *words, "--reference", "one", "--source", "one", "six")
    assert done.code == 0, done.err
    table = ResultsTable(measured)
    rows = table.rows(kind="corruption_error")
    own = {row.metric: row.value for row in rows if row.source.name == "one"}
    assert list(own.values()) == pytest.approx([100] * len(own))
    other = {row.metric: row for row in rows if row.source.name == "six"}
    right = {
        row.source.name: table.arrays(row)["right"]
        for row in table.rows(kind="shift", metric="corrupted_top1")
    }
    errors = {name: 1 - each.mean((1, 2)) for name, each in right.items()}
    expected = 100 * errors["six"] / errors["one"]
    assert other["mce"].value == pytest.approx(expected.mean())
    assert other["ce:fog"].value == pytest.approx(expected[1])
    assert other["mce"].low < other["mce"].value < other["mce"].high
    error = call("analyze", *words, "--reference", "alexnet").error
    assert "ImageNet's 1000 classes" in error
    assert (
        "perhaps you meant: one" in call("analyze", *words, "--reference", "oone").error
    )


def test_effective_robustness(call: Caller, measured: Path, tmp_path: Path) -> None:
    words = ["effective-robustness", "--results", measured, "--data"]
    done = call("analyze", *words, "digits")
    assert done.code == 0, done.err
    table = ResultsTable(measured)
    [row] = table.rows(kind="effective_robustness")
    assert row.source.name == "robust"
    assert len(row.setting.fitted) == 6
    assert row.low < row.value < row.high
    arrays = table.arrays(row)
    assert sorted(arrays["names"]) == sorted(NAMES[:-1])
    expected = np.interp(arrays["own"][0], arrays["line"][0], arrays["line"][1])
    assert row.value == pytest.approx(arrays["own"][1] - expected, abs=0.5)
    # One of the standard networks against the five others.
    done = call("analyze", *words, "digits", "--source", "one")
    assert done.code == 0, done.err
    few = call("analyze", *words, "digits", "--fitted", "one", "two", "--source", "six")
    assert "needs at least 5 other standard networks" in few.error
    assert "has 2 (one, two)" in few.error
    assert "digits" in call("analyze", *words, "digitss").error
    wrong = call("analyze", *words, "digits", "--standard", "digitz")
    assert "digits" in wrong.error
    page = tmp_path / "report.html"
    assert call("analyze", "calibration", "--results", measured).code == 0
    assert call("report", measured, "-o", page).code == 0
    text = page.read_text()
    for title in ("Accuracy under shift", "Calibration", "Effective robustness"):
        assert title in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--corruptions frog", "fog"),
        ("--corruptions fog fog", "given twice"),
        ("--corruptions none fog", "give it alone"),
        ("--severities 0", "severity 0"),
        ("--severities 2 6", "1, 2, 3, 4 and 5"),
        ("--class-map nowhere.csv", "nowhere.csv"),
        ("--resolution 8 --corruptions fog --num-images 12", "at least 16"),
    ],
)
def test_bad_choices_are_one_line(
    call: Caller, networks: dict[str, Path], tmp_path: Path, words: str, message: str
) -> None:
    done = call(
        "analyze", "shift", "--source", networks["one"], "--data", "digits",
        "--results", tmp_path / "results", *words.split(),
    )  # fmt: skip
    assert done.code in (1, 2)
    assert message in done.err
    assert "Traceback" not in done.err
    assert not ResultsTable(tmp_path / "results").rows()


def test_networks_that_compute_nan(
    call: Caller, networks: dict[str, Path], tmp_path: Path
) -> None:
    model = open_source(str(networks["one"])).load()
    with torch.no_grad():
        model.head.weight[3] = 3e38  # logits overflow
    file = tmp_path / "broken.safetensors"
    save_model(model, file, {"resolution": 16})
    words = ["--source", file, "--data", "digits", "--results", tmp_path / "results"]
    error = call("analyze", "shift", *words, "--num-images", 10).error
    assert "are not finite" in error


def test_rows_without_logits(
    call: Caller, networks: dict[str, Path], tmp_path: Path
) -> None:
    words = ["--checkpoint", networks["one"], "--data", "digits", "--num-images", 20]
    empty = tmp_path / "empty"
    assert (
        "no results table" in call("analyze", "calibration", "--results", empty).error
    )
    kept = ["--eps", 0, "--results", tmp_path, "--keep", "verdicts"]
    assert call("eval", *words, *kept).code == 0
    error = call("analyze", "calibration", "--results", tmp_path).error
    assert "have kept no logits" in error
    assert "--keep heads" in error
    assert "has no accuracies" in call(
        "analyze", "corruption-error", "--results", tmp_path, "--reference", "one"
    ).error  # fmt: skip


# ---- folders ----


def named(networks: dict[str, Path], folder: Path) -> Path:
    """The first network with the names of its classes."""
    file = folder / "named.safetensors"
    model = open_source(str(networks["six"])).load()
    classes = [f"digit {i}" for i in range(10)]
    save_model(model, file, {"resolution": 16, "classes": classes})
    return file


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def test_some_of_the_classes(
    call: Caller,
    networks: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A folder of three digits and of a class that is none."""
    digits = open_dataset("digits").test
    source = named(networks, tmp_path)
    for i in range(120):
        if (label := int(digits.labels[i])) in (2, 5, 7):
            save(digits.load(i), tmp_path / "part" / f"Digit_{label}" / f"{i}.png")
    save(digits.load(0), tmp_path / "part" / "letter" / "0.png")
    words = ["shift", "--source", source, "--data", tmp_path / "part"]
    done = call("analyze", *words, "--results", tmp_path / "results")
    assert done.code == 0, done.err
    assert "does not know 1 classes of the data: 'letter'" in caplog.text
    table = ResultsTable(tmp_path / "results")
    [row] = table.rows()
    assert (row.setting.num_classes, row.setting.left_out) == (3, 1)
    assert row.setting.corruptions == ()
    arrays = table.arrays(row)
    assert arrays["clean_logits"].shape == (row.n, 3)
    assert arrays["classes"].tolist() == ["Digit_2", "Digit_5", "Digit_7"]
    # Three classes are easier to tell apart than ten.
    assert row.value > 60
    assert call("analyze", "calibration", "--results", tmp_path / "results").code == 0


def test_a_folder_like_imagenet_c(
    call: Caller, networks: dict[str, Path], tmp_path: Path
) -> None:
    """Files of corrupted images give what the same corruptions give when made."""
    digits = open_dataset("digits").test
    how = usual_preparation(digits.augment_default, 16)
    for kind, severity in (("fog", 1), ("fog", 2), ("contrast", 1), ("contrast", 2)):
        images = Corrupted(digits, how, kind, severity)
        for i in range(40):
            name = f"digit {digits.labels[i]}"
            save(
                images.load(i),
                tmp_path / "c" / kind / str(severity) / name / f"{i}.png",
            )
    source = named(networks, tmp_path)
    words = ["shift", "--source", source, "--severities", 1, 2]
    done = call(
        "analyze", *words, "--data", tmp_path / "c", "--results", tmp_path / "results"
    )
    assert done.code == 0, done.err
    table = ResultsTable(tmp_path / "results")
    rows = {row.metric: row for row in table.rows()}
    assert "top1" not in rows
    model = open_source(str(source)).load().eval()
    right = []
    for i in range(40):
        made = corrupt(resize_center_crop(digits.load(i), how), "fog", 1, index=i)
        with torch.no_grad():
            x = torch.from_numpy(made).permute(2, 0, 1)[None].float() / 255
            right.append(
                int(model.net(model.normalize(x)).argmax()) == digits.labels[i]
            )
    arrays = table.arrays(rows["corrupted_top1"])
    assert arrays["right"].shape == (2, 2, 40)
    kinds = arrays["corruptions"].tolist()
    assert arrays["right"][kinds.index("fog"), 0].sum() == sum(right)
    error = call(
        "analyze", *words, "--data", tmp_path / "c", "--corruptions", "snow",
        "--results", tmp_path / "results",
    ).error  # fmt: skip
    assert "fog" in error


def test_the_json_output_is_the_rows(call: Caller, measured: Path) -> None:
    done = call("analyze", "corruption-error", "--results", measured, "--reference",
                "two", "--source", "three", "--json")  # fmt: skip
    found = json.loads(done.out)
    assert {each["metric"] for each in found} >= {"mce", "ce:fog"}
