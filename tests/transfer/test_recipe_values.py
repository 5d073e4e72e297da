"""Every value of the recipes, against the papers, their public code and published tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fastadv.cli import common
from fastadv.cli.train import TrainCommand
from fastadv.data.loading.colour import PUBLISHED_JITTER, PUBLISHED_LIGHTING
from fastadv.models.published import facts_from_name
from fastadv.reporting.literature import (
    epochs_accuracy,
    limited_accuracy,
    transfer_accuracy,
)
from fastadv.reporting.threats import threat
from fastadv.training import TrainConfig
from fastadv.training.learner import training_attack
from fastadv.training.optimizer_config import learning_rate
from fastadv.transfer import TransferConfig
from fastadv.transfer.procedure import make_procedure
from fastadv.transfer.protocols import Procedure
from fastadv.transfer.recipe import read_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257}  # others: 60,000

# ---- pretraining ----

# What all of them leave at its default: SGD, standard images, the last iterate of one start.
COMMON = {
    "optimizer": "sgd", "momentum": 0.9, "clip_grad": None, "label_smoothing": 0.0,
    "mixup": 0.0, "cutmix": 0.0, "accumulate": 1, "ema": None, "num_restarts": 1,
    "clean_epochs": 0, "eps_warmup": 0, "progressive": None, "init_from": None,
    "num_train": None,
    "color_jitter": None, "lighting": None, "precision": "auto", "seed": 0,
    "beta": None, "replays": None, "noise": None, "milestones": None, "peak": 0.3,
    "resolution": None, "random_start": False, "step_size": None, "bn_mode": "eval",
    "resize": None, "interpolation": None,
}  # fmt: skip
# A CIFAR-10 network, in batches of 128 within 8/255.
CIFAR = COMMON | {
    "arch": "resnet18_cifar", "augment": "crop_flip", "batch_size": 128, "norm": "linf",
    "eps": 8 / 255, "weight_decay": 5e-4, "schedule": "onecycle", "epochs": 30, "lr": 0.1,
}  # fmt: skip
# Salman et al. 2020, appendix A: three steps of 2/3 eps from the image, on ImageNet.
IMAGENET = COMMON | {
    "arch": "resnet50", "augment": "auto", "batch_size": 512, "norm": "l2", "eps": 3.0,
    "weight_decay": 1e-4, "schedule": "step", "epochs": 90, "lr": 0.1, "num_steps": 3,
    "method": "pgd_at",
}  # fmt: skip
SINGLE = {"num_steps": 1, "bn_mode": "train"}
TRAINING: dict[str, dict[str, Any]] = {
    "imagenet_l2": IMAGENET,
    "progressive": IMAGENET | {"augment": "rrc", "progressive": 128, "resolution": 224},
    # Madry et al. 2018: seven steps of 2/255 from a random start.
    "madry": CIFAR
    | {"method": "pgd_at", "num_steps": 7, "step_size": 2 / 255, "random_start": True},
    "finetune": CIFAR
    | {"method": "pgd_at", "num_steps": 7, "step_size": 2 / 255, "random_start": True}
    | {"init_from": "runs/standard", "epochs": 10, "lr": 0.01},
    "eps_warmup": CIFAR
    | {"method": "pgd_at", "num_steps": 10, "eps": 16 / 255, "eps_warmup": 10}
    | {"step_size": 4 / 255, "random_start": True},
    # train_trades_cifar10.py of yaodongyu/TRADES, which stops at epoch 76.
    "trades": CIFAR
    | {"method": "trades", "beta": 6.0, "num_steps": 10, "step_size": 2 / 255}
    | {"weight_decay": 2e-4, "epochs": 100, "schedule": "step"}
    | {"milestones": (0.75, 0.9)},
    # train_resnet.py of YisenWang/MART, which goes on to epoch 120.
    "mart": CIFAR
    | {"method": "mart", "beta": 5.0, "num_steps": 10, "step_size": 2 / 255, "lr": 0.01}
    | {"weight_decay": 3.5e-3, "epochs": 100, "schedule": "step"}
    | {"milestones": (0.75, 0.9)},
    # Shafahi et al. 2019 for the replays; length and learning rate are ours.
    "free": CIFAR
    | {"method": "free", "replays": 8, "num_steps": 1, "bn_mode": None, "epochs": 12}
    | {"schedule": "step"},
    # CIFAR10/train_fgsm.py of locuslab/fast_adversarial.
    "rs_fgsm": CIFAR
    | SINGLE
    | {
        "method": "rs_fgsm",
        "step_size": 10 / 255,
        "epochs": 15,
        "lr": 0.2,
        "peak": 0.5,
    },
    # train.py of pdejorge/N-FGSM.
    "n_fgsm": CIFAR
    | SINGLE
    | {"method": "n_fgsm", "noise": 2.0, "lr": 0.2, "peak": 0.5},
    # The command for CIFAR-10 in the README of tml-epfl/understanding-fast-adv-training.
    "gradalign": CIFAR
    | SINGLE
    | {"method": "gradalign", "beta": 0.2, "lr": 0.3, "peak": 0.4},
    # Zhang et al. 2023 for the method; length and schedule are ours.
    "discrepancy": IMAGENET
    | {"method": "discrepancy", "beta": 500.0, "norm": "linf", "eps": 0.5 / 255}
    | {"num_steps": 10, "resolution": 224, "epochs": 30, "batch_size": 64, "lr": 0.01}
    | {"weight_decay": 5e-4, "init_from": "resnet50_linf_eps0.5.ckpt"},
    "standard": CIFAR
    | {"method": "standard", "norm": "l2", "eps": 0.0, "num_steps": 3, "bn_mode": None},
}
# What has no influence on the network, or is given by whoever runs the recipe.
ELSEWHERE = {
    "device", "backend", "data", "dataset_option", "workers", "on_bad_image", "loader",
    "compile", "out", "resume", "pictures_every", "tensorboard", "wandb", "save_minutes",
    "keep_every", "parallel", "sync_bn", "dry_run", "plan", "profile", "nproc", "slurm",
    "json", "grey", "val_size", "eval_every", "eval_steps", "eval_images", "on_overfit",
    "autotune",
}  # fmt: skip


def _train(name: str) -> TrainConfig:
    words = ["--config", str(RECIPES / f"{name}.yaml")]
    return common.parse(TrainCommand, words, "fastadv-train")


@pytest.mark.parametrize("name", TRAINING)
def test_values_of_pretraining(name: str) -> None:
    found = {k: v for k, v in vars(_train(name)).items() if k not in ELSEWHERE}
    assert found == TRAINING[name] | {"method_option": ()}


def test_every_recipe_of_pretraining_is_above() -> None:
    texts = {file.stem: file.read_text() for file in RECIPES.glob("*.yaml")}
    named = {n for n, text in texts.items() if "\ncommand: fastadv-train" in text}
    assert named == set(TRAINING)


def _rates(name: str, epochs: list[float]) -> list[float]:
    config = _train(name)
    whole = 100 * config.epochs
    return [learning_rate(config, round(100 * epoch), whole) for epoch in epochs]


def test_learning_rates_fall_where_the_authors_lower_them() -> None:
    # Salman et al. 2020: by ten after every 30 of 90 epochs.
    found = _rates("imagenet_l2", [0, 29.99, 30, 59.99, 60, 89.99])
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    # TRADES and MART: by ten from epoch 75, and again from epoch 90.
    for name, lr in (("trades", 0.1), ("mart", 0.01)):
        found = _rates(name, [0, 74.99, 75, 89.99, 90])
        assert found == pytest.approx([lr, lr, lr / 10, lr / 10, lr / 100])
    # RS-FGSM and N-FGSM: CyclicLR, up in one half and down in the other.
    assert _rates("rs_fgsm", [3.75, 7.5, 11.25]) == pytest.approx([0.1, 0.2, 0.1])
    assert _rates("n_fgsm", [7.5, 15, 22.5]) == pytest.approx([0.1, 0.2, 0.1])
    # GradAlign: linear to epoch 12 of 30, and to zero at the end.
    assert _rates("gradalign", [6, 12, 21]) == pytest.approx([0.15, 0.3, 0.15])


@pytest.mark.parametrize(
    ("name", "steps", "step", "start"),
    [
        ("imagenet_l2", 3, 2.0, 0.0),
        ("madry", 7, 2 / 255, 8 / 255),
        ("trades", 10, 2 / 255, 0.001 * 3**0.5),
        ("mart", 10, 2 / 255, 0.001 * 3**0.5),
        ("rs_fgsm", 1, 10 / 255, 8 / 255),
        ("n_fgsm", 1, 8 / 255, 16 / 255),
        ("gradalign", 1, 8 / 255, 0.0),
        ("discrepancy", 10, 1.25 * 0.5 / 255 / 10, 0.0005 * 3**0.5),
    ],
)
def test_attacks_of_pretraining(
    name: str, steps: int, step: float, start: float
) -> None:
    config = _train(name)
    attack = training_attack(config, 32, None)
    assert attack is not None
    assert (attack.num_steps, attack.bn_mode) == (steps, config.bn_mode)
    assert attack.step_size == pytest.approx(step)
    radius = attack.threat.eps if attack.start_eps is None else attack.start_eps
    assert (radius if attack.random_start else 0.0) == pytest.approx(start)


def test_colours_of_imagenet_are_those_of_the_robustness_package() -> None:
    assert (PUBLISHED_JITTER, PUBLISHED_LIGHTING) == (0.1, 0.05)


# ---- sweeps: settings ----


def _tiers(name: str) -> list[str | None]:
    return list(
        yaml.safe_load((RECIPES / f"{name}.yaml").read_text()).get("tiers", [None])
    )


def _experiments(name: str, *tiers: str) -> Iterator[tuple[TransferConfig, Procedure]]:
    for tier in tiers or _tiers(name):
        for config in read_recipe(RECIPES / f"{name}.yaml", tier):
            images = config.num_train or IMAGES.get(config.dataset, 60_000)
            yield (
                config,
                make_procedure(config, config.dataset, images, config.side(224)),
            )


def test_settings_of_salman2020() -> None:
    for config, found in _experiments("salman2020"):
        assert (found.epochs, found.batch_size, found.lrs) == (150, 64, (0.01, 0.001))
        assert (found.optimizer, found.momentum) == ("sgd", 0.9)
        assert found.weight_decay == 5e-4
        rates = [found.rate(1.0, e) for e in (0, 49.9, 50, 99.9, 100, 149.9)]
        assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
        assert (found.select_on, found.augment, config.side(224)) == (
            "test",
            "rrc",
            224,
        )
        assert (config.seeds, config.robust_eps, config.method) == (
            (0, 1, 2), None, "standard",
        )  # fmt: skip
        assert found.departures == ()


def test_settings_of_utrera2021() -> None:
    for config, found in _experiments("utrera2021-limited"):
        few = config.num_train is not None and config.num_train <= 1600
        assert found.epochs == (100 if few else 150)
        assert (found.batch_size, found.lrs, found.optimizer) == (128, (0.1,), "sgd")
        assert (found.momentum, found.weight_decay) == (0.9, 5e-4)
        third = found.epochs // 3
        rates = [found.rate(1.0, e) for e in (0, third - 1, third, 2 * third)]
        assert rates == pytest.approx([1, 1, 0.1, 0.01])
        size = config.num_train or 1 << 30
        seeds = 10 if size <= 6400 else 5 if size <= 25_600 else 1
        assert config.seeds == tuple(range(seeds))
        digits = config.dataset in ("mnist", "kmnist", "fashion_mnist")
        assert found.augment == ("none" if digits else "utrera")
        assert (found.select_on, config.side(224)) == ("none", 224)
    for config, _ in _experiments("utrera2021-limited", "attacked"):
        assert (config.norm, config.robust_eps, config.robust_steps) == ("l2", 0.5, 128)


def test_settings_of_zhang2023() -> None:
    rates = [a * 10**b for b in range(-5, -1) for a in (1, 3)] + [0.1]
    pairs = []
    for config, found in _experiments("zhang2023"):
        assert (found.epochs, found.batch_size, found.optimizer) == (90, 128, "adam")
        assert (found.weight_decay, found.rate(1.0, 90)) == (0.0, pytest.approx(1e-6))
        assert (config.norm, config.robust_eps) == ("linf", 1 / 255)
        assert (config.judge_steps, config.seeds) == (10, (0, 1, 2))
        if config.lrs_head is None:
            assert (found.lrs, found.select_on) == ((3e-4,), "test")
        else:
            pairs.append((config.lrs_head[0], found.lrs[0]))
    expected = np.array(list(itertools.product(rates, rates)))
    assert np.array(sorted(pairs)) == pytest.approx(expected)
    modes = [config.mode for config, _ in _experiments("zhang2023", "comparison")]
    assert set(modes) == {"fixed_feature", "full_network", "scratch"}


def test_settings_of_the_methods_of_zhang2023() -> None:
    """Their own code has Adam at 3e-4 and discrepancy mitigating within 0.5/255."""
    methods = []
    for config, found in _experiments("zhang2023-methods"):
        methods.append(config.method)
        assert (found.epochs, found.batch_size, found.optimizer) == (90, 128, "adam")
        assert (found.weight_decay, found.schedule) == (0.0, "cosine")
        assert found.lrs == (1e-3, 3e-4)
        assert found.select_on == "val"
        assert (config.norm, config.robust_eps) == ("linf", 0.5 / 255)
        if (method := config.method_config) is not None:
            assert (method.norm, method.eps) == ("linf", 0.5 / 255)
            assert method.attack_steps == 10
            assert method.parameters.get("beta") == {
                "pgd_at": None, "trades": 6.0, "discrepancy": 500.0,
            }[method.method]  # fmt: skip
    assert methods == ["standard", "pgd_at", "trades", "discrepancy"]


def test_settings_of_robust_transfer() -> None:
    for config, found in _experiments("robust-transfer"):
        assert (config.protocol, config.seeds) == ("fastadv", tuple(range(10)))
        assert found.select_on == "val"
        if config.mode == "full_network":
            assert (found.epochs, found.batch_size) == (150, 64)
            assert found.lrs == (0.01, 0.001)


# ---- sweeps: sources and targets, against what was published ----

Cell = tuple[str, str, int | None, str, Any]


def _cells(tier: str) -> set[Cell]:
    found = set()
    for config in read_recipe(RECIPES / "salman2020.yaml", tier):
        file = config.source.partition(":")[2]
        facts = facts_from_name(file)
        arch, trained = ("resnet50", "texture") if facts is None else (
            facts[0], threat(facts[1], facts[2])
        )  # fmt: skip
        found.add((config.dataset, config.mode, config.downscale, arch, trained))
    return found


def test_salman2020_makes_every_published_cell_and_no_other_source() -> None:
    published = {
        key for key in transfer_accuracy() if key[0] != "stylized_imagenet"
    }  # that target is a folder of one's own
    resnets = {f"resnet{n}" for n in (18, 50)} | {f"wide_resnet50_{n}" for n in (2, 4)}
    l2 = {k for k in published if k[3] in resnets and k[4] != "texture"}
    l2 = {k for k in l2 if k[4][0] != "linf"}
    made = _cells("all")
    assert l2 <= made
    for place in (0, 1, 2, 3, 4):  # targets, modes, sides, networks, radii
        assert {key[place] for key in l2} == {key[place] for key in made}
    assert {k for k in published if k[3] not in resnets} == _cells("architectures")
    linf = {k for k in published if k[4] != "texture" and k[4][0] == "linf"}
    assert linf == {k for k in _cells("linf") if k[4][1]}
    # A texture-trained network that is public exists for ResNet-50 alone.
    texture = {k for k in published if k[3:] == ("resnet50", "texture")}
    assert texture == {k for k in _cells("texture") if k[4] == "texture"}


def test_utrera2021_makes_every_published_cell() -> None:
    names = {
        "natural": (None, 0.0), "l2-3": threat("l2", 3.0),
        "linf-4": threat("linf", "4/255"), "linf-8": threat("linf", "8/255"),
    }  # fmt: skip

    def made(*tiers: str) -> set[tuple[str, str, int, int | None, Any]]:
        return {
            (c.dataset, "resnet50", int(c.k or 0), c.num_train, names[str(c.name)])
            for c, _ in _experiments("utrera2021-limited", *tiers)
        }

    assert set(limited_accuracy()) <= made("all")
    epochs = {key[5] for key in epochs_accuracy()}
    for config, found in _experiments("utrera2021-limited", "figure3"):
        assert {*config.test_epochs, found.epochs} == epochs
    assert {key[:4] for key in epochs_accuracy()} == {
        key[:4] for key in made("figure3")
    }
