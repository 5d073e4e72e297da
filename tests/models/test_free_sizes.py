"""Exports whose height and width are free where the network allows it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastadv.models import NormalizedModel, create_model, export_model
from fastadv.models.registry import ArchSpec


class _Fixed(nn.Module):
    """Flattens its images, so that they have one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def _fixed() -> NormalizedModel:
    spec = ArchSpec(name="fixed", build=lambda k: _Fixed(), head="head")
    return NormalizedModel(_Fixed(), (0.5,) * 3, (0.2,) * 3, "fixed", 4, spec=spec)


@torch.no_grad()
def test_a_convolutional_network_takes_any_size(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = create_model("resnet8_cifar", 4, mean=(0.5, 0.4, 0.3), seed=0).train()
    export_model(model, tmp_path / "m.onnx", "onnx", resolution=32)
    export_model(model, tmp_path / "m.pt2", "torch_export", resolution=32)
    assert model.training
    model.eval()
    session = runtime.InferenceSession(
        str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"]
    )
    program = torch.export.load(tmp_path / "m.pt2").module()
    for shape in ((1, 3, 32, 32), (2, 3, 40, 24), (5, 3, 64, 48)):
        x = torch.rand(shape)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        for found in (torch.from_numpy(logits), program(x)):
            torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_network_of_one_size_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = _fixed().eval()
    caplog.set_level(logging.INFO, logger="fastadv")
    export_model(model, tmp_path / "m.pt2", "torch_export", resolution=16)
    assert "height and width are fixed to 16 pixels: addmm: mat1" in caplog.text
    program = torch.export.load(tmp_path / "m.pt2").module()
    for n in (1, 4):
        x = torch.rand(n, 3, 16, 16)
        torch.testing.assert_close(program(x), model(x))
    with pytest.raises(Exception, match=r"Guard failed|shape"):
        program(torch.rand(2, 3, 32, 32))
