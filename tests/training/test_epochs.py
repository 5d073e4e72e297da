"""What changes from epoch to epoch: the radius, and what a learner does with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastadv.models import create_model
from fastadv.runs.distributed import World
from fastadv.training import TrainConfig
from fastadv.training.learner import Learner
from fastadv.training.overfit import OverfitWatch
from fastadv.training.stages import radius_at
from fastadv.training.step import train_step

EPS = 8 / 255


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 16, 16), generator=generator)
    return images.to(torch.uint8), torch.arange(6)


def _learner(**choices: Any) -> Learner:
    model = create_model("resnet8_cifar", 6, seed=1)
    model = model.to(memory_format=torch.channels_last).train()
    given = {"arch": "resnet8_cifar", "norm": "linf", "eps": EPS, "device": "cpu"}
    return Learner(TrainConfig(**(given | choices)), model, 16, World())


def test_the_radius_warms_up_and_follows_the_side() -> None:
    config = TrainConfig(norm="linf", eps_warmup=3)
    radii = [radius_at(config, 32, 32, epoch) for epoch in range(5)]
    assert radii == [0.25, 0.5, 0.75, 1.0, 1.0]
    late = TrainConfig(norm="linf", clean_epochs=2, eps_warmup=1)
    assert [radius_at(late, 32, 32, epoch) for epoch in range(5)] == [0, 0, 0.5, 1, 1]
    assert radius_at(TrainConfig(norm="linf"), 16, 32, 0) == 1.0
    assert radius_at(TrainConfig(norm="l2"), 16, 32, 0) == 0.5
    learner = _learner(eps_warmup=3)
    images, labels = _batch()
    for scale in (0.25, 1.0):
        learner.begin_epoch(scale)
        assert learner.view is not None
        assert learner.method.attack is not None
        x_adv, _ = learner.method.attack.perturb(learner.view, images, labels)
        far = (x_adv - images / 255).abs().max().item()
        assert far == pytest.approx(scale * EPS, rel=1e-3)


@pytest.mark.parametrize("method", ["pgd_at", "free", "trades", "rs_fgsm"])
def test_clean_epochs_are_standard_training(method: str) -> None:
    images, labels = _batch()
    weights = []
    for choices in ({"method": method}, {"eps": 0}):
        learner = _learner(**choices)
        learner.begin_epoch(0)
        train_step(
            learner.model,
            images,
            labels,
            learner.optimizer,
            method=learner.epoch_method,
        )
        weights.append(learner.model.state_dict())
        assert learner.check_overfit(1) is None
        learner.begin_epoch(1)
        assert learner.epoch_method is learner.method
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_the_watch_keeps_a_copy() -> None:
    images, labels = _batch()
    learner = _learner(method="rs_fgsm")
    watch = OverfitWatch(images, labels, learner.config.threat, every=10, seed=0)
    weights = learner.model.state_dict()
    watch.remember(weights)
    assert watch.weights is not None
    name = next(iter(weights))
    before = watch.weights[name].clone()
    with torch.no_grad():
        weights[name] += 1
    assert torch.equal(watch.weights[name], before)
    assert [step for step in range(1, 41) if watch.due(step)] == [10, 20, 30, 40]
