"""Robust accuracy over a grid of radii, where an image that falls is attacked no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from fastadv.attacks.autoattack import Cascade
from fastadv.attacks.contract import Attack
from fastadv.evaluation.accuracy import Evaluation
from fastadv.threat import Norm, ThreatModel


class RadiusGrid(Cascade):
    """One attack at several radii, each on the images that withstood the smaller ones.

    An image that falls within a radius has fallen within every larger one, so that the
    robust accuracy never rises with the radius, and the work of a small radius is not
    repeated. Each radius is a stage of the evaluation.

    Args:
        norm: Norm of the attack.
        radii: Radii in pixel units, in any order; at least one, and none twice.
        make: Makes the attack of one radius.

    Raises:
        ValueError: There is no radius, one is 0, or one is given twice.

    Example:
        >>> grid = RadiusGrid("l2", (0.25, 0.5, 1.0), lambda t: PGD.judge(t, 20))
        >>> found = evaluate(model, loader, grid)
        >>> [stage.robust.top1 for stage in found.stages]
    """

    def __init__(
        self,
        norm: Norm,
        radii: Sequence[float],
        make: Callable[[ThreatModel], Attack],
    ) -> None:
        threats = [ThreatModel(norm, radius) for radius in sorted(radii)]
        if not threats:
            raise ValueError("a grid of radii needs at least one, got none")
        if threats[0].eps == 0 or len(set(threats)) < len(threats):
            raise ValueError(
                f"radii={tuple(radii)} must be above 0 and different from each other"
            )
        self.threats = threats
        super().__init__([(str(threat), make(threat)) for threat in threats])

    def for_classes(self, num_classes: int) -> RadiusGrid:
        """Return the grid of the attacks that exist for a number of classes."""
        grid = RadiusGrid.__new__(RadiusGrid)
        grid.__dict__ |= self.__dict__
        grid.stages = tuple(
            stage.for_classes(num_classes) if isinstance(stage, Cascade) else stage
            for stage in self.stages
        )
        return grid

    def describe(self) -> dict[str, Any]:
        """Return the settings of the attack at the largest radius, and all radii."""
        return self.at(len(self.stages) - 1).describe()

    def at(self, number: int) -> Cascade:
        """Return the attack of one radius, described as what its images went through."""
        described = self.stages[number].describe()
        if number:
            described["after_radii"] = "+".join(
                f"{threat.eps:g}" for threat in self.threats[:number]
            )
        return Cascade([(str(described["name"]), self.stages[number])], described)


def at_radius(found: Evaluation, number: int) -> Evaluation:
    """Return what an evaluation under a `RadiusGrid` found at one of its radii.

    Args:
        found: The evaluation.
        number: Number of the radius, from the smallest.

    Returns:
        The evaluation as that of one attack. Logits under attack are those of the
        largest radius that an image was attacked within, and are kept there alone.
    """
    stage = found.stages[number]
    images = found.images
    if images is not None:
        fell = images.fell_to
        survived = (fell > number).to(fell.dtype)
        images = replace(
            images,
            fell_to=torch.where(fell < 0, fell, survived),
            attacked_logits=(
                images.attacked_logits if number == len(found.stages) - 1 else None
            ),
        )
    return replace(found, robust=stage.robust, stages=(stage,), images=images)
