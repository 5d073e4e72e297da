"""Identities of transfer rows: hashes that are known before a number is computed.

A sweep skips a row whose hash is in the table. A checkpoint counts by its content, so
moving it recomputes nothing and replacing it does. A data set counts by
`ImageSet.fingerprint`, which covers names and sizes of files instead of their content.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, replace
from typing import Any

from fastadv.data import DatasetSplits
from fastadv.data.loading.geometry import usual_preparation
from fastadv.models.source import Source
from fastadv.ranges import ordered_fields
from fastadv.results.identity import digest
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.target import target_preparation

# This number grows when the same choices begin to mean another result.
_VERSION = 1
# Choices that only change where or how fast a number is computed, and those whose
# resolved values are in the hash instead.
_NOT_DEFINING = (
    "arch", "backend", "dataset", "dataset_option", "device", "download", "feature_cache",
    "keep", "keep_limit", "name", "on_bad_image", "refit", "resolution", "results", "save",
    "seeds", "select_by", "select_on", "source", "source_accuracy", "workers",
)  # fmt: skip


def changed_values(config: TransferConfig, left_out: Container[str]) -> dict[str, Any]:
    """Return the choices that are not at their defaults, in the order of the flags."""
    return {
        field.name: value
        for field in ordered_fields(TransferConfig)
        if field.name not in left_out
        and (value := getattr(config, field.name)) != field.default
    }


def row_identity(
    config: TransferConfig,
    seed: int,
    source: Source,
    splits: DatasetSplits,
    resolution: int,
) -> str:
    """Return a hash of everything that defines the row of `seed`, 32 hexadecimal digits.

    Args:
        config: The choices of the experiment. Those left at their defaults are not
            hashed, so that a new choice, which changes nothing by default, recomputes
            nothing.
        seed: Seed of the row.
        source: The network that `config.source` names; its weights and architecture
            count.
        splits: The data set that `config.dataset` names.
        resolution: Side of the images in pixels.
    """
    chosen = changed_values(config, _NOT_DEFINING) | _selection(config)
    if config.solver and replace(config, solver=None).exact == config.exact:
        del chosen["solver"]  # it was given, and is the default for these choices
    what = {
        "version": _VERSION,
        "config": chosen,
        "seed": seed,
        "source": [source.digest, source.arch],
        "dataset": [splits.name, splits.train.fingerprint, splits.test.fingerprint],
        "resolution": resolution,
    }
    # Published protocols prepare images in their own way, whatever the source.
    if config.protocol == "fastadv":
        images, augment = splits.test, config.augment
        usual: Any = images.augment_default if augment == "auto" else augment
        found = target_preparation(config, source, images, resolution, augment)
        if found.how != usual_preparation(usual, resolution):
            what["preparation"] = asdict(found.how)
    # Only if there are any, so that older rows keep their identity.
    if options := config.defining_options:
        what["dataset_options"] = options
    return digest(what)


def _selection(config: TransferConfig) -> dict[str, Any]:
    """Return how hyper-parameters are chosen, less what older tables took for granted.

    There, images were held out even if there was nothing to choose, clean accuracy chose,
    and nothing was fitted again.
    """
    usual = {"fastadv": "val", "salman2020": "test", "utrera2021": "none"}
    found: dict[str, Any] = {}
    if config.selects_on != usual[config.protocol]:
        found["select_on"] = config.selects_on
    if config.selects_by != "clean":
        found["select_by"] = config.selects_by
    if config.refits:
        found["refit"] = True
    return found
