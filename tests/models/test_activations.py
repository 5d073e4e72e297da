"""Intermediate features: of models and of their views, by the names of modules."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastadv.errors import ConfigError
from fastadv.models import AttackView, NormalizedModel, create_model, get_spec
from fastadv.models.intermediate import EMBEDDING, activations, recording
from fastadv.models.registry import ArchSpec

ARCHS = [
    "resnet20_cifar",
    "wide_resnet28_4_cifar",
    "resnet18",
    "densenet121",
    "efficientnet_b0",
    "mnasnet1_0",
    "mobilenet_v2",
    "shufflenet_v2_x1_0",
    "convnext_tiny",
    "vgg11_bn",
    "timm/resnet10t",
    "timm/vit_tiny_patch16_224",
]
VIEWED = ["resnet20_cifar", "densenet121", "shufflenet_v2_x1_0", *ARCHS[-2:]]


@pytest.fixture(autouse=True)
def _needs_timm(request: pytest.FixtureRequest) -> None:
    if "timm/" in request.node.name:
        pytest.importorskip("timm")


def made(arch: str) -> tuple[NormalizedModel, Tensor]:
    side = 224 if "vit" in arch else 64
    draw = torch.Generator().manual_seed(1)
    return create_model(arch, 10, seed=0).eval(), torch.randn(
        2, 3, side, side, generator=draw
    )


def double(arch: str) -> tuple[NormalizedModel, Tensor]:
    model, z = made(arch)
    return model.double(), z.double()


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_stages_have_their_strides(arch: str) -> None:
    model, z = made(arch)
    names = [stage.name for stage in model.stages()]
    found = activations(model, z, [*names, EMBEDDING])
    assert list(found) == [*names, EMBEDDING]
    assert torch.equal(found[EMBEDDING], model.features_normalized(z))
    if "vit" in arch:
        assert names == [f"blocks.{i}" for i in range(12)]
        assert {stage.stride for stage in model.stages()} == {16}
        assert {found[name].shape for name in names} == {(2, 197, 192)}
    else:
        sides = [found[name].shape[2] for name in names]
        assert sides == [z.shape[2] // stage.stride for stage in model.stages()]
        assert sides == sorted(set(sides), reverse=True)


@pytest.mark.parametrize("arch", VIEWED)
def test_views_give_what_their_models_do(arch: str) -> None:
    model, z = double(arch)
    names = [*(stage.name for stage in model.stages()), EMBEDDING]
    found, view = activations(model, z, names), AttackView(model)
    seen = activations(view, z, names)
    for name, value in found.items():
        torch.testing.assert_close(seen[name], value, rtol=1e-9, atol=1e-9)
    assert torch.equal(seen[EMBEDDING], view.features(z))


@pytest.mark.parametrize("arch", ["squeezenet1_1", "resnet18_cifar", "vgg16_bn"])
def test_every_stage_is_a_module(arch: str) -> None:
    with torch.device("meta"):
        model = create_model(arch, 10)
    for stage in model.stages():
        model.net.get_submodule(stage.name)
    assert model.stages()[0].stride == {"resnet18_cifar": 1, "vgg16_bn": 2}.get(arch, 4)


@pytest.mark.parametrize("view", [False, True])
def test_what_is_overwritten_in_place_is_what_the_module_returned(view: bool) -> None:
    """ResNet's ReLU works in place on what its BatchNorm returned."""
    model, z = double("resnet18")
    of: Any = AttackView(model) if view else model
    found = activations(of, z, ["bn1", "relu"])
    expected = model.net.bn1(model.net.conv1(z))
    torch.testing.assert_close(found["bn1"], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["relu"], expected.relu(), rtol=1e-9, atol=1e-9)
    assert (found["bn1"] < 0).any()


def test_gradients_flow_and_follow_the_weights() -> None:
    model, z = double("resnet20_cifar")
    view, z = AttackView(model), z.requires_grad_()
    for _ in range(2):
        grads = []
        for of in (model, view):
            found = activations(of, z, ["layer2", EMBEDDING])
            loss = found["layer2"].square().mean() + found[EMBEDDING].square().mean()
            grads.append(torch.autograd.grad(loss, z)[0])
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
        assert grads[0].abs().sum() > 0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        view.refresh()


def test_a_cut_graph_compiles_without_a_break() -> None:
    model, z = made("resnet8_cifar")
    view = AttackView(model)
    expected = view.activations(z, ["layer1", EMBEDDING])
    compiled = torch.compile(
        lambda z: view.activations(z, ["layer1", EMBEDDING]),
        fullgraph=True,
        backend="eager",
    )
    for name, value in compiled(z).items():
        torch.testing.assert_close(value, expected[name])


def test_a_network_that_cannot_be_traced_is_watched() -> None:
    model, z = double("resnet8_cifar")
    expected = activations(model, z, ["layer2", EMBEDDING])
    model.net.layer1.register_forward_hook(lambda *_: None)
    view = AttackView(model)
    assert view.unfolded_reason == "the network has hooks"
    found = activations(view, z, ["layer2", EMBEDDING])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_names_that_cannot_be_taken_are_refused() -> None:
    model, z = made("resnet8_cifar")
    view = AttackView(model)
    for of in (model, view):
        with pytest.raises(
            ValueError, match=r"'layer9'; perhaps you meant: layer3.*model\.stages"
        ):
            activations(of, z, ["layer1", "layer9"])
    with pytest.raises(ValueError, match=r"'conv1'.*folded into the next layer"):
        activations(view, z, ["conv1"])  # its output includes the BatchNorm
    assert all(not m._forward_hooks for m in model.modules())
    plain = AttackView(model.net)
    assert activations(plain, z, ["layer1"])["layer1"].shape == (2, 16, 64, 64)
    with pytest.raises(TypeError, match="need a NormalizedModel"):
        activations(plain, z, [EMBEDDING])


def test_other_threads_are_not_recorded() -> None:
    model, z = made("resnet8_cifar")
    with recording(model.net, ["layer1"], None) as found:
        model.net(z)
        mine = found["layer1"]
        other = threading.Thread(target=model.net, args=(2 * z,))
        other.start()
        other.join()
        assert found["layer1"] is mine


def test_stages_of_a_network_of_your_own_must_be_given() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    spec = ArchSpec(
        name="mine", build=lambda n: net, head="1", features=lambda net, z: net[0](z)
    )
    model = NormalizedModel(net, [0.5] * 3, [0.5] * 3, "mine", 2, spec=spec)
    z = torch.rand(4, 3, 2, 2)
    assert torch.equal(activations(model, z, [EMBEDDING])[EMBEDDING], z.flatten(1))
    with pytest.raises(ConfigError, match="stages of mine are not known"):
        model.stages()
    assert [s.name for s in get_spec("vgg16_bn").stages][-1] == "features.43"
