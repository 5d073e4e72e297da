"""Robust accuracy over a grid of radii: monotone, shared work, a row for each radius."""

from __future__ import annotations

import pytest
import torch
from attack_nets import batch, predicted, small_model

from fastadv.attacks import PGD, ThreatModel
from fastadv.evaluation import evaluate
from fastadv.evaluation.radii import RadiusGrid, at_radius

MODEL = small_model()
IMAGES = batch(16)[0]
LABELS = predicted(MODEL, IMAGES)
LABELS[0] = (LABELS[0] + 1) % 10
BATCHES = [(IMAGES[:10], LABELS[:10]), (IMAGES[10:], LABELS[10:])]
RADII = (0.002, 0.004, 0.008, 0.016)


def judge(threat: ThreatModel) -> PGD:
    return PGD.judge(threat, 5)


def test_the_curve_falls_and_agrees_with_single_radii() -> None:
    """Order of the radii does not matter; an image that fell stays fallen."""
    found = evaluate(MODEL, BATCHES, RadiusGrid("linf", RADII[::-1], judge))
    curve = [stage.robust.top1 for stage in found.stages]
    assert curve == sorted(curve, reverse=True)
    assert found.clean.top1 >= curve[0] > curve[-1]
    alone = [
        evaluate(MODEL, BATCHES, judge(ThreatModel("linf", radius))) for radius in RADII
    ]
    fallen = torch.zeros(16, dtype=torch.bool)
    for number, single in enumerate(alone):
        fallen |= single.images.fell_to < 1
        part = at_radius(found, number)
        assert torch.equal(part.images.fell_to < 1, fallen)
        assert torch.equal(part.images.fell_to < 0, single.images.fell_to < 0)
        assert part.robust.top1 == pytest.approx(1 - float(fallen.float().mean()))
    assert found.passes < sum(single.passes for single in alone)


def test_descriptions_say_what_came_before() -> None:
    grid = RadiusGrid("l2", (1.0, 0.25, 0.5), judge)
    assert [threat.eps for threat in grid.threats] == [0.25, 0.5, 1.0]
    plain = judge(ThreatModel("l2", 0.25)).describe()
    assert (
        grid.at(0).describe() == plain
    )  # the smallest is an evaluation like any other
    assert grid.at(2).describe()["after_radii"] == "0.25+0.5"
    assert grid.describe() == grid.at(2).describe()


@pytest.mark.parametrize("radii", [(), (0.0, 0.1), (0.1, 0.1)])
def test_radii_that_are_no_grid_are_refused(radii: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="radi"):
        RadiusGrid("l2", radii, judge)


def test_radii_in_units_of_255ths_are_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        RadiusGrid("linf", (1.0, 4.0), judge)
