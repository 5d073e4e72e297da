"""The attack view's exchanged convolutions: which they are, and that nothing changes."""

import pytest
import torch
from torch import nn

from fastadv.kernels import _cpp, launch_counts, reset_launch_counts, use_backend
from fastadv.models import create_model
from fastadv.models.quick_convs import FrozenConv3x3
from fastadv.models.view import AttackView

pytestmark = pytest.mark.skipif(
    _cpp.unavailable_reason() is not None or _cpp.isa() == "baseline",
    reason="needs the C++ library and AVX2",
)


class Joined(nn.Module):
    """Convolutions with every kind of surroundings."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)  # too few channels
        self.plain = nn.Conv2d(32, 32, 3, padding=1)  # read twice
        self.active = nn.Conv2d(32, 64, 3, padding="same")
        self.added = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.doubled = nn.Conv2d(64, 64, 3, padding=1)
        self.shared = nn.Conv2d(64, 64, 3, padding=1)
        self.strided = nn.Conv2d(64, 64, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(64, 64, 3, padding=2)
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        x = self.plain(self.stem(x))
        x = torch.cat([x, x * 2], 1)[:, 16:48]
        x = torch.relu(self.active(x))
        x = x + self.added(x)
        x = (self.doubled(x) + x.flip(1)).relu()
        x = self.shared(self.shared(x))
        x = self.wide(self.strided(x))
        return self.head(x.mean((2, 3)))


def gradient(view, z, y):
    z = z.clone().requires_grad_()
    logits = view(z)
    loss = nn.functional.cross_entropy(logits, y, reduction="sum")
    return logits.detach(), torch.autograd.grad(loss, z)[0]


def off_by(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def assert_same_without(view, z, y):
    """The same view computes the same without the C++ kernels."""
    reset_launch_counts()
    got = gradient(view, z, y)
    ran = launch_counts().get(("cpp", "conv3x3"), 0)
    with use_backend("reference"):
        wanted = gradient(view, z, y)
    assert launch_counts().get(("cpp", "conv3x3"), 0) == ran
    logits, grads = zip(got, wanted, strict=True)
    assert off_by(*logits) < 1e-5
    # Units within rounding of zero switch, and their gradients with them: one in a vgg11_bn
    # moved it by 1e-3, a few in a resnet50 by 6e-3. A wrong term moves it by 1; to rounding,
    # with the same units on, test_kernel_conv.py compares.
    assert off_by(*grads) < 3e-2
    return ran


def test_takes_in_what_follows_and_leaves_the_rest():
    torch.manual_seed(0)
    model = Joined().eval()
    view = AttackView(model)
    frozen = {n: m for n, m in view.net.named_modules() if isinstance(m, FrozenConv3x3)}
    assert {n: m.relu for n, m in frozen.items()} == {
        "plain": False,
        "active": True,
        "added": False,
        "doubled": True,
    }
    arguments = {n.target: len(n.args) for n in view.net.graph.nodes}
    assert [arguments[n] for n in frozen] == [1, 1, 2, 2]
    assert not [n for n in view.net.graph.nodes if n.target in ("relu", torch.relu)]
    z, y = torch.randn(2, 3, 14, 12), torch.tensor([1, 3])
    assert assert_same_without(view, z, y) == 8
    logits = model(z)
    assert torch.allclose(view(z), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "size", "count"),
    [("resnet18", 112, 10), ("resnet50", 112, 11), ("vgg11_bn", 64, 5)],
)
def test_networks_of_the_registry(arch, size, count):
    """All 3x3 layers of stride 1 but those too small at four images."""
    torch.manual_seed(0)
    model = create_model(arch, num_classes=10).eval()
    view = AttackView(model)
    z, y = torch.randn(4, 3, size, size), torch.arange(4)
    assert assert_same_without(view, z, y) == 2 * count


def test_follows_the_weights():
    torch.manual_seed(0)
    model = create_model("resnet18_cifar", num_classes=10).eval()
    view = AttackView(model)
    z = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter) * parameter.abs().mean()
    view.refresh()
    reset_launch_counts()
    with torch.no_grad():
        assert torch.allclose(view(z), model.net(z), atol=1e-4)
    assert launch_counts()["cpp", "conv3x3"] > 0


def test_a_residual_that_is_broadcast_is_left_to_torch():
    class Broadcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, x):
            return self.conv(x) + x.mean((2, 3), keepdim=True)

    torch.manual_seed(0)
    model = Broadcast().eval()
    x = torch.randn(2, 32, 16, 16)
    reset_launch_counts()
    assert torch.allclose(AttackView(model)(x), model(x), atol=1e-5)
    assert ("cpp", "conv3x3") not in launch_counts()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_to_torch(dtype):
    torch.manual_seed(0)
    model = Joined().eval()
    view = AttackView(model, dtype=dtype)
    reset_launch_counts()
    assert view(torch.randn(2, 3, 16, 16, dtype=dtype)).dtype == dtype
    assert ("cpp", "conv3x3") not in launch_counts()
