"""Published networks with proofs: no attack may break them, a good one comes close.

The images and weights lie outside the project (see `tests/shared_data.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from shared_data import shared
from torch import Tensor, nn

from fastadv.attacks import PGD, ThreatModel
from fastadv.models import NormalizedModel

# ---- VNN-COMP 2021: per image, whether a verifier proved the label within eps ----


class Block(nn.Module):
    """Basic residual block without BatchNorm, as in the competition's ResNets."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x).relu())
        return (y + self.shortcut(x)).relu()


class ResNet2b(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer1 = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.linear1 = nn.Linear(1024, 100)
        self.linear2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.conv1(x).relu())
        return self.linear2(self.linear1(x.flatten(1)).relu())


def conv_net(channels: int, widths: tuple[int, int], flat: int) -> nn.Sequential:
    """The small network of Wong and Kolter 2018."""
    return nn.Sequential(
        nn.Conv2d(channels, widths[0], 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(widths[0], widths[1], 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def vnncomp_model(name: str) -> NormalizedModel:
    path = shared(f"weights/vnncomp21-{name}.safetensors")
    net = ResNet2b() if name == "resnet_2b" else conv_net(3, (8, 16), 1024)
    net.load_state_dict(load_file(path))
    with safe_open(path, "pt") as file:
        about = file.metadata()
    mean, std = ([float(v) for v in about[k].split(",")] for k in ("mean", "std"))
    return NormalizedModel(net, mean, std, name, 10).eval()


@dataclass(frozen=True)
class Instances:
    """Images uint8 [n, 3, 32, 32], labels [n], one radius each, and what was proved."""

    x: Tensor
    y: Tensor
    eps: Tensor
    proved: Tensor


def instances(name: str) -> Instances:
    with np.load(shared("vnncomp21-cifar-oracle.npz")) as file:
        rows = file["net"] == name
        x, y, eps = (torch.from_numpy(file[k][rows]) for k in ("x", "y", "eps"))
        proved = torch.from_numpy(file["verdict"][rows] == "unsat")
    return Instances(x, y, eps, proved)


def broken(
    name: str, factor: float, objective: str, norm: str = "linf", **options: int
) -> tuple[Instances, Tensor]:
    """The instances of a network, and which of them fall at `factor` times eps."""
    model, data = vnncomp_model(name), instances(name)
    success = torch.zeros(len(data.y), dtype=torch.bool)
    for eps in data.eps.unique():
        rows = data.eps == eps
        radius = factor * float(eps)
        attack = PGD(
            ThreatModel(norm, radius),  # type: ignore[arg-type]
            step_size=radius / 10,
            random_start=True,
            objective=objective,
            keep="best",
            **options,  # type: ignore[arg-type]
        )
        success[rows] = attack(model, data.x[rows], data.y[rows]).success
    return data, success


@pytest.mark.parametrize("objective", ["margin", "cross_entropy", "dlr", "kl"])
@pytest.mark.parametrize(("name", "count"), [("resnet_2b", 41), ("cifar_base_kw", 8)])
def test_proved_instances_hold(name: str, count: int, objective: str) -> None:
    data, success = broken(name, 1, objective, num_steps=50, num_restarts=2)
    assert int(data.proved.sum()) == count
    assert not success[data.proved].any()


def test_at_twice_the_radius_every_kw_instance_falls() -> None:
    _, success = broken("cifar_base_kw", 2, "margin", num_steps=100, num_restarts=5)
    assert success.all()


def test_resnet_instances_fall_as_the_radius_grows() -> None:
    """Of 41 proved ones 5 fall at twice and 23 at four times the radius."""
    fallen = []
    for factor in (2, 4):
        options = {"num_steps": 100, "num_restarts": 5}
        data, success = broken("resnet_2b", factor, "margin", **options)
        fallen.append(int(success[data.proved].sum()))
    print(fallen)
    assert fallen[0] >= 5
    assert fallen[1] >= 23


# ---- Wong and Kolter 2018, MNIST, certified at linf 0.1 ----

CERTIFIED_ERROR = 0.058  # published bound over the whole test set, at eps 0.1


class Masked(nn.Module):
    """Logits times 1000: the softmax saturates and cross-entropy loses its gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.model(x)


@pytest.fixture(scope="module")
def mnist() -> tuple[NormalizedModel, Tensor, Tensor]:
    """The network, images uint8 [10000, 1, 28, 28] and labels."""
    net = conv_net(1, (16, 32), 1568)
    net.load_state_dict(load_file(shared("weights/kw18-mnist.safetensors")))
    with np.load(shared("mnist-test.npz")) as file:
        x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
    model = NormalizedModel(net, [0.0], [1.0], "kw18-mnist", 10).eval()
    return model, x[:, None], y.long()
