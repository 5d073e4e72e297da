"""Networks that a file fills are built without random weights, and are the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastadv.models import (
    create_model,
    fill_network,
    load_model,
    save_model,
    state_hash,
)
from fastadv.models.undrawn import UndrawnParameters


def test_parameters_are_not_drawn_and_all_else_is() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with UndrawnParameters():
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(4, 2))
        for draw in (
            nn.init.xavier_normal_,
            nn.init.trunc_normal_,
            nn.init.normal_,
        ):
            draw(net[1].weight)
    assert torch.equal(torch.get_rng_state(), before)
    with UndrawnParameters():
        buffer = nn.init.normal_(torch.zeros(4))
        ones = nn.init.constant_(nn.Parameter(torch.zeros(2)), 1.0)
    assert buffer.ne(0).all()
    assert ones.eq(1).all()
    assert nn.Linear(3, 3).weight.abs().sum() > 0


@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet8_cifar", "mobilenet_v2", "swin_t"]
)
def test_a_file_gives_the_same_network(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit, while building the network draws no random number."""
    model = create_model(arch, 7, seed=3)
    save_model(model, tmp_path / "m.safetensors")
    build, states = fill_network._built, []

    def noted(*args: Any) -> nn.Module:
        states.append(torch.get_rng_state())
        net = build(*args)
        states.append(torch.get_rng_state())
        return net

    monkeypatch.setattr(fill_network, "_built", noted)
    found = load_model(tmp_path / "m.safetensors")
    before, after = states
    assert torch.equal(before, after)
    assert state_hash(found) == state_hash(model)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(found.eval()(x), model.eval()(x))
