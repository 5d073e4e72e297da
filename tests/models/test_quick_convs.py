"""Within `quick_convs` a network computes the same, its wide 3x3 layers by Winograd's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastadv.kernels import launch_counts, reset_launch_counts, use_backend
from fastadv.kernels._cpp import unavailable_reason
from fastadv.models import create_model
from fastadv.models.quick_convs import quick_convs

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    unavailable_reason() is not None, reason="needs the C++ library"
)


def ran():
    counts = {op: n for (_, op), n in launch_counts().items()}
    return counts.get("conv3x3", 0), counts.get("conv3x3_weight", 0)


@pytest.mark.parametrize(
    ("arch", "size", "count"), [("resnet18", 64, 13), ("vgg11_bn", 64, 7)]
)
def test_the_same_loss_and_gradients(arch, size, count):
    torch.manual_seed(0)
    net = create_model(arch, num_classes=10).net.train()
    for module in [*net.modules()]:
        for name, child in module.named_children():
            # Rounding would switch units on and off, and the largest of four.
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(2))
    z, y = torch.randn(48, 3, size, size), torch.arange(48) % 10

    def gradients():
        net.zero_grad()
        torch.manual_seed(0)  # dropout
        loss = F.cross_entropy(net(z), y)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in net.parameters()]

    reset_launch_counts()
    with quick_convs(CPU):
        loss, got = gradients()
    assert ran() == (2 * count, count)
    wanted_loss, wanted = gradients()
    assert ran() == (2 * count, count)
    assert torch.allclose(loss, wanted_loss, rtol=1e-5)
    # The gradient of a bias before a BatchNorm is zero: what is there is rounding.
    nothing = 1e-5 * max(g.norm() for g in wanted)
    for one, other in zip(got, wanted, strict=True):
        if other.norm() < nothing:
            assert one.norm() < nothing
        else:
            assert (one - other).norm() < 1e-4 * other.norm()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 3),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.Conv2d(32, 40, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1).double(),
    ],
    ids=repr,
)
def test_other_convolutions_are_left_to_torch(conv):
    x = torch.randn(4, 32, 16, 16, dtype=conv.weight.dtype)
    reset_launch_counts()
    with quick_convs(CPU):
        assert torch.equal(conv(x), conv(x))
    assert ran() == (0, 0)


@pytest.mark.parametrize("padding", [1, (1, 1), "same"])
def test_every_way_to_write_it(padding):
    x, conv = torch.randn(4, 32, 16, 16), nn.Conv2d(32, 32, 3, padding=padding)
    reset_launch_counts()
    with quick_convs(CPU):
        got = conv(x)
    assert ran() == (1, 0)
    assert torch.allclose(got, conv(x), atol=1e-5)


def test_not_under_autocast_nor_another_backend():
    x, conv = torch.randn(4, 32, 16, 16), nn.Conv2d(32, 32, 3, padding=1)
    reset_launch_counts()
    with quick_convs(CPU), torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    with quick_convs(CPU), use_backend("reference"):
        conv(x)
    assert ran() == (0, 0)
    with quick_convs(torch.device("meta")):  # any other device
        conv(x)
    assert ran() == (0, 0)
