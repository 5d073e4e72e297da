"""Fine-tuning of a network, or of a part of it, and the choice among the results."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastadv.attacks import PGD
from fastadv.data import ImageSet, Loader
from fastadv.data.counter import derive_key
from fastadv.data.metric import is_own
from fastadv.errors import TrainingDiverged
from fastadv.evaluation.judging import evaluate
from fastadv.models import NormalizedModel, create_model
from fastadv.progress import Progress
from fastadv.results.settings import MethodRecord, Parameter
from fastadv.training.learner import (
    attacked_view,
    needs_exact_input,
    training_attack,
)
from fastadv.training.method_config import MethodConfig
from fastadv.training.methods import DTYPES, Method, Net, method_class
from fastadv.training.optimizers import make_optimizer
from fastadv.training.step import train_step
from fastadv.transfer.experiment import Experiment, Fitted, SeedSplit
from fastadv.transfer.freezing import Trained, choose_trained, prepare_model
from fastadv.transfer.history import History
from fastadv.transfer.protocols import Procedure, Rates

log = logging.getLogger(__name__)


# Steps of the attack under which hyper-parameters are chosen.
SELECTION_STEPS = 10


def fit(experiment: Experiment, split: SeedSplit) -> Fitted:
    """Fine-tune with every learning rate and return the network that is best.

    With `procedure.refit`, another network is then trained on training and validation
    images, with the learning rate and for the epochs that were chosen.

    Args:
        experiment: Gives the source, the batches and the settings.
        split: The images; without validation images the first network counts.

    Raises:
        TrainingDiverged: Training diverged with every learning rate.
    """
    procedure = experiment.procedure
    judge = None if split.val is None else experiment.loader(split.val, train=False)
    best: tuple[tuple[float, float], History, int, NormalizedModel] | None = None
    diverged: TrainingDiverged | None = None
    runs = [History(rates, procedure.epochs) for rates in procedure.candidates()]
    for run in runs:
        try:
            for epoch, model in _candidates(experiment, run, split.train, split.seed):
                value = 0.0, 0.0
                if judge is not None:
                    value = _value(experiment, model, judge)
                    run.val[epoch - 1] = value[0]
                if best is None or value > best[0]:
                    last = epoch == procedure.epochs
                    best = value, run, epoch, model if last else copy.deepcopy(model)
        except TrainingDiverged as error:
            log.warning("%s", error)
            diverged = error
    if best is None:
        raise diverged or AssertionError("there is at least one learning rate")
    if judge is not None:
        experiment.note_bad(judge)
    value, run, epoch, model = best
    if procedure.refit:
        run = History(run.rates, procedure.epochs, refit=True)
        for again, trained in _candidates(experiment, run, split.pool, split.seed):
            model = trained
            if again == epoch:
                break
    chosen = procedure.for_setting() | {"chosen_epoch": epoch}
    chosen |= {"chosen_lr": run.rates.lr, "chosen_lr_head": run.rates.head}
    config = experiment.config
    if config.precision != "fp32":
        chosen["precision"] = config.precision
        dtype = DTYPES.get(config.precision)
        attacked = config.method_config
        if attacked and needs_exact_input(
            attacked.threat, experiment.resolution, dtype
        ):
            chosen["precision"] += ", inputs fp32"
    if (training := config.method_config) is not None:
        given = training.parameters.items()
        chosen["method"] = MethodRecord(
            name=training.method,
            norm=training.norm,
            eps=training.threat.eps,
            num_steps=training.attack_steps,
            step_size=training.step_size,
            random_start=training.random_start,
            num_restarts=training.num_restarts,
            parameters=tuple(
                Parameter(name=name, value=value) for name, value in given
            ),
            start_noise=training.start_noise,
        )
    others = [other for other in runs if other is not run]
    found = None if judge is None else value[0]
    return Fitted(model, chosen, found, history=(*others, run))


def _value(
    experiment: Experiment, model: NormalizedModel, judge: Loader
) -> tuple[float, float]:
    """Return the accuracy that hyper-parameters are chosen by, and the clean one.

    Both are in [0, 1]. Clean accuracy decides among equals: few images under attack often
    leave some.
    """
    training, attack = experiment.config.method_config, None
    if experiment.procedure.select_by == "robust" and training is not None:
        attack = PGD.judge(training.threat, SELECTION_STEPS)
    metric = experiment.splits.metric
    found = evaluate(model, judge, attack, keep_logits=is_own(metric))
    clean = found.value(metric)
    return (clean if attack is None else found.value(metric, attacked=True)), clean


def _candidates(
    experiment: Experiment, run: History, images: ImageSet, seed: int
) -> Iterator[tuple[int, NormalizedModel]]:
    """Yield the network after each epoch that may be chosen; it trains on afterwards.

    Losses, and accuracies on test images after `test_epochs`, go into `run`.
    """
    config, procedure = experiment.config, experiment.procedure
    model = experiment.load_model()
    if config.mode == "scratch":
        mean, std = model.mean.tolist(), model.std.tolist()
        token = model.token
        model = create_model(
            model.arch,
            experiment.num_classes,
            mean=mean,
            std=std,
            seed=seed,
            image_size=model.image_size,
        )
        model.set_token(token)
        model.to(experiment.device).to(memory_format=torch.channels_last)
    prepare_model(model, experiment.num_classes, seed, procedure)
    trained = choose_trained(
        model, config.mode, config.k, by_name=procedure.freeze_by_name
    )
    training = config.method_config
    method = make_method(model, training, experiment.resolution, config.precision)
    loader = experiment.loader(images, train=True, seed=seed)
    title = config.mode.replace("_", " ")
    every = procedure.select_every
    test = None
    if config.test_epochs:
        test = experiment.loader(experiment.splits.test, train=False)
    finished = fine_tune(model, trained, loader, run.rates, procedure, method, title)
    for epoch, loss in finished:
        run.loss[epoch - 1] = loss
        if test is not None and epoch in config.test_epochs:
            metric = experiment.splits.metric
            found = evaluate(model, test, keep_logits=is_own(metric))
            run.test[epoch - 1] = found.value(metric)
        if epoch == procedure.epochs:
            experiment.note_bad(loader)
            yield epoch, model
        elif every and (epoch - 1) % every == 0:
            yield epoch, model


def make_method(
    model: NormalizedModel,
    config: MethodConfig | None,
    side: int,
    precision: str = "fp32",
) -> Method:
    """Make the training method of `model`; without `config` it is standard training."""
    if config is None:
        return Method(Net(model, precision))
    dtype = DTYPES.get(precision)
    exact = needs_exact_input(config.threat, side, dtype)
    net = Net(model, precision, exact_input=exact)
    attack = training_attack(config, side, dtype)
    kind = method_class(config.method)
    return kind(net, attack, attacked_view(model, attack, exact), **config.parameters)


def fine_tune(
    model: NormalizedModel,
    trained: Trained,
    loader: Loader,
    rates: Rates,
    procedure: Procedure,
    method: Method,
    title: str,
) -> Iterator[tuple[int, float]]:
    """Train, and yield the number of finished epochs and the mean loss after each.

    Args:
        model: The network, prepared and frozen.
        trained: The part of it that trains.
        loader: Training batches.
        rates: Initial learning rates.
        procedure: The other settings.
        method: The training method, which gives the loss.
        title: Name of this training in progress messages.

    Raises:
        TrainingDiverged: A loss, a weight or a logit is not finite.
    """
    optimizer = make_optimizer(
        procedure.optimizer,
        _groups(model, trained, rates),
        lr=rates.lr,
        momentum=procedure.momentum,
        weight_decay=procedure.weight_decay,
    )
    initial = [group["lr"] for group in optimizer.param_groups]
    progress = Progress(procedure.epochs * len(loader))
    began = time.monotonic()
    step, images_seen = 0, 0
    for epoch in range(procedure.epochs):
        model.train()
        if procedure.frozen_bn == "eval":
            for module in trained.frozen:
                module.eval()
        losses = torch.zeros((), device=loader.options.device)
        images_before = images_seen
        for number, batch in enumerate(loader):
            now = epoch + number / len(loader)
            for group, lr in zip(optimizer.param_groups, initial, strict=True):
                group["lr"] = procedure.rate(lr, now)
            seed = derive_key(loader.options.seed, "start", step)
            result = train_step(
                model, batch.images, batch.labels, optimizer, method=method, seed=seed
            )
            step += 1
            images_seen += len(batch.labels)
            losses += result.loss.detach() * len(batch.labels)
            rate = images_seen / (time.monotonic() - began)
            progress.update(
                step,
                f"{title}, lr {rates}, epoch {epoch + 1}/{procedure.epochs}"
                f"  {rate:.1f} images/s",
            )
        finite = bool(result.loss.isfinite()) and _all_finite(trained.parameters)
        if finite and epoch + 1 == procedure.epochs:
            # No loss has seen the weights that the last update left.
            model.eval()
            with torch.no_grad():
                finite = _all_finite([model(batch.images.float() / 255)])
        if not finite:
            raise TrainingDiverged(
                f"fine-tuning with lr {rates} diverged in epoch {epoch + 1}; leave that "
                "value out of `lrs`"
            )
        yield epoch + 1, float(losses) / (images_seen - images_before)


def _groups(
    model: NormalizedModel, trained: Trained, rates: Rates
) -> list[dict[str, Any]]:
    """Return the parameters that train, by learning rate."""
    if rates.head is None:
        return [{"params": trained.parameters}]
    head = {id(parameter) for parameter in model.head.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained.parameters if id(p) not in head]},
        {"params": [p for p in trained.parameters if id(p) in head], "lr": rates.head},
    ]
    return [group for group in groups if group["params"]]


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
