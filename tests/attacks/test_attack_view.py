"""The attack view computes what the plain eval model computes, and follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack_nets import (
    MEAN,
    STD,
    SmallNet,
    batch,
    randomise_bn,
    same_bits,
    small_model,
    snapshot,
)
from torch import Tensor, nn

from fastadv.attacks import PGD, ThreatModel
from fastadv.models import NormalizedModel, create_model
from fastadv.models.view import AttackView

# Relative to the largest value. Float64 leaves 1e-15 to 5e-15 (measured); anything
# folded wrongly shows in the first digits.
EXACT = 1e-10

# Side in pixels, and how many BatchNorm layers directly follow a convolution: all but
# the pre-activation ones of DenseNet and WRN-28, after a sum or a concatenation.
ARCHITECTURES = {
    "resnet18": (64, 20),
    "resnet18_cifar": (32, 20),
    "resnet20_cifar": (32, 19),
    "wide_resnet28_4_cifar": (32, 13),
    "vgg16_bn": (32, 13),
    "mobilenet_v2": (64, 52),
    "mnasnet1_0": (64, 52),
    "shufflenet_v2_x1_0": (64, 56),
    "densenet121": (64, 59),
    "resnext50_32x4d": (64, 53),
    "efficientnet_b0": (64, 49),
    "squeezenet1_1": (64, 0),
    "convnext_tiny": (64, 0),
    "wide_resnet50_4": (32, 53),
}
ALL_FOLDED = {"wide_resnet28_4_cifar", "densenet121"} ^ ARCHITECTURES.keys()
SLOW = {"wide_resnet50_4"}


def relative(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


def output_and_gradient(f: Callable[[Tensor], Tensor], z: Tensor) -> list[Tensor]:
    """f(z), and the gradient of a fixed random functional of it."""
    z = z.clone().requires_grad_()
    out = f(z)
    draw = torch.Generator().manual_seed(5)
    weights = torch.randn(out.shape, generator=draw, dtype=torch.float64).to(out.dtype)
    (grad,) = torch.autograd.grad((out * weights).sum(), z)
    return [out.detach(), grad]


def assert_same(
    view: AttackView, model: NormalizedModel, z: Tensor, tolerance: float = EXACT
) -> None:
    """Logits, embedding and both input gradients of the view against the eval model."""
    modes = [m.training for m in model.modules()]
    for seen, plain in (
        (view, model.forward_normalized),
        (view.features, model.features_normalized),
    ):
        got = output_and_gradient(seen, z)
        model.eval()
        expected = output_and_gradient(plain, z)
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
        for a, b in zip(got, expected, strict=True):
            assert relative(a, b) < tolerance


def writes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Where every tensor lies and how often it was written to (cheaper than copies)."""
    state = model.state_dict(keep_vars=True)
    return {k: (t.data_ptr(), t._version) for k, t in state.items()}


def small_input(dtype: torch.dtype = torch.float64) -> Tensor:
    x = batch(4)[0].to(dtype) / 255
    return (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize(
    "arch",
    [pytest.param(a, marks=[pytest.mark.slow] * (a in SLOW)) for a in ARCHITECTURES],
)
def test_view_is_the_eval_model(arch: str) -> None:
    size, folded = ARCHITECTURES[arch]
    model = create_model(arch, 10, seed=0)
    randomise_bn(model)
    model.double().train()
    before = writes(model)
    view = AttackView(model)
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, size, size, generator=draw, dtype=torch.float64)
    assert_same(view, model, model.normalize(x))
    assert writes(model) == before
    assert view.unfolded_reason is None
    assert view.folded == folded
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert (folded == norms) == (arch in ALL_FOLDED)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in view.net.modules())
    assert left == norms - folded
    assert not any(p.requires_grad for p in view.parameters())


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


# ---- models that cannot or must not be folded ----


def test_hooks_keep_the_graph_as_it_is() -> None:
    """A hook may change what flows: the view runs it instead of folding past it."""
    model = small_model().double()
    model.net.bn1.register_forward_hook(lambda module, args, out: out * 0.5)
    view = AttackView(model)
    assert view.folded == 0
    assert view.unfolded_reason == "the network has hooks"
    assert_same(view, model, small_input())


class Branching(SmallNet):
    """Control flow that depends on the data, which no tracer can follow."""

    def forward(self, z: Tensor) -> Tensor:
        logits = super().forward(z)
        return logits * 2 if logits.sum() > -1e9 else logits


def test_untraceable_models_run_unfolded() -> None:
    net = Branching()
    randomise_bn(net)
    model = small_model(net=net).double().train()
    before = snapshot(model)
    view = AttackView(model)
    assert view.folded == 0
    assert "torch.fx cannot trace it" in (view.unfolded_reason or "")
    assert_same(view, model, small_input())
    assert same_bits(before, snapshot(model))
    y = torch.zeros(4, dtype=torch.int64)
    result = PGD(ThreatModel("l2", 1.0), 2)(model, batch(4)[0], y)
    assert (result.x_adv - batch(4)[0].float() / 255).flatten(1).norm(dim=1).min() > 0.5
    assert same_bits(before, snapshot(model))


class ScaledConv(nn.Conv2d):
    """A convolution whose effective weight is not its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class SquaringNorm(nn.BatchNorm2d):
    """A normalisation that does more than an affine map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


def _weight_norm(net: SmallNet) -> None:
    nn.utils.parametrizations.weight_norm(net.conv1)


def _spectral_norm(net: SmallNet) -> None:
    nn.utils.parametrizations.spectral_norm(net.conv2)


def _own_conv(net: SmallNet) -> None:
    net.conv1 = ScaledConv(3, 12, 3, padding=1)


def _own_norm(net: SmallNet) -> None:
    net.bn1 = SquaringNorm(12)


def _no_statistics(net: SmallNet) -> None:
    net.bn1 = nn.BatchNorm2d(12, track_running_stats=False)


def _not_affine(net: SmallNet) -> None:
    net.bn1 = nn.BatchNorm2d(12, affine=False)


def _conv_read_twice(net: SmallNet) -> None:
    net.bn1 = Twice(net.conv1, net.bn1)  # type: ignore[assignment]
    net.conv1 = nn.Identity()  # type: ignore[assignment]


class Twice(nn.Module):
    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + 0.5 * y


def _shared_norm(net: SmallNet) -> None:
    net.conv1 = nn.Sequential(  # type: ignore[assignment]
        net.conv1, net.bn1, nn.Conv2d(12, 12, 1), net.bn1, nn.Conv2d(12, 12, 1)
    )


def _grouped_padded(net: SmallNet) -> None:
    net.conv2 = nn.Conv2d(
        12, 16, 3, 2, padding=2, dilation=2, groups=4, padding_mode="reflect"
    )


@pytest.mark.parametrize(
    ("change", "folded"),
    [
        (_weight_norm, 1),
        (_spectral_norm, 1),
        (_own_conv, 1),
        (_own_norm, 0),
        (_no_statistics, 1),
        (_not_affine, 2),
        (_conv_read_twice, 1),
        (_shared_norm, 1),
        (_grouped_padded, 2),
    ],
)
def test_only_what_is_safe_is_folded(
    change: Callable[[Any], None], folded: int
) -> None:
    torch.manual_seed(0)
    net = SmallNet()
    change(net)
    model = small_model(net=net).double()
    view, z = AttackView(model), small_input()
    assert_same(view, model, z)
    assert view.folded == folded
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    view.refresh()
    assert_same(view, model, z)


def test_train_mode_view_uses_the_batch_and_spares_the_statistics() -> None:
    model = small_model().double()
    before, z = snapshot(model), small_input()
    view = AttackView(model, mode="train")
    assert view.folded == 0
    assert view.unfolded_reason == "BatchNorm in train mode uses batch statistics"
    got = output_and_gradient(view, z)
    assert same_bits(before, snapshot(model))
    expected = output_and_gradient(model.train().forward_normalized, z)
    assert not same_bits(before, snapshot(model))  # the plain model does pay
    for a, b in zip(got, expected, strict=True):
        assert relative(a, b) < EXACT
    model.load_state_dict(before)
    eval_logits = AttackView(model)(z)
    assert relative(got[0], eval_logits.detach()) > 0.01
