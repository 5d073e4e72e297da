"""The watch catches a planted collapse, leaves a healthy run alone, and acts as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import events, signal_at_step, tiny, weights
from torch import Tensor, nn

from fastadv.data import make_loader, open_dataset
from fastadv.errors import CatastrophicOverfitting, Preempted
from fastadv.models import NormalizedModel
from fastadv.runs.distributed import World
from fastadv.training import TrainConfig, overfit as module, train, train_step
from fastadv.training.learner import Learner
from fastadv.training.methods import Method
from fastadv.training.overfit import (
    OverfitCheck,
    OverfitWatch,
    collapsed,
    updates_between,
)


def _digits(split: Any, n: int) -> tuple[Tensor, Tensor]:
    loader = make_loader(split, batch_size=n, resolution=16, train=False)
    batch = next(iter(loader))
    return batch.images, batch.labels


def _small() -> NormalizedModel:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)]
    head = [nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)]
    return NormalizedModel(
        nn.Sequential(*layers, *head), [0.3] * 3, [0.3] * 3, "own", 10
    )


def _looks(steps: int, **choices: Any) -> tuple[Learner, list[OverfitCheck]]:
    digits = open_dataset("digits", resolution=16)
    images, labels = _digits(digits.train, 1024)
    held = _digits(digits.test, 256)
    config = TrainConfig(
        norm="linf", device="cpu", optimizer="adamw", lr=3e-3, **choices
    )
    learner = Learner(config, _small(), 16, World())
    learner.watch = OverfitWatch(*held, config.threat, every=50, seed=0)
    generator = torch.Generator().manual_seed(0)
    looks = []
    for step in range(1, steps + 1):
        drawn = torch.randint(0, len(images), (64,), generator=generator)
        train_step(
            learner.model,
            images[drawn],
            labels[drawn],
            learner.optimizer,
            method=learner.method,
            update=learner.update,
            seed=step,
        )
        look = learner.check_overfit(step)
        looks += [look] if look else []
    return learner, looks


def test_a_planted_collapse_is_caught_and_undone() -> None:
    """FGSM without noise at a radius of 0.3: 25 % against 0 after 100 updates."""
    learner, looks = _looks(100, eps=0.3, num_steps=1)
    assert [look.collapsed for look in looks] == [False, True]
    assert looks[1].pgd_acc < 0.05
    assert learner.fell_back
    assert learner.watch is None
    assert type(learner.method) is Method
    assert learner.attack is not None
    assert (learner.attack.num_steps, learner.attack.threat.eps) == (3, 0.3)
    assert learner.optimizer.state_dict()["state"] == {}
    # The weights are those of the look before: of a run that ended there.
    before, _ = _looks(50, eps=0.3, num_steps=1)
    for mine, theirs in zip(
        learner.model.parameters(), before.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_a_healthy_run_is_left_alone() -> None:
    learner, looks = _looks(100, eps=0.1, method="rs_fgsm")
    assert [look.collapsed for look in looks] == [False] * 2
    assert looks[-1].pgd_acc > 0.3  # 0.46 were measured: it did learn
    assert not learner.fell_back


def test_a_gap_is_a_collapse_only_where_images_can_tell() -> None:
    assert collapsed(0.9, 0.05, 256)
    assert not collapsed(0.57, 0.47, 256)  # CIFAR-10 at 8/255, healthy (Wong et al.)
    assert not collapsed(0.35, 0.2, 256)
    assert not collapsed(0.6, 0.3, 10)  # three images of ten


def test_looking_takes_a_tenth_of_the_time() -> None:
    assert updates_between(5000, 256, 512) == 2500
    every = updates_between(12, 10, 16)
    assert 24 * 10 <= 0.1 * every * 5 * 16 < 1.1 * 24 * 10


# ---- in a run; what a collapse is, is decided here ----

_RUN: dict[str, Any] = {"method": "rs_fgsm", "num_steps": None, "epochs": 3}


@pytest.fixture
def collapsing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "collapsed", lambda single_acc, pgd_acc, n: True)


@pytest.mark.usefixtures("collapsing")
def test_stop_and_warn(tmp_path: Path) -> None:
    stopped = tmp_path / "stop"
    with pytest.raises(
        CatastrophicOverfitting, match=r"step 30: .*`on_overfit=fallback`"
    ):
        train(tiny(stopped, on_overfit="stop", **_RUN))
    assert events(stopped)[-1].items() >= {"event": "overfit", "action": "stop"}.items()
    summary = train(tiny(tmp_path / "warn", on_overfit="warn", **_RUN))
    assert "overfit" in [e["event"] for e in events(tmp_path / "warn")]
    assert summary.robust_acc is not None


@pytest.mark.usefixtures("collapsing")
@pytest.mark.parametrize("changes", [{}, {"epochs": 4, "eps_warmup": 3}])
def test_after_falling_back_a_run_resumes_to_the_bit(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGD takes over in the midst of the third epoch, within the radius of that epoch."""
    choices = _RUN | changes
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(tiny(whole, **choices))
    seen = [e for e in events(whole) if e["event"] == "overfit"]
    assert [(e["step"], e["action"]) for e in seen] == [(30, "fallback")]
    signal_at_step(monkeypatch, 33)
    with pytest.raises(Preempted):
        train(tiny(run, **choices))
    train(tiny(run, resume=True, **choices))
    assert weights(run) == weights(whole)


# ---- everything a method and its update hold is resumed ----


@pytest.mark.parametrize(
    "choices",
    [
        {
            "method": "free",
            "num_steps": None,
            "ema": 0.9,
            "mixup": 0.2,
            "clip_grad": 1.0,
        },
        {
            "precision": "fp16",
            "accumulate": 2,
            "progressive": 8,
            "eps_warmup": 1,
            "label_smoothing": 0.1,
            "cutmix": 1.0,
            "num_steps": 1,
        },
        {"method": "trades", "optimizer": "lamb", "num_steps": 2, "lr": 0.01},
    ],
)
def test_all_state_is_resumed(
    choices: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(tiny(whole, **choices))
    signal_at_step(monkeypatch, 17)
    with pytest.raises(Preempted):
        train(tiny(run, **choices))
    train(tiny(run, resume=True, **choices))
    assert weights(run) == weights(whole)
    scores = [
        [(e["clean_acc"], e["robust_acc"]) for e in events(each) if e["event"] == "val"]
        for each in (whole, run)
    ]
    assert scores[0][-1] == scores[1][-1]
