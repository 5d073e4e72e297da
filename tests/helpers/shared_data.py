"""Where tests find the real images and weights, or why they skip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared(name: str) -> Path:
    """Return the path of a shared file; skip the test where it is absent.

    The folder is `$FASTADV_SHARED`, else `shared/data` beside the checkout.
    """
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("FASTADV_SHARED", beside)) / name
    if not path.exists():
        pytest.skip(f"shared file {name} is not here: no {path}; set FASTADV_SHARED")
    return path
