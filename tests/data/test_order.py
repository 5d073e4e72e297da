"""The order of an epoch, of anything that has a length and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from fastadv.data.loading.order import EpochOrder, OrderOptions
from fastadv.errors import ConfigError, DataError


class Boxes:
    """A set without pixels, such as one for detection."""

    name, split = "boxes", "train"

    def __init__(self, n: int, fingerprint: str = "f") -> None:
        self.n, self.fingerprint = n, fingerprint

    def __len__(self) -> int:
        return self.n


def order(n: int = 29, fingerprint: str = "f", **options: Any) -> EpochOrder:
    chosen = {"batch_size": 4, "train": True, "seed": 3} | options
    return EpochOrder(Boxes(n, fingerprint), OrderOptions(**chosen))


def epoch(of: EpochOrder) -> list[list[int]]:
    batches = []
    for indices in of.begin():
        of.take(indices)
        batches.append(indices.tolist())
    of.end()
    return batches


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({"world_size": 1}, "f226fdd1634b766d"),
        ({"world_size": 3}, "1144f7080b12a12e"),
        ({"world_size": 3, "train": False}, "bec96243dcf63062"),
        ({"world_size": 3, "drop_last": True}, "595e91055d09cac9"),
    ],
)
def test_orders_are_those_of_earlier_versions(
    options: dict[str, Any], recorded: str
) -> None:
    """Otherwise a run saved by an earlier version resumes with other images."""
    found = []
    for rank in range(options["world_size"]):
        of = order(rank=rank, **options)
        found += [epoch(of), epoch(of)]
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    assert digest.startswith(recorded)


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("train", [True, False])
def test_ranks_cover_every_position(world_size: int, train: bool) -> None:
    ranks = [
        order(rank=r, world_size=world_size, train=train) for r in range(world_size)
    ]
    assert [len(of) for of in ranks] == [len(of.begin()) for of in ranks]
    taken = np.concatenate([np.concatenate(of.begin()) for of in ranks])
    counts = np.bincount(taken, minlength=29)
    assert counts.min() == 1
    assert counts.sum() == (-(-29 // world_size) * world_size if train else 29)


def test_resuming_takes_the_rest_on_any_number_of_ranks() -> None:
    whole = order(28)
    first = whole.begin()
    for indices in first[:3]:
        whole.take(indices)
    state = json.loads(json.dumps(whole.state_dict()))
    rest = np.concatenate(first[3:])
    for world_size in (1, 2, 4):
        taken = []
        for rank in range(world_size):
            of = order(28, rank=rank, world_size=world_size)
            of.load_state_dict(state)
            assert of.state_dict() == state
            taken += [i for batch in of.begin() for i in batch.tolist()]
        assert sorted(taken) == sorted(rest.tolist())
    whole.set_epoch(0)  # the same epoch: it begins again where nothing was loaded
    assert [b.tolist() for b in whole.begin()] == [b.tolist() for b in first]


def test_what_does_not_fit_is_refused() -> None:
    state = order().state_dict()
    with pytest.raises(ConfigError, match="seed=3, this loader seed=4"):
        order(seed=4).load_state_dict(state)
    with pytest.raises(ConfigError, match="train=True, this loader train=False"):
        order(train=False).load_state_dict(state)
    with pytest.raises(DataError, match="boxes/train changed since"):
        order(fingerprint="g").load_state_dict(state)
    with pytest.raises(DataError, match="no images"):
        order(0)
    with pytest.raises(ConfigError, match="leaves no batch"):
        order(3, drop_last=True)
    with pytest.raises(ConfigError, match=r"rank=2 is outside \[0, 2\)"):
        order(rank=2, world_size=2)


def test_a_single_image_joins_the_batch_before_unless_all_are_single() -> None:
    assert [len(batch) for batch in epoch(order(9))] == [4, 5]
    assert [len(batch) for batch in epoch(order(9, batch_size=1))] == [1] * 9
