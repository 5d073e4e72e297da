"""The Winograd convolution and its gradients against a convolution in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastadv.kernels import launch_counts, reset_launch_counts, use_backend
from fastadv.kernels.conv import conv3x3, unsupported_reason

# [N, in, out, H, W]: both orders of the loops (many tiles of few channels, few tiles of
# many), panels of half a width, blocks and images that end within a tile.
SHAPES = {
    "whole_tiles": (2, 32, 32, 8, 8),
    "one_pixel": (1, 16, 16, 1, 1),
    "cut_tiles": (3, 16, 48, 9, 5),
    "narrower_than_a_tile": (5, 48, 16, 2, 3),
    "many_blocks": (4, 32, 64, 33, 31),
    "two_by_two": (50, 48, 32, 2, 2),
    "one_by_two": (3, 32, 48, 1, 2),
    "many_channels": (2, 512, 528, 7, 7),
    "wide_rows": (1, 64, 32, 4, 70),
}
# Relative L2 error. A sum of 9 * 512 products in float32 has about 5e-7 by itself (measured
# on the direct convolution); transforms with points up to 1.5 cost a factor of two to four.
BOUND = 4e-6


pytestmark = pytest.mark.usefixtures("vector_isa")


def images(n, channels, h, w, seed, layout=torch.channels_last):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, h, w, generator=generator)
    return x.contiguous(memory_format=layout)


def weights(out, channels, seed=7):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(out, channels, 3, 3, generator=generator)
    w *= (2 / (9 * channels)) ** 0.5
    return w.contiguous(memory_format=torch.channels_last)


def off_by(got, wanted):
    assert got.shape == wanted.shape
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_equals_the_convolution_and_its_gradients(shape, layout, residual, relu):
    n, channels, out, h, w = shape
    x = images(n, channels, h, w, 1, layout).requires_grad_()
    weight, bias = weights(out, channels), torch.linspace(-1, 1, out)
    added = images(n, out, h, w, 2, layout).requires_grad_() if residual else None
    g = images(n, out, h, w, 3, layout)
    inputs = [x] if added is None else [x, added]

    reset_launch_counts()
    y = conv3x3(x, weight, bias, added, relu=relu)
    grads = torch.autograd.grad(y, inputs, g)
    assert launch_counts() == {("cpp", "conv3x3"): 2}  # and none for the weights

    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    if added is not None:
        exact = exact + added.double()
    # The same units are on: rounding may flip one that is within it of zero.
    on = (y > 0).double() if relu else torch.ones_like(exact)
    wanted = torch.autograd.grad(exact, inputs, g.double() * on)
    assert off_by(y, exact.relu() if relu else exact) < BOUND
    for got, expected in zip(grads, wanted, strict=True):
        assert off_by(got, expected) < BOUND
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("relu", [False, True])
def test_equals_the_gradients_of_the_weights(shape, layout, relu):
    n, channels, out, h, w = shape
    inputs = [
        images(n, channels, h, w, 1, layout),
        weights(out, channels).contiguous(memory_format=layout),
        torch.linspace(-1, 1, out),
    ]
    g = images(n, out, h, w, 3, layout)

    def gradients(function, *tensors):
        tensors = [t.requires_grad_() for t in tensors]
        return torch.autograd.grad(function(*tensors), tensors, g.to(tensors[0].dtype))

    reset_launch_counts()
    on = conv3x3(*inputs, relu=relu) > 0 if relu else torch.ones(n, out, h, w)
    got = gradients(lambda *t: conv3x3(*t, relu=relu), *inputs)
    assert launch_counts()["cpp", "conv3x3_weight"] == 1
    exact = [t.detach().double() for t in inputs]
    wanted = gradients(lambda *t: F.conv2d(*t, padding=1) * on, *exact)
    for one, other in zip(got, wanted, strict=True):
        assert off_by(one, other) < BOUND


@pytest.mark.parametrize("residual", [False, True])
def test_gradients_are_differentiable(residual):
    inputs = [images(2, 16, 4, 5, 1), weights(16, 16), torch.zeros(16)]
    if residual:
        inputs.append(images(2, 16, 4, 5, 2))
    g = images(2, 16, 4, 5, 3)

    def second(function, *tensors):
        tensors = [t.requires_grad_() for t in tensors]
        y = function(*tensors).square()
        grads = torch.autograd.grad(y, tensors, g.to(y.dtype), create_graph=True)
        return torch.autograd.grad(sum(t.square().sum() for t in grads), tensors)

    def plain(x, weight, bias, added=0):
        return F.relu(F.conv2d(x, weight, bias, padding=1) + added)

    got = second(lambda *t: conv3x3(*t, relu=True), *inputs)
    wanted = second(plain, *[t.detach().double() for t in inputs])
    for one, other in zip(got, wanted, strict=True):
        assert off_by(one, other) < 10 * BOUND  # a sum over three passes


@pytest.mark.parametrize("shape", [(4, 256, 14), (64, 512, 2)])
def test_error_is_that_of_float32_sums(shape):
    n, channels, side = shape
    x, weight = images(n, channels, side, side, 1).relu(), weights(channels, channels)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    direct = off_by(F.conv2d(x, weight, padding=1), exact)
    assert off_by(conv3x3(x, weight), exact) < 4 * direct


def test_thread_count_changes_nothing():
    x, weight = images(3, 64, 21, 21, 1), weights(96, 64)
    g = images(3, 96, 21, 21, 2)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            of_weight = torch.ops.fastadv.conv3x3_weight(x, g)
            results.append((conv3x3(x, weight), of_weight))
    finally:
        torch.set_num_threads(threads)
    for got in zip(*results, strict=True):
        assert all(torch.equal(got[0], other) for other in got[1:])


def test_batch_split_changes_nothing_but_rounding():
    x, weight = images(6, 32, 10, 10, 1), weights(32, 32)
    halves = [conv3x3(part, weight) for part in x.split(3)]
    assert off_by(torch.cat(halves), conv3x3(x, weight)) < 1e-6


def test_no_images():
    x = torch.empty(0, 32, 8, 8, requires_grad=True)
    y = conv3x3(x, weights(16, 32), relu=True)
    assert y.shape == (0, 16, 8, 8)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.shape == x.shape
    none = torch.ops.fastadv.conv3x3_weight(x.detach(), y.detach())
    assert torch.equal(none, torch.zeros(16, 32, 3, 3))


def test_a_nan_stays_visible_under_relu():
    x = images(1, 16, 8, 8, 1)
    x[0, 3, 2, 2] = float("nan")
    y = conv3x3(x, weights(16, 16), relu=True)
    assert y[0, :, 1:4, 1:4].isnan().all()
    assert y[0, :, 6:, 6:].isfinite().all()  # another tile


@pytest.mark.parametrize("argument", ["residual", "mask"])
def test_shapes_that_disagree_are_refused(argument):
    x, weight = images(1, 16, 4, 4, 1), weights(32, 16)
    tensors = {"residual": None, "mask": None, argument: torch.zeros(1, 8, 4, 4)}
    with pytest.raises(ValueError, match=argument):
        torch.ops.fastadv.conv3x3(
            x, weight, None, tensors["residual"], tensors["mask"], False, False
        )


def test_says_what_it_cannot_convolve():
    x, weight = images(4, 32, 16, 16, 1), weights(32, 32)
    assert unsupported_reason(x, weight) is None
    assert "float32" in unsupported_reason(x.double(), weight)
    assert "multiples of 16" in unsupported_reason(x, weights(40, 32))
    assert "3x3" in unsupported_reason(x, weight[:, :, :1, :1])
    assert "too small" in unsupported_reason(x[:, :, :2, :2], weight)
    assert "too small" in unsupported_reason(x[:, :16], weights(32, 16))
    with use_backend("reference"):
        assert "reference" in unsupported_reason(x, weight)


def test_opcheck():
    x, weight = images(2, 16, 6, 5, 1), weights(32, 16)
    arguments = (x, weight, torch.zeros(32), images(2, 32, 6, 5, 2), x, True, False)
    torch.library.opcheck(torch.ops.fastadv.conv3x3, arguments)
    backward = (images(2, 32, 6, 5, 2), weight, None, None, None, False, True)
    torch.library.opcheck(torch.ops.fastadv.conv3x3, backward)
    of_weight = (images(2, 16, 6, 5, 1), images(2, 32, 6, 5, 2))
    torch.library.opcheck(torch.ops.fastadv.conv3x3_weight, of_weight)
