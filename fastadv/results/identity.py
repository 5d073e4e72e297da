"""Identities of rows: hashes of what defines a number, known before it is computed.

A number whose identity is in the table is not computed again. A source counts by the
digest of its weights and a target by its fingerprint, so that moving or renaming them
recomputes nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastadv.results.row import AttackRecord, SourceRecord, TargetRecord
    from fastadv.results.settings import Setting


def digest(values: Any) -> str:
    """Return a hash of plain values, 32 hexadecimal digits.

    Args:
        values: Anything that JSON can hold; the order of keys does not count.

    Example:
        >>> digest({"a": 1, "b": [2.5, None]}) == digest({"b": [2.5, None], "a": 1})
        True
    """
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def attacked_identity(identity: str) -> str:
    """Return the identity of the robust accuracy of a network, from its clean one's."""
    return digest([identity, "attacked"])


def measured_identity(identity: str, bad_images: int, left_out: int) -> str:
    """Return the identity of a number that unreadable images may have changed.

    Args:
        identity: The identity that was known before any image was read. It stays the
            `experiment` of the row, by which later calls find the number.
        bad_images: Number of unreadable images that were met; without any, nothing changes.
        left_out: Number of test images that the number is therefore not over.
    """
    return digest([identity, "unreadable", left_out]) if bad_images else identity


def make_identity(
    source: SourceRecord,
    target: TargetRecord,
    setting: Setting,
    *,
    seed: int,
    attack: AttackRecord | None = None,
    **more: Any,
) -> str:
    """Return the identity of a number whose setting is known before it is computed.

    Args:
        source: The network; its digest and architecture count.
        target: The data set; its fingerprint and resolution count.
        setting: Every field counts that is not at its default, so that a field that is
            added later recomputes nothing.
        seed: Seed of the number.
        attack: The attack, if there is one; its fields count likewise.
        more: Anything else that defines the number; plain values.
    """
    return digest(
        {
            "kind": setting.kind,
            "source": [source.digest, source.arch],
            "target": [target.fingerprint, target.resolution, target.downscale],
            "setting": _chosen(setting),
            "seed": seed,
            "attack": _chosen(attack),
            **more,
        }
    )


def _chosen(value: Any) -> Any:
    """Return a record as plain values, without the fields at their defaults."""
    if isinstance(value, tuple):
        return [_chosen(each) for each in value]
    if is_dataclass(value):
        return {
            field.name: _chosen(given)
            for field in fields(value)
            if (given := getattr(value, field.name)) != field.default
        }
    return value
