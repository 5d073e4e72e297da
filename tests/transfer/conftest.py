"""One thread keeps results exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastadv.cli import transfer as command
from fastadv.models import NormalizedModel
from fastadv.training import train
from fastadv.transfer import tuned as module


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


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A standard and a robust source, trained for a moment."""
    from small_runs import tiny

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    for eps in (0.0, 0.25):
        train(tiny(folder / f"eps{eps:g}", num_train=100, epochs=1, eps=eps))
    return folder


@pytest.fixture(scope="session")
def undisturbed(
    runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, ...]]:
    """The table of the sweep of `sweep_runs`, when nothing happens to it."""
    from sweep_runs import ROWS, recipe_file, values

    folder = tmp_path_factory.mktemp("undisturbed")
    words = ["sweep", str(recipe_file(folder, runs)), "--results", str(folder / "r")]
    torch.set_num_threads(1)
    assert command.main(words) == 0
    found = values(folder / "r")
    assert len(found) == ROWS
    return found


@pytest.fixture
def tuned(
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[dict[str, Tensor], NormalizedModel]]:
    """Every network that was fine-tuned, with its state before."""
    real = module.fine_tune
    seen: list[tuple[dict[str, Tensor], NormalizedModel]] = []

    def keeping(model: NormalizedModel, *rest: Any) -> Any:
        seen.append(({k: v.clone() for k, v in model.state_dict().items()}, model))
        return real(model, *rest)

    monkeypatch.setattr(module, "fine_tune", keeping)
    return seen
