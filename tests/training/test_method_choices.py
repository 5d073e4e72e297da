"""The choices of a training method: what is refused, the defaults, schedules, recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fastadv.cli import common
from fastadv.cli.train import TrainCommand
from fastadv.errors import ConfigError
from fastadv.training import TrainConfig
from fastadv.training.method_config import METHODS
from fastadv.training.stages import side_at

RECIPES = [  # those of this command; the others are sweeps of transfers
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    if "\ncommand: fastadv-train --config\n" in path.read_text()
]


# ---- what a method does not use is refused ----


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"beta": 3.0}, "`beta=3` means nothing to `method=pgd_at`; it is for trades"),
        ({"method": "trades", "replays": 4}, "`replays=4` means nothing"),
        ({"method": "rs_fgsm", "noise": 2.0}, "it is for n_fgsm"),
        ({"method": "n_fgsm", "num_steps": 3}, "attacks in one step"),
        ({"method": "free", "random_start": True}, "has a start of its own"),
        ({"method": "mart", "mixup": 0.2}, "needs one true class per image"),
        ({"method": "trades", "eps": 0.0}, "needs an `eps` above 0"),
        ({"method": "standard", "eps": 1.0}, "leave `eps` out"),
        ({"method": "trades", "beta": -1.0}, "`beta=-1.0` cannot work"),
        ({"method": "gradalign", "precision": "fp16"}, "use bf16 or fp32"),
        ({"method": "standard", "num_steps": 7}, "so `num_steps` would do nothing"),
        (
            {"method": "standard", "step_size": 0.1, "random_start": True},
            "so `step_size`, `random_start` would do nothing",
        ),
        ({"method": "standard", "eps_warmup": 3}, "so `eps_warmup` would do nothing"),
        ({"method": "free", "bn_mode": "train"}, "has no passes of an attack"),
        ({"method": "standard", "bn_mode": "eval"}, "has no passes of an attack"),
        ({"on_overfit": "stop"}, "which `method=pgd_at` is not"),
        ({"ema": 1.0}, "in (0, 1)"),
        ({"label_smoothing": 1.0}, "in [0, 1)"),
        ({"accumulate": 0}, "at least 1"),
        ({"clip_grad": 0.0}, "above 0"),
    ],
)
def test_what_is_not_used_is_refused(choices: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**choices)
    assert complaint in str(caught.value)


def test_defaults_are_those_of_the_method() -> None:
    trades = TrainConfig(method="trades")
    assert (trades.num_steps, trades.beta) == (10, 6.0)
    free = TrainConfig(method="free")
    assert (free.num_steps, free.replays) == (1, 4)
    assert TrainConfig(method="standard").eps == 0
    assert (TrainConfig().num_steps, TrainConfig().lr) == (3, 0.1)
    assert TrainConfig(optimizer="adamw").lr == 0.001
    # A file of one method does not become another's by a flag without notice.
    with pytest.raises(ConfigError, match="means nothing"):
        TrainConfig(**(trades.to_dict() | {"method": "pgd_at"}))


# ---- schedules over epochs ----


def test_resolution_grows_in_four_stages() -> None:
    config = TrainConfig(epochs=16, progressive=128, resolution=224)
    sides = [side_at(config, 224, epoch) for epoch in range(17)]
    assert sides == [128] * 4 + [160] * 4 + [192] * 4 + [224] * 5
    small = TrainConfig(epochs=4, progressive=16, resolution=32)
    assert [side_at(small, 32, epoch) for epoch in range(4)] == [16, 20, 28, 32]
    assert side_at(TrainConfig(), 64, 0) == 64


@given(
    first=st.integers(1, 256),
    more=st.integers(0, 256),
    epochs=st.integers(1, 20),
)
def test_every_side_is_between_the_first_and_the_last(
    first: int, more: int, epochs: int
) -> None:
    config, last = TrainConfig(epochs=epochs, progressive=first), first + more
    sides = [side_at(config, last, epoch) for epoch in range(epochs)]
    assert sides == sorted(sides)
    assert sides[0] == first
    assert sides[-1] == last if epochs >= 4 else sides[-1] <= last


# ---- recipes ----


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_config_and_says_what_is_known(path: Path) -> None:
    config = common.parse(TrainCommand, ["--config", str(path)], "fastadv-train")
    assert config.method in METHODS
    about = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Command:", "Hardware:", "Time:", "Numbers:"):
        assert any(line.startswith(f"# {word}") for line in about), word
    assert f"--config recipes/{path.name}" in "".join(about)
    small = " ".join(line.removeprefix("#").strip() for line in about).split("Small:")
    program, *words = small[1].split(" took ")[0].split()
    words[words.index(f"recipes/{path.name}")] = str(path)
    tried = common.parse(TrainCommand, words, program)
    assert (tried.method, tried.arch) == (config.method, "resnet8_cifar")
    assert re.search(r"took [\d.]+ CPU minutes .*: [\d.]+ % clean", small[1])


def test_every_method_has_a_recipe() -> None:
    text = [path.read_text() for path in RECIPES]
    named = {name for name in METHODS if any(f"method: {name}\n" in t for t in text)}
    assert named == set(METHODS)
