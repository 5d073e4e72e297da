"""Analyses of networks that do not fit to the data or to each other, and Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from command_line import Caller, image_folder

from fastadv.analysis import analyze_gradients
from fastadv.models import create_model, save_model
from fastadv.results.table import ResultsTable

KINDS = {
    "influence": "influence --feature-cache off",
    "gradients": "gradients --num-images 4",
    "classes": "visualization --classes above --start gaussian --num-steps 1",
    "manipulation": "manipulation --how low_pass --levels 2",
    "exchange": "shape --dataset-option texture=exchange",
    "shift": "shift --corruptions contrast --severities 1",
    "vulnerability": "vulnerability --num-images 4 --num-steps 1 --distance-steps 2 "
    "--universal-images 4 --universal-epochs 1",
}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, `above` and `below`."""
    return image_folder(tmp_path_factory.mktemp("halves") / "data")


def network(folder: Path, name: str, side: int, classes: tuple[str, ...]) -> Path:
    file = folder / f"{name}.safetensors"
    model = create_model("resnet8_cifar", len(classes), seed=side)
    save_model(model, file, {"resolution": side, "classes": list(classes)})
    return file


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gradients"])
def test_an_archive_of_other_classes_is_refused(
    call: Caller, halves: Path, tmp_path: Path, kind: str
) -> None:
    """The error names the network or its classes, and nothing is in the table."""
    net = network(tmp_path, "pets", 16, ("cat", "dog"))
    words = [*KINDS[kind].split(), "--data", halves, "--results", tmp_path / "r"]
    role = "--fine-tuned" if kind == "vulnerability" else "--source"
    if kind == "vulnerability":
        words += ["--source", network(tmp_path, "own", 16, ("above", "below"))]
    done = call("analyze", *words, role, net)
    assert done.code in (1, 2)
    assert "pets" in done.error
    assert "above" in done.error or "classes" in done.error
    assert not ResultsTable(tmp_path / "r").rows()


def test_gradients_of_other_classes_are_of_the_decision(
    call: Caller, halves: Path, tmp_path: Path
) -> None:
    """No label is needed, and the row says which loss it was."""
    for name, classes in (("pets", ("cat", "dog")), ("own", ("above", "below"))):
        net = network(tmp_path, name, 16, classes)
        words = ["gradients", "--source", net, "--data", halves, "--results", tmp_path]
        assert call("analyze", *words).code == 0
    losses = {
        row.source.name: row.setting.loss_of for row in ResultsTable(tmp_path).rows()
    }
    assert losses == {"pets": "prediction", "own": "label"}


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_different_sizes_in_one_command(
    call: Caller, halves: Path, tmp_path: Path, kind: str
) -> None:
    """Each sees the images at the side that it expects."""
    nets = [
        network(tmp_path, f"net{side}", side, ("above", "below")) for side in (16, 24)
    ]
    words = [*KINDS[kind].split(), "--data", halves, "--results", tmp_path / "r"]
    done = call("analyze", *words, "--source", *nets)
    assert done.code == 0, done.err
    sides = {
        row.source.name: row.target.resolution
        for row in ResultsTable(tmp_path / "r").rows()
        if row.kind != "universal"
    }
    assert sides == {"net16": 16, "net24": 24}


def test_control_c_is_resumed_like_a_signal_of_the_scheduler(
    call: Caller, halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(tmp_path, "net", 16, ("above", "below"))
    words = ["gradients", "--source", net, "--data", halves, "--batch-size", 4]
    words += ["--results", tmp_path / "r"]
    function, calls = analyze_gradients.alignments, []

    def interrupted(*given: object, **more: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*given, **more)

    monkeypatch.setattr(analyze_gradients, "alignments", interrupted)
    stopped = call("analyze", *words)
    assert stopped.code == 75, stopped.err
    assert not ResultsTable(tmp_path / "r").rows()
    again = call("analyze", *words)
    assert again.code == 0, again.err
    # Twelve images in batches of four: the batch in work is computed again, the first not.
    assert len(calls) == 4
    assert {row.n for row in ResultsTable(tmp_path / "r").rows()} == {12}
