"""The run directory: config, log and checkpoints, never half written.

    config.yaml            re-runnable: fastadv-train --config RUN/config.yaml
    log.jsonl              one JSON object per event
    checkpoints/step-N/    model.safetensors (weights), state.pt (all a resume needs)
    checkpoints/last       link to the newest step-N
    checkpoints/best       link to the one with the best validation score

A checkpoint is written under a temporary name, synced and renamed; then the link is
replaced. Whatever happens in between, `last` is whole.
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from fastadv.errors import CheckpointError, ConfigError
from fastadv.eventlog import EventLog
from fastadv.files import sync_folder
from fastadv.models import NormalizedModel, save_model
from fastadv.models.files import write_atomic
from fastadv.training.config import TrainConfig
from fastadv.training.configfile import load_config_file

# May differ when a run is resumed: none of them changes what is computed.
_MAY_CHANGE = {
    "out",
    "resume",
    "device",
    "workers",
    "save_minutes",
    "backend",
    "data",
}


# What of the state travels with the weights.
METADATA = ("config", "resolution", "classes", "epoch", "step", "best")


class RunDirectory:
    """Where one run lives.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.log_file = path / "log.jsonl"
        self._log = EventLog(self.log_file)

    def prepare(self, config: TrainConfig) -> dict[str, Any] | None:
        """Create the directory, or open it to resume.

        Returns:
            The state to resume from, or None for a fresh start.

        Raises:
            ConfigError: the directory holds another run, or `resume` with choices
                that differ from those it was started with.
            CheckpointError: it cannot be written, or its state cannot be read.
        """
        last = self.checkpoints / "last"
        if last.exists() and not config.resume:
            raise ConfigError(
                f"{self.path} already holds a run; add --resume to continue it, or "
                "choose another --out"
            )
        state = None
        if last.exists():
            self._check_same(config)
            state = self._read_state(last / "state.pt")
        # Without `resume`, which is about one process: the file begins the run anew.
        values = config.to_dict() | {"resume": False}
        text = yaml.safe_dump(values, sort_keys=False)
        write_atomic(self.path / "config.yaml", text.encode())
        return state

    def _check_same(self, config: TrainConfig) -> None:
        saved = load_config_file(self.path / "config.yaml")
        changed = [
            f"{key}: {saved[key]} -> {value}"
            for key, value in config.to_dict().items()
            if key in saved and saved[key] != value and key not in _MAY_CHANGE
        ]
        if changed:
            raise ConfigError(
                f"--resume would change what {self.path} computes ({', '.join(changed)});"
                " resume with the same choices, or start another --out"
            )

    @staticmethod
    def _read_state(path: Path) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(
                path, map_location="cpu", weights_only=True
            )
        except Exception as error:  # torch raises many types for a damaged file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path} cannot be resumed from ({reason}); delete its checkpoint "
                "folder and point checkpoints/last at an older one"
            ) from error
        return state

    def log(self, event: str, **values: Any) -> None:
        """Append one event to log.jsonl."""
        self._log.append(event, **values)

    def events(self) -> list[dict[str, Any]]:
        """All events logged so far; a line torn by a crash is left out."""
        return self._log.read()

    def save(
        self, model: NormalizedModel, state: dict[str, Any], *, step: int, best: bool
    ) -> Path:
        """Write checkpoint `step-N`, point `last` (and `best`) at it, drop older ones.

        Raises:
            CheckpointError: it cannot be written (full disk, ...); the checkpoints
                that were there are untouched.
        """
        final = self._free_name(f"step-{step:08d}")
        temporary = self.checkpoints / f".writing-{step:08d}-{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            metadata = {key: state[key] for key in METADATA}
            save_model(model, temporary / "model.safetensors", metadata)
            buffer = io.BytesIO()  # torch hides why a write to a file failed
            torch.save(state, buffer)
            with open(temporary / "state.pt", "wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            sync_folder(temporary)
            os.rename(temporary, final)
            # `best` first: killed in between, the run goes on from the checkpoint
            # before, finds the same score again and points both links.
            if best:
                self._point("best", final)
            self._point("last", final)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError
            raise CheckpointError(
                f"could not save {final}: {error}; the checkpoint before it is "
                f"unchanged. Free space, then continue with --resume --out {self.path}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._drop_unlinked()
        return final

    def _free_name(self, name: str) -> Path:
        """`name`, or `name-2`, ... : a folder a link points at is never rewritten."""
        path, count = self.checkpoints / name, 1
        while path.exists():
            count += 1
            path = self.checkpoints / f"{name}-{count}"
        return path

    def _point(self, link: str, target: Path) -> None:
        temporary = self.checkpoints / f".{link}-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        os.replace(temporary, self.checkpoints / link)
        sync_folder(self.checkpoints)

    def _drop_unlinked(self) -> None:
        links = [self.checkpoints / name for name in ("last", "best")]
        kept = {link.resolve() for link in links if link.exists()}
        for folder in self.checkpoints.glob("step-*"):
            if folder.resolve() not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self.checkpoints.glob(".writing-*"):
            shutil.rmtree(folder, ignore_errors=True)
