"""Rows of schema 1, 2 and 3, all of them transfers, as rows of today.

Only here is text of a row ever read: those versions kept hyper-parameters, attack and
environment as JSON, and departures from a protocol as English in the column `notes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastadv.results.identity import derived_identity, digest
from fastadv.results.row import (
    AttackRecord,
    Defect,
    Departure,
    Provenance,
    Row,
    SourceRecord,
    TargetRecord,
)
from fastadv.results.settings import (
    MethodRecord,
    Parameter,
    Statistics,
    TransferSetting,
)

MIGRATED = ("1", "2", "3")

ATTACKED = (
    "attacked"  # what derives the identity of a robust accuracy from the clean one
)

_SCHEDULES = {
    "x 0.1 every third": "thirds",
    "x 0.1 every epochs // 3": "floored_thirds",
}
_DEFECTS = {
    "BatchNorm of frozen layers in train mode": "frozen_bn_in_train_mode",
    "epoch and learning rate chosen on the test set": "selected_on_test",
    "inputs normalised by mean 0, std 1": "inputs_not_normalised",
    "inputs normalised by the target's statistics": "target_statistics",
    "the published code stops with an error here, this trains the head alone": (
        "freezing_by_name_fails"
    ),
}
_LEFT_TRAINING = "freezing by layer name left "
_SEED_CHANGES_NOTHING = "one row for all seeds, which change nothing here"
# Source: Utrera et al. 2021, appendix A.
_UTRERA_FEW, _UTRERA_EPOCHS = 1600, (100, 150)


def migrate(old: Mapping[str, Any], part: str, number: int) -> list[Row]:
    """Return the clean and, where it was measured, the robust row of an old one.

    Args:
        old: A row of schema 1, 2 or 3; columns may be missing.
        part: Name of the part it is in.
        number: Its number in that part; with `part` it stands in for the identity that
            rows of schema 1 lack.
    """
    used = json.loads(old.get("hyperparameters") or "{}")
    notes = [note for note in (old.get("notes") or "").split("; ") if note]
    known = old.get("identity")
    shared: dict[str, Any] = {
        "time": old["time"],
        "experiment": known or digest([part, number]),
        "source": _source(old),
        "target": _target(old),
        "setting": _setting(old, used, notes),
        "seed": old.get("seed") or 0,
        "metric": old.get("metric") or "",
        "n": old.get("num_test"),
        "departures": tuple(_departures(notes)),
        "defects": tuple(_defects(notes)),
        "bad_images": old.get("bad_images"),
        "wall_seconds": old.get("wall_seconds"),
        "provenance": Provenance.from_facts(
            json.loads(old.get("environment") or "{}"), "fastadv-transfer"
        ),
    }
    clean = Row(
        **shared,
        identity=known,
        value=old["value"],
        low=old.get("ci_low"),
        high=old.get("ci_high"),
        val_value=old.get("val_value"),
        per_class_correct=tuple(old.get("per_class_correct") or ()),
        per_class_total=tuple(old.get("per_class_total") or ()),
    )
    if old.get("robust_value") is None:
        return [clean]
    # Those versions attacked by PGD on the cross entropy alone, from one start.
    attack = {"objective": "cross_entropy", "num_restarts": 1} | json.loads(
        old.get("attack") or "{}"
    )
    robust = Row(
        **shared,
        identity=known and derived_identity(known, ATTACKED),
        attack=AttackRecord.from_description(attack),
        value=old["robust_value"],
        low=old.get("robust_ci_low"),
        high=old.get("robust_ci_high"),
    )
    return [clean, robust]


def _source(old: Mapping[str, Any]) -> SourceRecord:
    return SourceRecord(
        name=old.get("source") or "",
        given=old.get("source_given"),
        path=old.get("source_path"),
        digest=old.get("source_hash"),
        arch=old.get("arch"),
        norm=old.get("source_norm"),
        eps=old.get("source_eps"),
        accuracy=old.get("source_accuracy"),
    )


def _target(old: Mapping[str, Any]) -> TargetRecord:
    return TargetRecord(
        name=old.get("dataset") or "",
        fingerprint=old.get("dataset_fingerprint"),
        resolution=old.get("resolution"),
        downscale=old.get("downscale"),
        num_test=old.get("num_test"),
        num_classes=old.get("num_classes"),
        class_names=tuple(old.get("class_names") or ()),
    )


def _setting(
    old: Mapping[str, Any], used: Mapping[str, Any], notes: list[str]
) -> TransferSetting:
    num_train, num_val = old.get("num_train") or 0, old.get("num_val") or 0
    num_pool = old.get("num_pool") or num_train + num_val
    protocol = old.get("protocol") or ""
    published = None
    if protocol == "utrera2021":
        published = _UTRERA_EPOCHS[num_pool > _UTRERA_FEW]
    statistics = used.get("statistics")
    same = ("batch_size", "momentum", "weight_decay", "frozen_bn", "select_every")
    more = ("freeze_by_name", "normal_head", "precision", "solver", "augment")
    return TransferSetting(
        mode=old.get("mode") or "",
        k_blocks=old.get("k_blocks"),
        protocol=protocol,
        select_on=old.get("select_on") or "",
        num_train=num_train,
        num_val=num_val,
        num_pool=num_pool,
        num_available=old.get("num_available"),
        val_fraction=used.get("val_fraction"),
        epochs=used.get("epochs"),
        published_epochs=published,
        lrs=tuple(used.get("lrs") or ()),
        schedule=_SCHEDULES.get(used.get("schedule", ""), used.get("schedule")),
        statistics=statistics
        and Statistics(mean=tuple(statistics[0]), std=tuple(statistics[1])),
        method=_method(used.get("method")),
        depends_on_seed=_SEED_CHANGES_NOTHING not in notes,
        chosen_c=used.get("C"),
        chosen_lr=used.get("lr"),
        chosen_epoch=used.get("epoch"),
        **{name: used.get(name) for name in (*same, *more)},
    )


def _method(used: Mapping[str, Any] | None) -> MethodRecord | None:
    if used is None:
        return None
    known = ("name", "norm", "eps", "num_steps")
    parameters = tuple(
        Parameter(name=name, value=value)
        for name, value in used.items()
        if name not in known
    )
    return MethodRecord(**{name: used[name] for name in known}, parameters=parameters)


def _departures(notes: list[str]) -> list[Departure]:
    found = []
    for note in notes:
        ours, between, published = note.partition(" instead of ")
        if between:
            name, _, value = ours.partition(" ")
            found.append(Departure(name=name, ours=value, published=published))
    return found


def _defects(notes: list[str]) -> list[Defect]:
    found = []
    for note in notes:
        code = _DEFECTS.get(note)
        if code is None and note.startswith(_LEFT_TRAINING):
            code = "freezing_by_name_left_some"
        elif code is None and " instead of " not in note:
            code = None if note == _SEED_CHANGES_NOTHING else "unknown"
        if code is not None:
            found.append(Defect(code=code, text=note))
    return found
