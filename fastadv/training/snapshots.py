"""Pictures during a run: what the attack does to a few images, and where gradients point."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from fastadv.attacks import PGD
from fastadv.data import Batch, ImageSet
from fastadv.data.sets.subsets import Subset
from fastadv.models import NormalizedModel

log = logging.getLogger(__name__)

COLUMNS = 8  # the width of a page


def shown(images: ImageSet, count: int = COLUMNS) -> ImageSet:
    """At most `count` images, of as many classes as possible; the same every time."""
    spread = np.linspace(0, len(images.classes) - 1, count).round().astype(np.int64)
    firsts = {int(c): np.flatnonzero(images.labels == c) for c in spread}
    picked: list[int] = []
    for c in spread:  # with fewer classes than columns, each has several
        left = [int(i) for i in firsts[int(c)] if int(i) not in picked]
        picked += left[:1]
    others = (i for i in range(len(images)) if i not in picked)
    picked += [i for i, _ in zip(others, range(count - len(picked)), strict=False)]
    return Subset(images, picked)


def draw(
    run: Path,
    epoch: int,
    model: NormalizedModel,
    batch: Batch,
    class_names: tuple[str, ...],
    attack: PGD | None,
) -> str | None:
    """Write `pictures/epoch-N.png`: clean, adversarial, perturbation, gradient.

    Args:
        run: the run directory.
        epoch: epochs done.
        model: stays as it is.
        batch: the images to show.
        class_names: of the model's outputs.
        attack: of the adversarial images; None draws gradients alone.

    Returns:
        The file, relative to `run`; None if it could not be written, which is logged.
    """
    from fastadv.reporting.figures.pictures import adversarial_examples, loss_gradients

    models = {f"epoch {epoch}": model}
    if attack is None:
        figure = loss_gradients(models, batch.images, batch.labels)
    else:
        figure = adversarial_examples(
            models, batch.images, batch.labels, class_names, attack, gradients=True
        )
    file = f"pictures/epoch-{epoch:04d}.png"
    try:
        (run / "pictures").mkdir(exist_ok=True)
        figure.savefig(run / file, dpi=120)
    except OSError as error:
        log.warning("%s could not be written: %s", run / file, error.strerror or error)
        return None
    return file
