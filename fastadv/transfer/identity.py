"""What makes two transfer rows the same number: a hash, known before it is computed.

A sweep skips a row whose hash is in the table. A checkpoint counts by content: moving it
recomputes nothing, replacing it does. A data set counts by `ImageSet.fingerprint`, which
takes the names and sizes of files for their content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from fastadv.data import DatasetSplits
from fastadv.models.source import Source
from fastadv.transfer.config import TransferConfig

# Raised when the same configuration begins to mean another number.
_VERSION = 1
# Choices that change where or how fast a number is computed, not which; and those that
# are in the hash by what they resolve to.
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
    """Hash of everything that defines the row of `seed`, 32 hexadecimal digits.

    Args:
        config: of the experiment; choices left at their defaults are not hashed, so
            that a new one, which changes nothing by default, recomputes nothing.
        seed: of the row.
        source: what `config.source` names; its weights and architecture count.
        splits: what `config.dataset` names.
        resolution: side of the images, pixels.
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
        del chosen["solver"]  # it was said, and is what would have been taken
    what = {
        "version": _VERSION,
        "config": chosen,
        "seed": seed,
        "source": [source.digest, source.arch],
        "dataset": [splits.name, splits.train.fingerprint, splits.test.fingerprint],
        "resolution": resolution,
    }
    # Only where there are any, so that older rows keep their identity.
    if options := config.defining_options:
        what["dataset_options"] = options
    text = json.dumps(what, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
