"""Pooling of regions against torchvision's, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from fastadv.detection.rois import quick_rois

CPU = torch.device("cpu")


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("height", "width"), [(13, 17), (1, 1), (2, 30)])
def test_values_and_gradients_are_those_of_torchvision(
    aligned: bool, height: int, width: int
) -> None:
    draw = torch.Generator().manual_seed(height)
    maps = torch.randn(2, 8, height, width, generator=draw, requires_grad=True)
    scale, regions = 0.25, 40
    ends = torch.tensor([width, height]) / scale
    corner = torch.rand(regions, 2, generator=draw) * ends * 1.2 - 0.1 * ends
    side = torch.rand(regions, 2, generator=draw) * ends * 0.7
    side[:5] = 0  # regions without area
    corner[5] = 3 * ends  # and one outside of the map
    image = torch.randint(0, 2, (regions, 1), generator=draw).float()
    rois = torch.cat([image, corner, corner + side], 1)
    found = []
    for quick in (False, True):
        with quick_rois(CPU) if quick else torch.enable_grad():
            pooled = roi_align(maps, rois, (3, 5), scale, 2, aligned)
        weights = torch.linspace(-1, 1, pooled.numel()).view_as(pooled)
        (gradient,) = torch.autograd.grad((pooled * weights).sum(), maps)
        found.append((pooled.detach(), gradient))
    (theirs, their_gradient), (ours, gradient) = found
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-4, atol=1e-5)


def test_it_runs_where_it_is_wanted_and_fits() -> None:
    maps = torch.randn(1, 4, 9, 9, requires_grad=True)
    rois = torch.tensor([[0.0, 1, 1, 8, 8]])

    def nodes(ratio: int) -> set[str]:
        """Names of all nodes of the graph of a pooled region."""
        found, waiting = set(), [roi_align(maps, rois, 3, 1.0, ratio).grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None:
                found.add(node.name())
                waiting += [each for each, _ in node.next_functions]
        return found

    with quick_rois(CPU):
        assert "_SumBackward" in nodes(2)
        # Without a ratio, the number of points depends on the region.
        assert "_SumBackward" not in nodes(-1)
    assert "_SumBackward" not in nodes(2)
    with quick_rois(torch.device("cuda")):
        assert "_SumBackward" not in nodes(2)


def test_no_regions_pool_to_nothing() -> None:
    maps = torch.randn(1, 4, 9, 9, requires_grad=True)
    with quick_rois(CPU):
        pooled = roi_align(maps, torch.zeros(0, 5), 3, 1.0, 2)
    assert pooled.shape == (0, 4, 3, 3)
    (gradient,) = torch.autograd.grad(pooled.sum(), maps)
    assert not gradient.any()
