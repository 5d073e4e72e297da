"""What a view computes against what its model does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attack_nets import (
    MEAN,
    STD,
    batch,
)
from torch import Tensor, nn

from fastadv.models import NormalizedModel
from fastadv.models.view import AttackView

# Relative to the largest value. Float64 leaves 1e-15 to 5e-15 (measured); anything
# folded wrongly shows in the first digits.
EXACT = 1e-10


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
