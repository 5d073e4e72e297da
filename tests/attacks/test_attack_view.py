"""The attack view computes what the plain eval model computes, and follows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from attack_nets import (
    batch,
    randomise_bn,
    small_model,
)
from torch import nn
from view_checks import (
    assert_same,
    assert_same_function,
    output_and_gradient,
    relative,
    small_input,
    state_of,
    writes,
)

from fastadv.models import create_model
from fastadv.models.architecture_names import SALMAN2020
from fastadv.models.folding import FrozenNorm
from fastadv.models.view import AttackView

# How many BatchNorm layers do not directly follow a convolution that only they read:
# the pre-activation ones of DenseNet, WRN-28 and PreActResNet, after a sum or a
# concatenation.
LEFT = {
    "densenet121": 62,
    "densenet161": 82,
    "wide_resnet28_4_cifar": 12,
    "wide_resnet28_10_cifar": 12,
    "preact_resnet18_cifar": 9,
    "timm/densenet121": 62,
    "timm/mobilevit_xxs": 9,  # in blocks that no tracer may look into
}
WIDE = {"wide_resnet50_2", "wide_resnet101_2", "resnet101", "vgg13_bn", "vgg19_bn"}
SLOW = {"wide_resnet50_4"}
# Those of the papers and of CIFAR, and members of the other families. All of torchvision's
# are compared by bench/architectures.py.
NAMES = (
    *SALMAN2020,
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet"),
    *("mobilenet_v3_small", "regnet_y_400mf", "resnet34", "resnet101", "squeezenet1_1"),
    *("swin_t", "vgg11_bn", "vgg13_bn", "vgg19_bn", "wide_resnet101_2"),
    *(f"resnet{depth}_cifar" for depth in (8, 14, 20, 32, 44, 56)),
    *("resnet18_cifar", "resnet34_cifar", "resnet50_cifar", "wide_resnet50_2_cifar"),
    *("wide_resnet28_4_cifar", "wide_resnet28_10_cifar", "preact_resnet18_cifar"),
)
# What is particular: a head that is a subclass of nn.Linear and BatchNorm fused with its
# activation (mobilenetv3, densenet); padding that depends on the shape (tf_); an argument
# with a default (vit).
TIMM = (
    "timm/resnet10t",
    "timm/mobilenetv3_small_050",
    "timm/tf_mobilenetv3_small_minimal_100",
    "timm/densenet121",
    "timm/mobilevit_xxs",
    "timm/vit_tiny_patch16_224",
)


def side(arch: str) -> int:
    """Pixels: as few as show the borders of a convolution in every stage."""
    if arch.endswith("_cifar"):
        return 16
    return 224 if "vit_" in arch else 32 if arch in WIDE | SLOW else 64


@pytest.mark.parametrize(
    "arch",
    [pytest.param(a, marks=[pytest.mark.slow] * (a in SLOW)) for a in (*NAMES, *TIMM)],
)
def test_view_is_the_eval_model(arch: str) -> None:
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    model = create_model(arch, 10, seed=0)
    randomise_bn(model)
    model.double().train()
    before = writes(model)
    view = AttackView(model)
    draw = torch.Generator().manual_seed(1)
    shape = (2, 3, side(arch), side(arch))
    x = torch.rand(shape, generator=draw, dtype=torch.float64)
    assert_same(view, model, model.normalize(x))
    assert writes(model) == before
    assert view.unfolded_reason is None
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert norms - view.folded == LEFT.get(arch, 0)
    assert not any(p.requires_grad for p in view.parameters())
    called = {str(n.target) for n in view.net.graph.nodes if n.op == "call_module"}
    modules = dict(view.net.named_modules())
    assert not any(isinstance(modules[name], nn.BatchNorm2d) for name in called)
    for name, reason in view.unfolded.items():
        assert isinstance(modules[name], FrozenNorm)
        # The shortcut of PreActResNet reads what the first convolution of a block does.
        assert reason == "no convolution directly before it" or (
            arch.startswith("preact") and reason.endswith("has other readers")
        )


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("googlenet", {"aux_logits": True, "init_weights": False}),
        ("inception_v3", {"aux_logits": True, "init_weights": False}),
        ("regnet_y_400mf", {}),
    ],
)
def test_view_is_the_eval_model_of_other_libraries(
    arch: str, options: dict[str, bool]
) -> None:
    """Concatenated branches; heads that only train mode has; squeeze-and-excitation."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(arch, weights=None, num_classes=10, **options)
    randomise_bn(net)
    net.double().train()
    view = AttackView(net)
    z = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    assert_same_function(view, net, net, z)
    assert view.unfolded == {}
    assert view.folded == sum(
        isinstance(m, nn.BatchNorm2d) and "aux" not in name.lower()
        for name, m in net.named_modules()
    )


# ---- the view follows the model ----


def test_view_follows_the_optimiser_after_refresh() -> None:
    model = small_model().double().train()
    view, z = AttackView(model), small_input()
    view.features(z)  # builds the graph of the embedding, which must follow too
    stale = view(z)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        model.forward_normalized(z).square().sum().backward()  # moves statistics too
        optimiser.step()
        view.refresh()
        assert_same(view, model, z)
    assert relative(view(z), stale) > 0.01


def test_view_follows_loaded_weights_and_a_new_head() -> None:
    model, z = small_model(0).double(), small_input()
    view = AttackView(model)
    view.features(z)
    model.load_state_dict(small_model(1).double().state_dict())
    view.refresh()
    assert_same(view, model, z)
    model.replace_head(4, seed=2)
    view.refresh()
    assert view(z).shape == (4, 4)
    assert_same(view, model, z)


@pytest.mark.parametrize("arch", ["small", "resnet20_cifar", "convnext_tiny"])
def test_view_follows_a_change_of_dtype(arch: str) -> None:
    """ConvNeXt has parameters of its own blocks, outside any layer."""
    model = small_model() if arch == "small" else create_model(arch, 10, seed=0)
    z = small_input() if arch != "convnext_tiny" else torch.ones(1, 3, 32, 32).double()
    view = AttackView(model)
    view.features(z.float())
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    view.refresh()
    assert view.dtype == torch.float64
    assert_same(view, model, z)


@pytest.mark.parametrize("arch", ["small", "convnext_tiny"])
def test_cast_view_follows_the_optimiser(arch: str) -> None:
    """In another dtype every weight is a copy: all must be brought up to date."""
    model = small_model() if arch == "small" else create_model(arch, 10, seed=0)
    view = AttackView(model, dtype=torch.float64)
    z = small_input() if arch == "small" else torch.ones(1, 3, 32, 32).double()
    view.features(z)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    view.refresh()
    exact = small_model() if arch == "small" else create_model(arch, 10, seed=0)
    exact.load_state_dict(model.state_dict())
    # The folded product is rounded once to float32 before the cast.
    assert_same(view, exact.double(), z, tolerance=1e-6)


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [("eval", None), ("train", None), ("eval", torch.bfloat16)],
    ids=["eval", "train", "bfloat16"],
)
@pytest.mark.parametrize("arch", ["small", "wide_resnet28_4_cifar"])
def test_refresh_writes_in_place(arch: str, mode: Any, dtype: Any) -> None:
    """What has recorded addresses, as a CUDA graph has, reads the new weights there."""
    model = small_model() if arch == "small" else create_model(arch, 10, seed=0)
    view = AttackView(model, mode=mode, dtype=dtype)
    before = {name: (t.data_ptr(), t.clone()) for name, t in state_of(view).items()}
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor += 1
    mine = writes(model)
    view.refresh()
    after = state_of(view)
    assert after.keys() == before.keys()
    assert all(after[name].data_ptr() == before[name][0] for name in after)
    assert not any(torch.equal(after[name], before[name][1]) for name in after)
    assert writes(model) == mine  # not even what is shared was written to


def test_view_shares_what_it_need_not_change() -> None:
    model = small_model()
    view = AttackView(model)
    assert view.net.head.weight.data_ptr() == model.net.head.weight.data_ptr()
    assert view.net.conv1.weight.data_ptr() != model.net.conv1.weight.data_ptr()


def test_view_holds_no_reference_that_state_dict_would_save_twice() -> None:
    model = small_model()
    view = AttackView(model)
    assert model.net not in list(view.modules())
    assert set(small_model().state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("size", [16, 21])
def test_bfloat16_view_is_close(size: int) -> None:
    model = small_model()
    images = batch(4, size)[0]
    z = model.normalize(images.float() / 255)
    view = AttackView(model, dtype=torch.bfloat16)
    assert view.dtype == torch.bfloat16
    logits, grad = output_and_gradient(view, z.bfloat16())
    assert logits.dtype == grad.dtype == torch.bfloat16
    exact, exact_grad = output_and_gradient(model.forward_normalized, z)
    # bfloat16 keeps three digits (4e-3); a handful of layers add up to a few of those.
    assert relative(logits.float(), exact) < 0.03
    cosine = torch.cosine_similarity(grad.float().flatten(1), exact_grad.flatten(1))
    assert (cosine > 0.999).all()
