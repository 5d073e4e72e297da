"""Models that cannot or must not be folded: the view runs them as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack_nets import (
    SmallNet,
    batch,
    randomise_bn,
    same_bits,
    small_model,
    snapshot,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from view_checks import (
    EXACT,
    assert_same,
    assert_same_function,
    output_and_gradient,
    relative,
    small_input,
)

from fastadv.attacks import PGD, ThreatModel
from fastadv.models import create_model
from fastadv.models.view import AttackView


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


class _Operations(TorchDispatchMode):
    """Counts the operations that a GPU would launch a kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ):  # type: ignore[no-untyped-def]
        self.count += func not in (
            torch.ops.aten.detach.default,
            torch.ops.aten.view.default,
            torch.ops.aten.alias.default,
        )
        return func(*args, **(kwargs or {}))


def test_a_refresh_launches_little_more_than_a_kernel_per_layer() -> None:
    model = create_model("resnet18_cifar", 10, seed=0).eval()
    for dtype in (None, torch.bfloat16):
        view = AttackView(model, dtype=dtype)
        with _Operations() as operations:
            view.refresh()
        assert view.folded == 20
        # One product for each weight; everything else is for all layers at once.
        assert operations.count <= 20 + 12
