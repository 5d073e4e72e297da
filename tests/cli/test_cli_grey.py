"""Networks of one channel in every command: transfer, each analysis, the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Caller
from PIL import Image

from fastadv.models import create_model, load_model, save_model
from fastadv.models.source import open_source
from fastadv.results import ResultsTable

DIGITS = ["--data", "digits", "--batch-size", 16]
KINDS: dict[str, list[object]] = {
    "influence": [
        *DIGITS, "--num-train", 40, "--num-test", 20, "--feature-cache", "off",
    ],
    "similarity": [*DIGITS, "--num-images", 60, "--other", "other"],
    "shape": ["--data", "cues", "--batch-size", 16],
    "manipulation": [*DIGITS, "--how", "patch_shuffle", "--levels", 2, "--num-images", 40],
    "shift": [
        *DIGITS, "--corruptions", "contrast", "gaussian_noise",
        "--severities", 2, "--num-images", 40,
    ],
    "gradients": [*DIGITS, "--num-images", 40],
    "visualization": [*DIGITS, "--units", 1, 2, "--num-images", 2, "--num-steps", 2],
    "inversion": [*DIGITS, "--num-images", 3, "--num-steps", 2],
    "inversion of noise": [
        *DIGITS, "--num-images", 3, "--num-steps", 2, "--start", "noise",
    ],
    "vulnerability": [*DIGITS, "--num-images", 30, "--num-steps", 2],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two grey networks of the ten digits at 16 px, and images with two cues."""
    folder = tmp_path_factory.mktemp("grey")
    classes = [str(digit) for digit in range(10)]
    for seed, name in enumerate(("grey", "other")):
        model = create_model("resnet8_cifar", 10, mean=(0.4,), std=(0.2,), seed=seed)
        about = {"resolution": 16, "classes": classes}
        save_model(model, folder / f"{name}.safetensors", about)
    (folder / "cues").mkdir()
    noise = np.random.default_rng(0)
    for i in range(40):
        pixels = noise.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        name = f"cat{i}-dog1.png" if i % 2 else f"dog{i}-cat1.png"
        Image.fromarray(pixels).save(folder / "cues" / name)
    (folder / "cues" / "categories16.json").write_text('{"cat": ["0"], "dog": ["1"]}')
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_analyses_of_grey_networks(
    call: Caller, folder: Path, tmp_path: Path, kind: str
) -> None:
    places = {"cues": folder / "cues", "other": folder / "other.safetensors"}
    words = [places.get(str(word), word) for word in KINDS[kind]]
    source, results = folder / "grey.safetensors", tmp_path / "r"
    given = [kind.split()[0], "--source", source, *words, "--results", results]
    done = call("analyze", *given)
    assert done.code == 0, done.err
    table = ResultsTable(results)
    rows = table.rows()
    assert rows
    assert all(np.isfinite(row.value) for row in rows if row.value is not None)
    if kind.startswith(("inversion", "visualization")):
        shapes = {
            values.shape[-3]
            for row in rows
            for name, values in table.arrays(row).items()
            if values.ndim >= 4 and "image" in name
        }
        assert shapes == {1}


@pytest.mark.parametrize(
    "mode",
    [
        ["fixed_feature"],
        ["full_network", "--epochs", 1, "--lrs", 0.01],
        ["last_k_blocks", "--k", 1, "--epochs", 1, "--lrs", 0.01],
        ["scratch", "--epochs", 1, "--lrs", 0.01, "--save"],
        [
            "full_network",
            "--epochs",
            1,
            "--lrs",
            0.01,
            "--method",
            "pgd_at",
            "--eps",
            0.1,
        ],
    ],
)
def test_grey_networks_are_transferred_and_opened_again(
    call: Caller, folder: Path, tmp_path: Path, mode: list[object]
) -> None:
    words = ["--source", folder / "grey.safetensors", "--dataset", "digits"]
    words += ["--num-train", 60, "--results", tmp_path / "r", "--mode", *mode]
    done = call("transfer", *words)
    assert done.code == 0, done.err
    [row] = [r for r in ResultsTable(tmp_path / "r").rows() if r.attack is None]
    assert 0 <= row.value <= 100
    if mode[0] != "fixed_feature" and "--save" not in mode:
        return
    source = open_source(f"row:{tmp_path / 'r'}/{row.identity}")
    assert source.channels == 1
    assert source.load()(torch.rand(2, 1, 16, 16)).shape == (2, 10)


def test_a_report_and_a_sweep_of_grey_networks(
    call: Caller, folder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"sources: [{folder}/grey.safetensors]\ndatasets: [digits]\nprotocols:\n"
        "  - {mode: fixed_feature, seeds: [0, 1], num_train: 60}\nfeature_cache: 'off'\n"
    )
    results = tmp_path / "r"
    assert (
        call("transfer", "sweep", recipe, "--results", results, "--dry-run").code == 0
    )
    assert call("transfer", "sweep", recipe, "--results", results).code == 0
    done = call("report", results, "--out", tmp_path / "report.html")
    assert done.code == 0, done.err


def test_other_ways_out_of_grey_networks(
    call: Caller, folder: Path, tmp_path: Path
) -> None:
    source = folder / "grey.safetensors"
    places = {
        "safetensors": tmp_path / "grey.safetensors",
        "robustbench": tmp_path / "grey.pt",
        "torch_export": tmp_path / "grey.pt2",
    }
    for kind, out in places.items():
        done = call("models", "convert", source, out, "--to", kind)
        assert done.code == 0, done.err
    x = torch.rand(2, 1, 16, 16)
    expected = load_model(source)(x)
    program = torch.export.load(places["torch_export"]).module()
    torch.testing.assert_close(program(x), expected, rtol=1e-4, atol=1e-5)
    again = load_model(f"{places['robustbench']},arch=resnet8_cifar")
    torch.testing.assert_close(again(x), expected)
