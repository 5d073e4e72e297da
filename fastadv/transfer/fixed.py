"""Linear heads on the cached features of a frozen source, and the choice among them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import torch

from fastadv.data import ImageSet
from fastadv.errors import TrainingDiverged
from fastadv.models import NormalizedModel
from fastadv.transfer.experiment import Experiment, Fitted, SeedSplit
from fastadv.transfer.heads import (
    LEAST_BIAS,
    MIDDLE_STRENGTH,
    STRENGTHS,
    LinearHead,
    choose_head,
    fit_exact,
    fit_sgd,
)
from fastadv.transfer.protocols import Procedure

log = logging.getLogger(__name__)


def fit(experiment: Experiment, splits: Sequence[SeedSplit]) -> Iterator[Fitted]:
    """Fit a head for every seed and choose its hyper-parameters.

    Args:
        experiment: Gives features and settings.
        splits: The images of each seed.

    Returns:
        The source with the head of each seed. These networks share the tensors of the
        trunk.

    Raises:
        DataError: The training images of a seed are all of one class.
        TrainingDiverged: SGD diverged with every learning rate.
    """
    experiment.features.test()  # unreadable test images stop the run before the fit
    exact = experiment.config.exact
    return (_exact_heads if exact else _sgd_heads)(experiment, splits)


def _exact_heads(
    experiment: Experiment, splits: Sequence[SeedSplit]
) -> Iterator[Fitted]:
    config, features = experiment.config, experiment.features
    usual = (MIDDLE_STRENGTH,) if config.selects_on == "none" else STRENGTHS
    for split in splits:
        fit_head = partial(fit_exact, classes=experiment.num_classes, seed=split.seed)
        train = features.of(split.train, split.seed)
        heads = fit_head(train, strengths=config.strengths or usual)
        head, strength, value = _chosen(experiment, split, heads)
        if config.refits:
            pool = features.of(split.pool, split.seed)
            head = fit_head(pool, strengths=(strength,))[strength]
        how = {"chosen_c": strength, "solver": "lbfgs"}
        how |= {"augment": experiment.procedure.augment}
        how |= {"strengths": config.strengths or ()}
        yield Fitted(_with_head(experiment.frozen, head), how, value, head)


def _sgd_heads(experiment: Experiment, splits: Sequence[SeedSplit]) -> Iterator[Fitted]:
    procedure, refits = experiment.procedure, experiment.config.refits
    grid = _grid(experiment, splits, [split.train for split in splits], procedure)
    found = [_chosen(experiment, *pair) for pair in zip(splits, grid, strict=True)]
    again: dict[int, LinearHead] = {}
    for lr in {lr for _, lr, _ in found} if refits else ():
        alike = [
            split
            for split, (_, best, _) in zip(splits, found, strict=True)
            if best == lr
        ]
        pools = [split.pool for split in alike]
        grid = _grid(experiment, alike, pools, replace(procedure, lrs=(lr,)))
        again |= {
            split.seed: heads[lr] for split, heads in zip(alike, grid, strict=True)
        }
    for split, (head, lr, value) in zip(splits, found, strict=True):
        # The images behind the features were resized and not augmented.
        how = {"chosen_lr": lr, "solver": "sgd", "augment": "none"}
        head = again.get(split.seed, head)
        model = _with_head(experiment.frozen, head)
        yield Fitted(model, procedure.for_setting() | how, value, head)


def _chosen(
    experiment: Experiment, split: SeedSplit, heads: Mapping[float, LinearHead]
) -> tuple[LinearHead, float, float | None]:
    """Return the best head, its hyper-parameter, and the accuracy that it was chosen by.

    Without images to choose on there is one head, and no accuracy.
    """
    if split.val is None:
        [(only, head)] = heads.items()
        return head, only, None
    val = experiment.features.of(split.val, split.seed).judged()
    return choose_head(heads, val, experiment.splits.metric)


def _grid(
    experiment: Experiment,
    splits: Sequence[SeedSplit],
    parts: Sequence[ImageSet],
    procedure: Procedure,
) -> Iterator[dict[float, LinearHead]]:
    """Yield the heads of each seed by learning rate, fitted to its part."""
    seeds = [split.seed for split in splits]
    pool, rows = experiment.features.together(parts, seeds)
    for of_seed in fit_sgd(
        pool, rows, experiment.num_classes, seeds, procedure, device=experiment.device
    ):
        heads = dict(zip(procedure.lrs, of_seed, strict=True))
        finite = {lr: head for lr, head in heads.items() if head.finite}
        if diverged := [f"{lr:g}" for lr in heads if lr not in finite]:
            error = TrainingDiverged(
                f"heads diverged with lr {', '.join(diverged)}; leave that out of `lrs`"
            )
            if not finite:
                raise error
            log.warning("%s", error)
        yield finite


def _with_head(frozen: NormalizedModel, head: LinearHead) -> NormalizedModel | None:
    """Return `frozen` with another head; both share the tensors of the trunk.

    None where logits are no linear function of the features.
    """
    if not frozen.head_is_linear:
        return None
    shared = chain(frozen.parameters(), frozen.buffers())
    model = copy.deepcopy(frozen, {id(tensor): tensor for tensor in shared})
    model.replace_head(len(head.bias), seed=0)
    bias = torch.from_numpy(np.maximum(head.bias, LEAST_BIAS))
    model.set_head(torch.from_numpy(head.weight), bias)
    return model
