"""The attack view computes what the plain eval model computes, and follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
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
from fastadv.models import ARCHITECTURES, NormalizedModel, create_model
from fastadv.models.folding import FrozenNorm
from fastadv.models.view import AttackView

# Relative to the largest value. Float64 leaves 1e-15 to 5e-15 (measured); anything
# folded wrongly shows in the first digits.
EXACT = 1e-10

# How many BatchNorm layers do not directly follow a convolution that only they read:
# the pre-activation ones of DenseNet and WRN-28, after a sum or a concatenation.
LEFT = {
    "densenet121": 62,
    "densenet161": 82,
    "wide_resnet28_4_cifar": 12,
    "wide_resnet28_10_cifar": 12,
    "timm/densenet121": 62,
    "timm/mobilevit_xxs": 9,  # in blocks that no tracer may look into
}
WIDE = {"wide_resnet50_2", "wide_resnet101_2", "resnet101", "vgg13_bn", "vgg19_bn"}
SLOW = {"wide_resnet50_4"}
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
    for seen, plain in (
        (view, model.forward_normalized),
        (view.features, model.features_normalized),
    ):
        assert_same_function(seen, plain, model, z, tolerance)


def assert_same_function(
    seen: Callable[[Tensor], Tensor],
    plain: Callable[[Tensor], Tensor],
    model: nn.Module,
    z: Tensor,
    tolerance: float = EXACT,
) -> None:
    modes = [m.training for m in model.modules()]
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


def state_of(view: AttackView) -> dict[str, Tensor]:
    return {**dict(view.named_parameters()), **dict(view.named_buffers())}


def small_input(dtype: torch.dtype = torch.float64) -> Tensor:
    x = batch(4)[0].to(dtype) / 255
    return (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(a, marks=[pytest.mark.slow] * (a in SLOW))
        for a in (*ARCHITECTURES, *TIMM)
    ],
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
        assert reason == "no convolution directly before it"


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


def _norm_first(net: SmallNet) -> None:
    """Pre-activation: padding is of the normalised image, so nothing can be folded."""
    net.conv1 = nn.Sequential(  # type: ignore[assignment]
        nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 12, 3, padding=1), nn.ReLU()
    )


def _grouped_padded(net: SmallNet) -> None:
    net.conv2 = nn.Conv2d(
        12, 16, 3, 2, padding=2, dilation=2, groups=4, padding_mode="reflect"
    )


LONE = "no convolution directly before it"


@pytest.mark.parametrize(
    ("change", "unfolded"),
    [
        (_weight_norm, {"bn1": "a ParametrizedConv2d may compute more than a Conv2d"}),
        (
            _spectral_norm,
            {"bn2": "a ParametrizedConv2d may compute more than a Conv2d"},
        ),
        (_own_conv, {"bn1": "a ScaledConv may compute more than a Conv2d"}),
        (_own_norm, {"bn1": "a SquaringNorm may compute more than a BatchNorm2d"}),
        (_no_statistics, {"bn1": "it keeps no running statistics"}),
        (_not_affine, {}),
        (_conv_read_twice, {"bn1.norm": "the convolution before it has other readers"}),
        (
            _shared_norm,
            {"conv1.1": "it or the convolution before it runs more than once"},
        ),
        (_grouped_padded, {}),
        (_norm_first, {"conv1.0": LONE, "bn1": LONE}),
    ],
)
def test_only_what_is_safe_is_folded(
    change: Callable[[Any], None], unfolded: dict[str, str]
) -> None:
    torch.manual_seed(0)
    net = SmallNet()
    change(net)
    model = small_model(net=net).double()
    view, z = AttackView(model), small_input()
    assert_same(view, model, z)
    assert view.unfolded == unfolded
    assert view.folded == 2 - len(
        unfolded.keys() & {"bn1", "bn2", "conv1.1", "bn1.norm"}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    view.refresh()
    assert_same(view, model, z)


class Masked(SmallNet):
    """Arguments beside the image, as transformers have them."""

    def forward(
        self, z: Tensor, mask: Tensor | None = None, *, scale: float = 2.0
    ) -> Tensor:
        if mask is not None:
            z = z * mask
        return scale * super().forward(z)


def test_other_arguments_take_their_defaults() -> None:
    model = small_model(net=Masked()).double()
    view = AttackView(model)
    assert_same_function(view, model.forward_normalized, model, small_input())
    assert view.folded == 2


class Pair(SmallNet):
    def forward(self, z: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(z + other)


def test_two_images_at_once_are_not_traced() -> None:
    view = AttackView(small_model(net=Pair()))
    assert "depends on more than one argument" in (view.unfolded_reason or "")


class FunctionalHead(SmallNet):
    def forward(self, z: Tensor) -> Tensor:
        return nn.functional.linear(self.embed(z), self.head.weight, self.head.bias)


def test_features_need_a_head_that_is_called() -> None:
    """Not found in the graph, it must not pass for the end of the network."""
    view = AttackView(small_model(net=FunctionalHead()))
    with pytest.raises(TypeError, match="never calls its head 'head'"):
        view.features(small_input(torch.float32))


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
