"""Short versions of the long runs of `damage.py`."""

from __future__ import annotations

import logging

import pytest
from damage import PARTS


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("flips", 40),
        ("truncations", 20),
        ("pickles", 6),
        ("archives", 12),
        ("saves", 8),
    ],
)
def test_nothing_goes_wrong(name: str, count: int) -> None:
    logging.disable(logging.WARNING)
    try:
        assert PARTS[name](count) is None
    finally:
        logging.disable(logging.NOTSET)
