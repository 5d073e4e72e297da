"""Identities of transfer rows: hashes that are known before a number is computed.

A sweep skips a row whose hash is in the table. A checkpoint counts by its content, so
moving it recomputes nothing and replacing it does. A data set counts by
`ImageSet.fingerprint`, which covers names and sizes of files instead of their content.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import asdict, replace
from typing import Any

from fastadv.data import DatasetSplits
from fastadv.data.loading.geometry import usual_preparation
from fastadv.data.opening.by_path import once_mean_per_class
from fastadv.models.source import Source
from fastadv.ranges import ordered_fields
from fastadv.results.identity import digest
from fastadv.training.method_config import METHODS
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.protocols import PROTOCOLS, Task, prescribed
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
            count, and for a network from scratch architecture and normalisation alone.
        splits: The data set that `config.dataset` names.
        resolution: Side of the images in pixels.
    """
    chosen = changed_values(config, _NOT_DEFINING) | _resolved(config)
    if config.robust_steps == replace(config, robust_steps=None).judge_steps:
        chosen.pop("robust_steps", None)  # it was given, and is the default
    if config.solver and replace(config, solver=None).exact == config.exact:
        del chosen["solver"]  # it was given, and is the default for these choices
    what = {
        "version": _VERSION,
        "config": chosen,
        "seed": seed,
        "source": _origin(config, source),
        "dataset": [splits.name, splits.train.fingerprint, splits.test.fingerprint],
        "resolution": resolution,
    }
    # Published protocols prepare images in their own way, whatever the source.
    if config.protocol == "fastadv":
        images, augment = splits.test, config.augment
        usual = usual_preparation(images.augment_as(augment), resolution)
        found = target_preparation(config, source, images, resolution, augment)
        if found.how != usual:
            what["preparation"] = asdict(found.how)
    # Older rows of such names hold the mean per class.
    if splits.metric == "top1" and once_mean_per_class(splits.name):
        what["metric"] = splits.metric
    # What a protocol of your own prescribes may change while its name stays.
    if config.protocol not in PROTOCOLS:
        task = Task(
            dataset=splits.name,
            num_pool=config.num_train or len(splits.train),
            mode=config.mode,
            k=config.k,
            resolution=resolution,
        )
        what["procedure"] = asdict(prescribed(config.protocol, task))
    # Only if there are any, so that older rows keep their identity.
    if options := config.defining_options:
        what["dataset_options"] = options
    return digest(what)


def _resolved(config: TransferConfig) -> dict[str, Any]:
    """Return what choices amount to, less what older tables took for granted.

    There, images were held out even if there was nothing to choose, clean accuracy chose,
    nothing was fitted again, subsets were stratified, and attacks in more than three
    steps took ones of 2/3 of the radius.
    """
    chosen_on = {"fastadv": "val", "utrera2021": "none"}
    found: dict[str, Any] = {}
    if config.selects_on != chosen_on.get(config.protocol, "test"):
        found["select_on"] = config.selects_on
    if config.selects_by != "clean":
        found["select_by"] = config.selects_by
    if config.refits:
        found["refit"] = True
    if config.subset_kind != "stratified":
        found["subset"] = config.subset_kind
    if (training := config.method_config) is not None:
        if training.step_size != config.step_size:
            found["step_size"] = training.step_size
        if training.random_start != config.random_start:
            found["random_start"] = training.random_start
        if training.start_noise is not None:
            found["start_noise"] = training.start_noise
        if training.method not in METHODS:
            found["method_option"] = training.parameters
            return found
        usual = METHODS[training.method].parameters.get("beta", 0.0)
        if config.beta is None and not math.isclose(training.beta or 0.0, usual):
            found["beta"] = training.beta
    return found


def _origin(config: TransferConfig, source: Source) -> list[Any]:
    """Return what a network begins with, as plain values."""
    if config.mode != "scratch":
        return [source.digest, source.arch]
    # These protocols normalise by statistics of their own.
    published = config.protocol in ("salman2020", "zhang2023")
    return ["scratch", source.arch, None if published else source.statistics]
