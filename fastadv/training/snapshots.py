"""Pictures during a run: a few images, their adversarial examples and loss gradients."""

from __future__ import annotations

import logging

import numpy as np

from fastadv.attacks import PGD
from fastadv.data import Batch, ImageSet
from fastadv.data.sets.subsets import Subset
from fastadv.models import NormalizedModel
from fastadv.runs.directory import RunDirectory
from fastadv.runs.listeners import PICTURE

log = logging.getLogger(__name__)

COLUMNS = 8  # the width of a page


def pictured_images(images: ImageSet, count: int = COLUMNS) -> ImageSet:
    """Return the first images of as many classes as possible, at most `count` in all."""
    spread = np.linspace(0, len(images.classes) - 1, count).round().astype(np.int64)
    picked: list[int] = []
    for c in spread:  # with fewer classes than columns, each has several
        left = np.setdiff1d(np.flatnonzero(images.labels == c), picked)
        picked += left[:1].tolist()
    others = np.setdiff1d(np.arange(len(images)), picked)
    picked += others[: count - len(picked)].tolist()
    return Subset(images, picked)


def draw_pictures(
    run: RunDirectory,
    step: int,
    epoch: int,
    model: NormalizedModel,
    batch: Batch,
    class_names: tuple[str, ...],
    attack: PGD | None,
) -> None:
    """Write `pictures/epoch-N.png`: clean, adversarial, perturbation, gradient; log it.

    A file that cannot be written is reported and does not stop the run.

    Args:
        run: The run directory.
        step: Number of training steps done.
        epoch: Number of epochs done.
        model: The model, which is left as it is.
        batch: The images to show.
        class_names: Names of the model's classes.
        attack: The attack that makes adversarial images; None draws gradients alone.
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
    path = run.path / file
    try:
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        log.warning("%s could not be written: %s", path, error.strerror or error)
        return
    run.log(PICTURE, epoch=epoch, step=step, file=file)
