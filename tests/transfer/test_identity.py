"""Identities of rows stay what they were, so that no sweep computes an old row again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fastadv.data import ArraySet, DatasetSplits
from fastadv.models import create_model, save_model
from fastadv.models.source import Source, open_source
from fastadv.transfer import TransferConfig
from fastadv.transfer.identity import row_identity

# As computed before choices were shared by commands and rows had types.
_KNOWN: list[tuple[dict[str, Any], str]] = [
    ({"refit": "none"}, "53cb42eaa8e359b1ad458284de71845f"),
    (
        {
            "mode": "last_k_blocks", "k": 3, "protocol": "utrera2021", "seeds": (0,),
            "device": "cuda", "workers": 3,
        },
        "acf6a1b0fc71ace4cb6f448d40b4e2dd",
    ),
    (
        {
            "mode": "full_network", "method": "trades", "norm": "linf", "eps": 0.02,
            "beta": 6.0, "num_steps": 2, "lrs": (0.1, 0.01), "epochs": 3,
            "select_by": "clean",
        },
        "3653a66a5f7196c107b1f47ff04bf808",
    ),
    (
        {
            "solver": "sgd", "momentum": 0.5, "weight_decay": 0.0, "batch_size": 7,
            "val_fraction": 0.2, "downscale": 8, "refit": "none",
            "dataset_option": ("partition=2", "root=/d"),
        },
        "31573e7a1d2292257138f9b571dc7c8b",
    ),
    (
        {
            "mode": "fixed_feature", "protocol": "salman2020", "select_on": "val",
            "frozen_bn": "eval", "augment": "crop_flip", "robust_eps": 0.5,
            "robust_steps": 7,
        },
        "2fa18f32600225c22a459801aa7a700c",
    ),
    (
        {
            "mode": "full_network", "precision": "bf16", "source_accuracy": 3.0,
            "name": "other", "results": "elsewhere", "robust_eps": 0.5, "robust_steps": 20,
        },
        "ad441fda4119defe52a2c1cab9d0e79d",
    ),
]  # fmt: skip


def _identity(convention: str | None = None, **choices: Any) -> str:
    source = Source(
        file=Path("x"),
        convention=cast(Any, convention),
        name="n",
        given="s",
        file_digest="ab" * 32,
        arch="resnet18",
        norm=None,
        eps=None,
        kind=None,
        resolution=32,
        augment="auto",
        num_classes=2,
        classes=(),
    )
    config = TransferConfig(source="s", dataset="x", **choices)
    return row_identity(config, 5, source, _splits(), 32)


def _splits() -> DatasetSplits:
    pixels = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    train, test = (
        ArraySet(pixels, [0, 1, 0, 1], ["a", "b"], name="x", split=split)
        for split in ("train", "test")
    )
    return DatasetSplits("x", train, test)


@pytest.mark.parametrize(("choices", "identity"), _KNOWN)
def test_identities_are_those_of_older_tables(
    choices: dict[str, Any], identity: str
) -> None:
    assert _identity(**choices) == identity


@pytest.mark.parametrize(
    ("choices", "as_before"),
    [
        ({}, {"refit": "none"}),
        ({"mode": "full_network", "lrs": (0.1,)}, {"select_on": "val"}),
        ({"mode": "full_network", "method": "trades"}, {"select_by": "clean"}),
        (
            {"mode": "full_network", "method": "pgd_at", "num_steps": 7, "eps": 1.0},
            {"step_size": 2 / 3},
        ),
    ],
)
def test_what_is_computed_otherwise_than_before_is_another_number(
    choices: dict[str, Any], as_before: dict[str, Any]
) -> None:
    """The second number is what older tables have under these choices."""
    assert _identity(**choices) != _identity(**choices | as_before)


def test_the_input_convention_is_part_of_a_source() -> None:
    assert _identity("imagenet", refit="none") == "cbcfc95f8c4c331b5297adeaa388f80a"


def test_subsets_are_drawn_as_published_and_that_is_another_number() -> None:
    """Older tables have a stratified subset under this identity."""
    drawn = _identity(
        mode="last_k_blocks", k=3, protocol="utrera2021", num_train=100, seeds=(0,)
    )
    assert drawn != "502d5fbb81087afb65c53808851c04cf"


def test_a_network_from_scratch_is_one_for_all_sources_of_an_architecture(
    tmp_path: Path,
) -> None:
    def opened(arch: str, seed: int, **statistics: Any) -> Source:
        file = tmp_path / f"{arch}-{seed}-{len(statistics)}.safetensors"
        save_model(create_model(arch, 3, seed=seed, **statistics), file)
        return open_source(str(file))

    def identity(source: Source, mode: Any = "scratch") -> str:
        config = TransferConfig(source="s", dataset="x", mode=mode)
        return row_identity(config, 0, source, _splits(), 32)

    first, second = opened("resnet8_cifar", 0), opened("resnet8_cifar", 1)
    assert first.digest != second.digest
    assert identity(first) == identity(second)
    assert identity(first, "full_network") != identity(second, "full_network")
    assert identity(first) != identity(opened("resnet20_cifar", 0))
    halves = {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert identity(first) != identity(opened("resnet8_cifar", 0, **halves))
