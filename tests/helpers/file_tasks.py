"""Tasks that have nothing to do with networks: each leaves a file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from fastadv.models import load_model
from fastadv.runs.tasks import Place, Task


class FolderTable:
    """A table of files: a row is there when the file of its name is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def finished(self) -> set[str]:
        return {file.name for file in self.path.iterdir()}


def leave(setting: tuple[str, str], place: Place) -> None:
    """Write the file of a task, or do what its name says first."""
    folder, name = setting
    tries = Path(folder) / f"tries-{name}"
    tries.write_text(f"{tries.read_text() if tries.exists() else ''}x")
    if name.startswith("wrong"):
        raise ValueError("the same would happen again")
    if name.startswith("dies") and len(tries.read_text()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("breaks"):
        raise KeyError("unexpected")
    if not name.startswith("idle"):
        (Path(folder) / name).write_text(f"{place.threads}")


def task(folder: Path, name: str, resource: str | None = None) -> Task:
    """Make the task of a name."""
    setting = (str(folder), name)
    return Task(leave, setting, str(folder), (name,), f"task {name}", resource)


def classify(setting: tuple[str, str], place: Place) -> None:
    """Load the network of a folder, and keep its logits in the file of a task."""
    folder, name = setting
    model = load_model(Path(folder) / "own.safetensors")
    images = torch.linspace(0, 1, 2 * 3 * 64).view(2, 3, 8, 8)
    torch.save(model(images).detach(), Path(folder) / name)
