"""One thread keeps results exact; one whole run serves several tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_runs import tiny

from fastadv.training import train


@pytest.fixture(autouse=True, scope="module")  # before what a module's tests share
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, which every interrupted one must equal."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny(out, random_start=True))
    return out
