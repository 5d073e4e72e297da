"""Identities of rows stay what they were, so that no sweep computes an old row again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fastadv.data import ArraySet, DatasetSplits
from fastadv.models.source import Source
from fastadv.transfer import TransferConfig
from fastadv.transfer.identity import row_identity

# As computed before choices were shared by commands and rows had types.
_KNOWN: list[tuple[dict[str, Any], str]] = [
    ({"refit": "none"}, "53cb42eaa8e359b1ad458284de71845f"),
    (
        {
            "mode": "last_k_blocks", "k": 3, "protocol": "utrera2021", "num_train": 100,
            "seeds": (0,), "device": "cuda", "workers": 3,
        },
        "502d5fbb81087afb65c53808851c04cf",
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
            "mode": "scratch", "precision": "bf16", "source_accuracy": 3.0,
            "name": "other", "results": "elsewhere",
        },
        "dfe4dc568c6086aacb65c7f087d4be99",
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
    pixels = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    train, test = (
        ArraySet(pixels, [0, 1, 0, 1], ["a", "b"], name="x", split=split)
        for split in ("train", "test")
    )
    config = TransferConfig(source="s", dataset="x", **choices)
    return row_identity(config, 5, source, DatasetSplits("x", train, test), 32)


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
    ],
)
def test_what_is_computed_otherwise_than_before_is_another_number(
    choices: dict[str, Any], as_before: dict[str, Any]
) -> None:
    """The second number is what older tables have under these choices."""
    assert _identity(**choices) != _identity(**choices | as_before)


def test_the_input_convention_is_part_of_a_source() -> None:
    assert _identity("imagenet", refit="none") == "cbcfc95f8c4c331b5297adeaa388f80a"
