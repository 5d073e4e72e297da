"""Identities of transfer rows: hashes that are known before a number is computed.

A sweep skips a row whose hash is in the table. A checkpoint counts by its content, so
moving it recomputes nothing and replacing it does. A data set counts by
`ImageSet.fingerprint`, which covers names and sizes of files instead of their content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from fastadv.data import DatasetSplits
from fastadv.models.source import Source
from fastadv.transfer.config import TransferConfig

# This number grows when the same choices begin to mean another result.
_VERSION = 1
# Choices that only change where or how fast a number is computed, and those whose
# resolved values are in the hash instead.
NOT_DEFINING = frozenset(
    {
        "arch",
        "backend",
        "dataset",
        "dataset_option",
        "device",
        "download",
        "feature_cache",
        "name",
        "on_bad_image",
        "resolution",
        "results",
        "seeds",
        "source",
        "source_accuracy",
        "workers",
    }
)


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
    chosen = {
        field.name: value
        for field in dataclasses.fields(TransferConfig)
        if field.name not in NOT_DEFINING
        and (value := getattr(config, field.name)) != field.default
    }
    if (
        "solver" in chosen
        and dataclasses.replace(config, solver=None).exact == config.exact
    ):
        del chosen["solver"]  # it was given, and is the default for these choices
    what = {
        "version": _VERSION,
        "config": chosen,
        "seed": seed,
        "source": [source.digest, source.arch],
        "dataset": [splits.name, splits.train.fingerprint, splits.test.fingerprint],
        "resolution": resolution,
    }
    # Only if there are any, so that older rows keep their identity.
    if options := config.defining_options:
        what["dataset_options"] = options
    text = json.dumps(what, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
