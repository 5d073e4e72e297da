"""Makes `small_runs` and `shared_data` importable; one thread keeps results exact."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastadv.models import NormalizedModel
from fastadv.transfer import protocol

_TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_TESTS), str(_TESTS / "training")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of one test are not found by another, nor left in the user's cache."""
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tuned(
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[dict[str, Tensor], NormalizedModel]]:
    """Every network that was fine-tuned, with its state before."""
    real = protocol.fine_tune
    seen: list[tuple[dict[str, Tensor], NormalizedModel]] = []

    def keeping(model: NormalizedModel, *rest: Any) -> Any:
        seen.append(({k: v.clone() for k, v in model.state_dict().items()}, model))
        return real(model, *rest)

    monkeypatch.setattr(protocol, "fine_tune", keeping)
    return seen
