"""Linear heads on the cached features of a frozen source, and the choice among them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch

from fastadv.errors import TrainingDiverged
from fastadv.models import NormalizedModel
from fastadv.progress import Progress
from fastadv.transfer.experiment import Experiment, Fitted, SeedSplit
from fastadv.transfer.heads import LinearHead, SGDGrid, fit_exact, fit_sgd

log = logging.getLogger(__name__)

_LEAST_BIAS = -1e4


def fit(experiment: Experiment, splits: Sequence[SeedSplit]) -> Iterator[Fitted]:
    """Fit a head for every seed and choose its hyper-parameters.

    Args:
        experiment: Gives features and settings.
        splits: The images of each seed.

    Yields:
        The source with the head of each seed. These networks share the tensors of the
        trunk.

    Raises:
        DataError: The training images of a seed are all of one class.
        TrainingDiverged: SGD diverged with every learning rate.
    """
    if not experiment.config.exact:
        yield from _fit_grid(experiment, splits)
        return
    for split in splits:
        features, metric = experiment.features, experiment.splits.metric
        train = features.of(split.train, split.seed)
        features.test()  # unreadable test images stop the run before the fit
        val = features.of(split.val or experiment.splits.test, split.seed)
        head, strength, value = fit_exact(
            train, val, experiment.num_classes, metric, split.seed
        )
        chosen = {
            "solver": "lbfgs",
            "chosen_c": strength,
            "augment": experiment.procedure.augment,
        }
        yield Fitted(_with_head(experiment.frozen, head), chosen, value, head)


def _fit_grid(experiment: Experiment, splits: Sequence[SeedSplit]) -> Iterator[Fitted]:
    procedure = experiment.procedure
    seeds = [split.seed for split in splits]
    pool, rows = experiment.features.together([s.train for s in splits], seeds)
    experiment.features.test()  # unreadable test images stop the run before the fit
    grid = SGDGrid(
        seeds=tuple(seeds),
        lrs=procedure.lrs,
        epochs=procedure.epochs,
        batch_size=procedure.batch_size,
        momentum=procedure.momentum,
        weight_decay=procedure.weight_decay,
    )
    progress = Progress(grid.epochs * -(-rows.shape[1] // grid.batch_size))
    heads = fit_sgd(
        pool,
        rows,
        experiment.num_classes,
        grid,
        device=experiment.device,
        report=lambda done, _: progress.update(
            done, f"{len(seeds) * len(grid.lrs)} heads"
        ),
    )
    for of_seed, split in zip(heads, splits, strict=True):
        yield _choose(experiment, split, dict(zip(grid.lrs, of_seed, strict=True)))


def _choose(
    experiment: Experiment, split: SeedSplit, heads: dict[float, LinearHead]
) -> Fitted:
    """Choose the learning rate whose head is best on the validation images."""
    val = experiment.features.of(split.val or experiment.splits.test, split.seed)
    finite = {lr: head for lr, head in heads.items() if head.finite}
    diverged = [f"{lr:g}" for lr in heads if lr not in finite]
    if diverged:
        error = TrainingDiverged(
            f"heads diverged with lr {', '.join(diverged)}; leave that out of `lrs`"
        )
        if not finite:
            raise error
        log.warning("%s", error)
    metric = experiment.splits.metric
    values = {lr: head.accuracy(val).value(metric) for lr, head in finite.items()}
    best = max(values, key=values.__getitem__)  # the first of those that are equal
    # The images behind the features were resized and not augmented.
    chosen = experiment.procedure.for_setting() | {
        "chosen_lr": best,
        "solver": "sgd",
        "augment": "none",
    }
    head = finite[best]
    return Fitted(_with_head(experiment.frozen, head), chosen, values[best], head)


def _with_head(frozen: NormalizedModel, head: LinearHead) -> NormalizedModel | None:
    """Return `frozen` with another head; both share the tensors of the trunk.

    None where logits are no linear function of the features.
    """
    if not frozen.head_is_linear:
        return None
    shared = chain(frozen.parameters(), frozen.buffers())
    model = copy.deepcopy(frozen, {id(tensor): tensor for tensor in shared})
    model.replace_head(len(head.bias), seed=0)
    # Not -inf, for a class without training images: its gradient is not finite.
    bias = torch.from_numpy(np.maximum(head.bias, _LEAST_BIAS))
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(head.weight))
        if model.head.bias is None:
            model.head.bias = torch.nn.Parameter(bias.to(model.head.weight))
        model.head.bias.copy_(bias)
    return model
