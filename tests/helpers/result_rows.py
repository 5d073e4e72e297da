"""Rows of the results table that nobody measured."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from fastadv.results.row import (
    AttackRecord,
    ChecksRecord,
    Defect,
    Departure,
    Provenance,
    Row,
    SourceRecord,
    StageRecord,
    TargetRecord,
)
from fastadv.results.settings import (
    EvaluationSetting,
    MethodRecord,
    Parameter,
    Statistics,
    TransferSetting,
)

SOURCE = SourceRecord(
    name="robust", given="runs/robust", digest="d", eps=3.0, norm="l2"
)
TARGET = TargetRecord(
    name="digits", fingerprint="f", resolution=16, class_names=("0", "1")
)
SETTING = TransferSetting(
    mode="full_network",
    protocol="salman2020",
    select_on="test",
    num_train=90,
    num_val=10,
    num_pool=100,
    epochs=150,
    lrs=(0.01, 0.001),
    statistics=Statistics(mean=(0.0, 0.1, 0.2), std=(1.0, 1.0, 1.0)),
    method=MethodRecord(
        name="trades",
        norm="l2",
        eps=0.5,
        num_steps=3,
        parameters=(Parameter(name="beta", value=6.0),),
    ),
    chosen_lr=0.01,
)
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def transfer_row(**changes: Any) -> Row:
    """Return a row of kind transfer."""
    row = Row(
        time=WHEN,
        source=SOURCE,
        target=TARGET,
        setting=SETTING,
        value=62.5,
        low=60.0,
        high=65.0,
        per_class_correct=(3, 2),
        per_class_total=(4, 4),
        departures=(Departure(name="lrs", ours="0.1", published="0.01"),),
        defects=(Defect(code="selected_on_test", text="chosen on the test set"),),
        provenance=Provenance.from_facts(
            {"torch": "2", "numpy": "3", "gpu": None}, "x"
        ),
    )
    return replace(row, **changes)


def evaluation_row(**changes: Any) -> Row:
    """Return a row of kind evaluation, under attack."""
    row = Row(
        time=WHEN,
        source=SOURCE,
        target=TARGET,
        setting=EvaluationSetting(num_images=200, augment="auto", checked=True),
        value=12.0,
        attack=AttackRecord.from_description(
            {
                "name": "autoattack",
                "norm": "l2",
                "eps": 0.5,
                "patience": 3,
                "none": None,
            }
        ),
        stages=(StageRecord(name="apgd-ce", attacked=180, value=13.0, seconds=1.5),),
        checks=ChecksRecord(
            probabilities=False,
            randomised=False,
            train_mode=True,
            zero_gradient_share=0.25,
        ),
    )
    return replace(row, **changes)
