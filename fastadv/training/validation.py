"""Accuracy on held-out images, which all ranks measure together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fastadv.attacks import PGD
from fastadv.data import Batch, ImageSet, Loader, subset
from fastadv.data.sets.subsets import Subset, readable
from fastadv.evaluation.accuracy import Accuracy, Evaluation, ImageVerdicts
from fastadv.evaluation.judging import evaluate
from fastadv.models import NormalizedModel
from fastadv.runs.distributed import World
from fastadv.runs.preemption import StopRequest


class Interrupted(Exception):
    """Raised when a rank must stop; the partial measurement is discarded."""


@dataclass
class Validation:
    """Clean accuracy on all images of a set, robust accuracy on some of them.

    Each rank judges its part of the images; the result is the exact sum, with every image
    counted once, and random starts are drawn as by one process.

    Attributes:
        loader: Makes the loader, in evaluation mode, of an image set.
        judge: The attack; None measures clean accuracy alone.
        most: Number of images to attack at most, but at least one of each class.
        seed: Seed of the choice of those images.
        world: The ranks.
        bad_images: Names of the unreadable images that this rank met so far.
    """

    loader: Callable[[ImageSet], Loader]
    judge: PGD | None
    most: int
    seed: int
    world: World
    bad_images: set[str] = field(default_factory=set)

    def __call__(
        self, model: NormalizedModel, images: ImageSet, stop: StopRequest
    ) -> Evaluation:
        """Measure `model` on `images`. Every rank must call it.

        Raises:
            Interrupted: A rank must stop.
        """
        most = max(self.most, len(images.classes))
        if self.judge is None or len(images) <= most:
            return self._measure(model, images, self.judge, stop)
        attacked = subset(images, most, self.seed)
        whole = self._measure(model, images, None, stop)
        some = self._measure(model, attacked, self.judge, stop)
        judged = self.readable(attacked)  # of every rank
        part = None if some.images is None else (judged, some.images)
        return replace(
            whole,
            robust=some.robust,
            stages=some.stages,
            part=part,
            nonfinite_logits=max(whole.nonfinite_logits, some.nonfinite_logits),
            nonfinite_gradients=some.nonfinite_gradients,
            live_reason=some.live_reason,
        )

    def readable(self, images: ImageSet) -> ImageSet:
        """Return the images that no rank found unreadable. Every rank must call it."""
        bad: set[str] = set().union(*self.world.gather(self.bad_images))
        return readable(images, bad)

    def saw(self, loader: Loader) -> None:
        """Remember the unreadable images that `loader` met."""
        self.bad_images |= {name for name, _ in loader.bad_images}

    def _measure(
        self,
        model: NormalizedModel,
        images: ImageSet,
        judge: PGD | None,
        stop: StopRequest,
    ) -> Evaluation:
        world, n = self.world, len(images)
        if world.size == 1:
            return evaluate(model, self._batches(images, stop), judge)
        begin, end = (n * rank // world.size for rank in (world.rank, world.rank + 1))
        mine = Subset(images, np.arange(begin, end), split=images.split)
        own = None
        with contextlib.suppress(Interrupted):
            batches = self._batches(mine, stop) if end > begin else iter(())
            found = evaluate(model, batches, judge, offset=begin)
            own = found.clean, found.robust, found.images, _doubts(found)
        parts = [part for part in world.gather(own) if part is not None]
        if len(parts) < world.size:
            raise Interrupted
        clean, robust, verdicts, doubts = zip(*parts, strict=True)
        return Evaluation(
            _summed(clean),
            _summed(robust) if judge else None,
            images=ImageVerdicts.joined(verdicts),
            **{name: sum(each[name] for each in doubts) for name in doubts[0]},
        )

    def _batches(self, images: ImageSet, stop: StopRequest) -> Iterator[Batch]:
        loader = self.loader(images)
        batches = iter(loader)
        while not stop:
            batch = next(batches, None)
            if batch is None:
                self.saw(loader)
                return
            yield batch
        raise Interrupted


def _doubts(found: Evaluation) -> dict[str, int]:
    """Return how often something was not finite, as fields of an `Evaluation`."""
    names = ("nonfinite_clean", "nonfinite_logits", "nonfinite_gradients")
    return {name: getattr(found, name) for name in names}


def _summed(parts: Sequence[Accuracy]) -> Accuracy:
    correct = torch.stack([part.correct for part in parts]).sum(0)
    return Accuracy(correct, torch.stack([part.total for part in parts]).sum(0))


def accuracy_values(found: Evaluation) -> dict[str, Any]:
    """Return the accuracies, in [0, 1], and numbers of images as the log holds them."""
    values: dict[str, Any] = {"clean_acc": found.clean.top1, "n": found.clean.n}
    if found.robust:
        values |= {"robust_acc": found.robust.top1, "robust_n": found.robust.n}
    if found.nonfinite_logits:
        values["nonfinite_logits"] = found.nonfinite_logits
    return values


def accuracy_text(found: Evaluation) -> str:
    """Return the accuracies as text, in percent."""
    text = f"clean {100 * found.clean.top1:.1f} % of {found.clean.n}"
    if found.robust:
        text += f", robust {100 * found.robust.top1:.1f} % of {found.robust.n}"
    if found.nonfinite_logits:
        text += f", logits of {found.nonfinite_logits} images were not finite"
    return text
