"""Rows of schema 1, 2 and 3, all of them transfers, as rows of today.

Only this module reads the text of a row: old versions kept hyper-parameters, attack and
environment as JSON, and departures from a protocol as English in the column `notes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastadv.results.identity import attacked_identity, digest
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
    departures, defects = _read_notes(notes)
    known = old.get("identity")
    named = ("given", "path", "norm", "eps", "accuracy")
    same = ("resolution", "downscale", "num_test", "num_classes")
    shared: dict[str, Any] = {
        "time": old["time"],
        "experiment": known or digest([part, number]),
        "source": SourceRecord(
            name=old.get("source") or "",
            digest=old.get("source_hash"),
            arch=old.get("arch"),
            **{name: old.get(f"source_{name}") for name in named},
        ),
        "target": TargetRecord(
            name=old.get("dataset") or "",
            fingerprint=old.get("dataset_fingerprint"),
            class_names=tuple(old.get("class_names") or ()),
            **{name: old.get(name) for name in same},
        ),
        "setting": _setting(old, used, notes),
        "seed": old.get("seed") or 0,
        "metric": old.get("metric") or "",
        "n": old.get("num_test"),
        "departures": tuple(departures),
        "defects": tuple(defects),
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
        identity=known and attacked_identity(known),
        attack=AttackRecord.from_description(attack),
        value=old["robust_value"],
        low=old.get("robust_ci_low"),
        high=old.get("robust_ci_high"),
    )
    return [clean, robust]


def _setting(
    old: Mapping[str, Any], used: Mapping[str, Any], notes: list[str]
) -> TransferSetting:
    num_train, num_val = old.get("num_train") or 0, old.get("num_val") or 0
    num_pool = old.get("num_pool") or num_train + num_val
    protocol = old.get("protocol") or ""
    is_utrera = protocol == "utrera2021"
    statistics = used.get("statistics")
    method = used.get("method")
    same = ("batch_size", "momentum", "weight_decay", "frozen_bn", "select_every")
    more = ("freeze_by_name", "normal_head", "precision", "solver", "augment")
    taken: dict[str, Any] = {name: used.get(name) for name in (*same, *more)}
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
        published_epochs=_UTRERA_EPOCHS[num_pool > _UTRERA_FEW] if is_utrera else None,
        lrs=tuple(used.get("lrs") or ()),
        schedule=_SCHEDULES.get(used.get("schedule", ""), used.get("schedule")),
        statistics=statistics
        and Statistics(mean=tuple(statistics[0]), std=tuple(statistics[1])),
        method=method and _method(method),
        depends_on_seed=_SEED_CHANGES_NOTHING not in notes,
        chosen_c=used.get("C"),
        chosen_lr=used.get("lr"),
        chosen_epoch=used.get("epoch"),
        **taken,
    )


def _method(used: Mapping[str, Any]) -> MethodRecord:
    known = ("name", "norm", "eps", "num_steps")
    parameters = tuple(
        Parameter(name=name, value=value)
        for name, value in used.items()
        if name not in known
    )
    return MethodRecord(**{name: used[name] for name in known}, parameters=parameters)


def _read_notes(notes: list[str]) -> tuple[list[Departure], list[Defect]]:
    departures, defects = [], []
    for note in notes:
        ours, between, published = note.partition(" instead of ")
        if between:
            name, _, value = ours.partition(" ")
            departures.append(Departure(name=name, ours=value, published=published))
        elif note != _SEED_CHANGES_NOTHING:
            code = _DEFECTS.get(note, "unknown")
            if note.startswith(_LEFT_TRAINING):
                code = "freezing_by_name_left_some"
            defects.append(Defect(code=code, text=note))
    return departures, defects
