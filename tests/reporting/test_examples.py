"""fastadv-report --examples: the sources are those the numbers are of, each in its terms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastadv import reporting
from fastadv.errors import ConfigError
from fastadv.models import NormalizedModel, create_model, save_model
from fastadv.models.input_conventions import CONVENTIONS
from fastadv.reporting.examples import example_section
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable
from fastadv.transfer import TransferConfig, transfer


def _config(folder: Path, source: str, **changes: Any) -> TransferConfig:
    """Fast, into one table."""
    return TransferConfig(
        source=source,
        dataset="digits",
        num_train=50,
        feature_cache="off",
        results=str(folder / "results"),
        device="cpu",
        workers=0,
        **changes,
    )


def _rows(folder: Path, *sources: tuple[str, int]) -> list[Row]:
    """Rows of bare checkpoints: what a source is stands in its word alone."""
    for number, (options, side) in enumerate(sources):
        file = folder / f"w{number}.pt"
        torch.save(
            create_model("resnet8_cifar", 10, seed=number).net.state_dict(), file
        )
        source = f"{file},arch=resnet8_cifar,{options}"
        transfer(_config(folder, source, resolution=side))
    return ResultsTable(folder / "results").rows()


def test_sources_are_opened_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[dict[str, NormalizedModel], Any]] = []
    real = reporting.adversarial_examples

    def drawing(
        models: Any, images: Any, labels: Any, classes: Any, attack: Any
    ) -> Any:
        drawn.append((dict(models), attack.threat))
        return real(models, images, labels, classes, attack)

    monkeypatch.setattr(reporting, "adversarial_examples", drawing)
    caffe, linf = "input=caffe,eps=0.5,norm=l2,name=caffe", "eps=4/255,norm=linf,name=f"
    rows = _rows(tmp_path, (caffe, 16), (linf, 16), ("eps=0,name=standard", 16))
    section = example_section(rows, "digits")
    found = {name: threat for models, threat in drawn for name in models}
    assert {name: (t.norm, t.eps) for name, t in found.items()} == {
        "caffe": ("l2", 0.5),
        "f": ("linf", 4 / 255),
        "standard": ("l2", 0.5),  # it has none of its own
    }
    models = {name: model for models, _ in drawn for name, model in models.items()}
    assert models["caffe"].std.tolist() == pytest.approx(CONVENTIONS["caffe"].std)
    assert models["f"].std.tolist() == pytest.approx(CONVENTIONS["imagenet"].std)
    captions = [caption for _, caption in section.figures]
    assert len(captions) == 3  # two threats, and the gradients of all at one size
    # A row that does not say the convention is of another network than its file alone.
    [row] = [row for row in rows if row.source.name == "caffe"]
    with pytest.raises(ConfigError, match="no longer the source of caffe"):
        example_section(
            [replace(row, source=replace(row.source, given=None))], "digits"
        )


def test_sources_are_shown_at_their_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[tuple[list[str], int]] = []
    real = reporting.loss_gradients

    def drawing(models: Any, images: Any, labels: Any) -> Any:
        sides.append((list(models), images.shape[-1]))
        return real(models, images, labels)

    monkeypatch.setattr(reporting, "loss_gradients", drawing)
    for side in (16, 24):
        file = tmp_path / f"net{side}.safetensors"
        model = create_model("resnet8_cifar", 10, seed=side)
        save_model(model, file, {"resolution": side})
        transfer(_config(tmp_path, str(file)))
    example_section(ResultsTable(tmp_path / "results").rows(), "digits")
    assert sides == [(["net16"], 16), (["net24"], 24)]
