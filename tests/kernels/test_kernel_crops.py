"""Crop, resize, flip and recolour: both implementations against torchvision and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional

from fastadv.kernels import _cpp, launch_counts, reset_launch_counts, use_backend
from fastadv.kernels.crops import resized_crops

HEIGHT, WIDTH = 40, 52
# top, left, height, width, flip; the last two reach beyond the image.
BOXES = torch.tensor(
    [
        [0, 0, 40, 52, 0],
        [5, 7, 20, 13, 1],
        [3, 2, 32, 32, 1],
        [39, 51, 1, 1, 0],
        [-4, -3, 32, 32, 0],
        [-5, 30, 50, 30, 1],
    ],
    dtype=torch.int32,
)
INDEX = torch.tensor([1, 0, 3, 2, 2, 3])

PLACES = ["cpp", "reference"]


class _Copies(TorchDispatchMode):
    """Notes every copy from the CPU to another device, and whether it may be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and out.device != args[0].device:
            self.count += 1
            if not kwargs.get("non_blocking", False):
                self.waiting.append(str(args[0].shape))
        return out


def test_no_copy_waits_for_the_device():
    """The device `meta` stands in for a GPU: it has a memory of its own."""
    colour = torch.ones(len(INDEX), 6)
    for _ in range(2):  # constants may be moved once
        with _Copies() as copies:
            out = resized_crops(images().to("meta"), INDEX, BOXES, 24, colour)
    assert out.shape == (len(INDEX), 24, 24, 3)
    # images, then index, boxes and colours
    assert copies.count == 4
    assert copies.waiting == [str(images().shape)]


@pytest.fixture(params=PLACES)
def place(request):
    if request.param == "cpp" and _cpp.unavailable_reason():
        pytest.skip(_cpp.unavailable_reason())
    with use_backend(request.param):
        reset_launch_counts()
        yield request.param
        ran = launch_counts().get(("cpp", "crops"), 0) > 0
        assert ran == (request.param == "cpp")


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (4, HEIGHT, WIDTH, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def expected(side: int) -> torch.Tensor:
    out = []
    for i, box in zip(INDEX.tolist(), BOXES.tolist(), strict=True):
        top, left, height, width, flip = box
        pads = ((HEIGHT - 1, HEIGHT - 1), (WIDTH - 1, WIDTH - 1), (0, 0))
        whole = np.pad(images()[i].numpy(), pads, mode="reflect")
        top, left = top + HEIGHT - 1, left + WIDTH - 1
        cut = torch.from_numpy(whole[top : top + height, left : left + width].copy())
        small = functional.resize(cut.permute(2, 0, 1), [side, side], antialias=True)
        out.append((small.flip(2) if flip else small).permute(1, 2, 0))
    return torch.stack(out)


@pytest.mark.parametrize("side", [1, 8, 32, 61])
def test_crops_are_torchvisions_to_one_level(place, side):
    got = resized_crops(images(), INDEX, BOXES, side)
    assert got.shape == (6, side, side, 3)
    gap = (got.int() - expected(side).int()).abs()
    # torchvision rounds between the two axes; we do not.
    assert gap.max() <= 1
    if side == 32:  # boxes of that side are only copied
        assert (gap[[2, 4]] == 0).all()


def recoloured(colour: list[float], place_images: torch.Tensor) -> torch.Tensor:
    n, side = len(place_images), place_images.shape[1]
    whole = torch.tensor([[0, 0, side, side, 0]] * n, dtype=torch.int32)
    table = torch.tensor([colour] * n)
    return resized_crops(place_images, torch.arange(n), whole, side, table)


def middling(side: int = 24) -> torch.Tensor:
    """Pixels that no change below takes out of 0..255."""
    x = torch.arange(side * side * 3).view(1, side, side, 3)
    return (90 + (x * 37 + x // 7) % 71).to(torch.uint8)


@pytest.mark.parametrize(
    ("colour", "adjust", "factor"),
    [
        ([1.1, 0, 0, 0, 0, 0], functional.adjust_brightness, 1.1),
        ([0.9, 0, 0.1, 0, 0, 0], functional.adjust_contrast, 0.9),
        ([1.1, -0.1, 0, 0, 0, 0], functional.adjust_saturation, 1.1),
    ],
)
def test_colour_changes_are_torchvisions(place, colour, adjust, factor):
    x = middling()
    theirs = adjust(x.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    gap = recoloured(colour, x).int() - theirs.int()
    assert gap.abs().max() <= 1  # it cuts off fractions, of the gray values too
    assert (theirs.int() - x.int()).abs().max() > 3


def test_shift_is_added_rounded_and_clamped(place):
    x = torch.tensor([[[[0, 100, 255]]]], dtype=torch.uint8)
    got = recoloured([1, 0, 0, -3.0, 2.6, 3.0], x)
    assert got.flatten().tolist() == [0, 103, 255]


def test_both_implementations_agree():
    if _cpp.unavailable_reason():
        pytest.skip(_cpp.unavailable_reason())
    colour = torch.tensor([[0.9, 0.06, 0.1, 4, -3, 2]]).repeat(len(BOXES), 1)
    with use_backend("cpp"):
        ours = resized_crops(images(), INDEX, BOXES, 29, colour)
        alone = resized_crops(images(), INDEX, BOXES, 29, colour, threads=3)
    with use_backend("reference"):
        plain = resized_crops(images(), INDEX, BOXES, 29, colour)
    assert torch.equal(ours, alone)
    gap = (ours.int() - plain.int()).abs()
    assert gap.max() <= 1  # sums in another order, rounded twice
    assert (gap > 0).float().mean() < 1e-2


def test_what_lies_too_far_outside_is_refused(place):
    resized_crops(images(), INDEX, BOXES, 4)
    for box in ([-HEIGHT, 0, 40, 40, 0], [0, 60, 20, 60, 0], [0, 0, 0, 5, 0]):
        with pytest.raises(ValueError, match="reflected"):
            resized_crops(images(), INDEX[:1], torch.tensor([box]), 8)
    with pytest.raises(ValueError, match=r"\[0, 4\] of 4"):
        resized_crops(images(), torch.tensor([0, 4]), BOXES[:2], 8)
    with pytest.raises(ValueError, match="float32"):
        resized_crops(images().float(), INDEX, BOXES, 8)


def test_an_empty_batch(place):
    resized_crops(images(), INDEX, BOXES, 4)
    got = resized_crops(images(), INDEX[:0], BOXES[:0], 8)
    assert got.shape == (0, 8, 8, 3)
