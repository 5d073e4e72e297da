"""A results table nobody measured: drawn from stated means, for tests of the report."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastadv.results.migration import migrate
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable

ARCHS = {"resnet18": 0.0, "resnet50": 2.0, "wide_resnet50_2": 3.0}
EPS = (0.0, 0.1, 1.0, 3.0)
SEEDS = (0, 1, 2, 3)


def row(**changes: Any) -> dict[str, Any]:
    """One synthetic row; `changes` say what matters. Its interval is 2 points a side."""
    value = changes.get("value", 50.0)
    values: dict[str, Any] = {
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "source": "synthetic",
        "source_path": "/nowhere/synthetic.safetensors",
        "source_hash": "synthetic",
        "arch": "resnet18",
        "source_norm": "l2",
        "source_eps": 0.0,
        "dataset": "synthetic_set",
        "resolution": 224,
        "mode": "fixed_feature",
        "protocol": "fastadv",
        "select_on": "val",
        "num_train": 900,
        "num_val": 100,
        "num_pool": 1000,
        "num_available": 1000,
        "seed": 0,
        "hyperparameters": json.dumps({"solver": "lbfgs"}),
        "metric": "top1",
        "value": 50.0,
        "ci_low": value - 2,
        "ci_high": value + 2,
        "val_value": 50.0,
    }
    return values | changes


def typed(rows: Iterable[dict[str, Any]]) -> list[Row]:
    """The rows as a table returns them; clean and robust accuracy are two."""
    return [new for i, old in enumerate(rows) for new in migrate(old, "part", i)]


def synthetic_rows() -> list[dict[str, Any]]:
    """An eps grid of three architectures, two sides, and a series of few images."""
    draw = random.Random(7)
    rows = []
    for arch, eps, seed, side in itertools.product(ARCHS, EPS, SEEDS, (None, 32)):
        gain = 4 * eps**0.5 * (2 if side else 1)
        value = 60 + ARCHS[arch] + gain - (20 if side else 0) + draw.gauss(0, 0.5)
        right = [min(40, round(0.4 * value + draw.gauss(0, 2))) for _ in range(5)]
        rows.append(
            row(
                source=f"{arch} {eps:g}",
                source_path=f"/nowhere/{arch}_l2_eps{eps:g}.ckpt",
                arch=arch,
                source_eps=eps,
                dataset="cifar10",
                downscale=side,
                seed=seed,
                value=value,
                val_value=value + draw.gauss(0, 1),
                per_class_correct=right,
                per_class_total=[40] * 5,
                class_names=["ant", "bee", "<cat>", "dog & co", "eel"],
            )
        )
    for eps, n, seed, k in itertools.product(
        (0.0, 3.0), (100, 400, 1600), SEEDS, (1, 3)
    ):
        value = 40 + 8 * n**0.2 + (3 - n / 800 if eps else 0) + k + draw.gauss(0, 0.5)
        rows.append(
            row(
                source=f"r50 {eps:g}",
                arch="resnet50",
                source_eps=eps,
                dataset="svhn",
                mode="last_k_blocks",
                k_blocks=k,
                protocol="utrera2021",
                select_on="none",
                num_train=n,
                num_val=0,
                num_pool=n,
                num_available=50000,
                seed=seed,
                value=value,
                val_value=None,
                robust_value=value / 2,
                robust_ci_low=value / 2 - 2,
                robust_ci_high=value / 2 + 2,
                attack=json.dumps({"norm": "l2", "eps": 0.5}),
                notes="BatchNorm of frozen layers in train mode",
            )
        )
    return rows


def synthetic_table(folder: Path) -> Path:
    """The rows as a results table in `folder`."""
    ResultsTable(folder).append(typed(synthetic_rows()))
    return folder
