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
from fastadv.transfer.experiment import Experiment, Fitted, SeedSplit
from fastadv.transfer.heads import (
    LEAST_BIAS,
    LinearHead,
    choose_head,
    fit_exact,
    fit_sgd,
)

log = logging.getLogger(__name__)


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
    procedure, features = experiment.procedure, experiment.features
    exact = experiment.config.exact
    fitted = (_fit_exact if exact else _fit_grid)(experiment, splits)
    for split, heads in zip(splits, fitted, strict=True):
        val = features.of(split.val or experiment.splits.test, split.seed)
        head, choice, value = choose_head(heads, val, experiment.splits.metric)
        if exact:
            chosen = {
                "chosen_c": choice,
                "solver": "lbfgs",
                "augment": procedure.augment,
            }
        else:
            # The images behind the features were resized and not augmented.
            how = {"chosen_lr": choice, "solver": "sgd", "augment": "none"}
            chosen = procedure.for_setting() | how
        yield Fitted(_with_head(experiment.frozen, head), chosen, value, head)


def _fit_exact(
    experiment: Experiment, splits: Sequence[SeedSplit]
) -> Iterator[dict[float, LinearHead]]:
    for split in splits:
        train = experiment.features.of(split.train, split.seed)
        experiment.features.test()  # unreadable test images stop the run before the fit
        yield fit_exact(train, experiment.num_classes, split.seed)


def _fit_grid(
    experiment: Experiment, splits: Sequence[SeedSplit]
) -> Iterator[dict[float, LinearHead]]:
    procedure, features = experiment.procedure, experiment.features
    seeds = [split.seed for split in splits]
    pool, rows = features.together([split.train for split in splits], seeds)
    features.test()  # unreadable test images stop the run before the fit
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
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(head.weight))
        if model.head.bias is None:
            model.head.bias = torch.nn.Parameter(bias.to(model.head.weight))
        model.head.bias.copy_(bias)
    return model
