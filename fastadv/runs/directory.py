"""The run directory: config, log and checkpoints, never half written.

    config.yaml            re-runnable: fastadv-train --config RUN/config.yaml
    log.jsonl              one JSON object per event
    checkpoints/step-N/    model.safetensors (weights), state.pt (all a resume needs),
                           SHA256SUMS of both, as `sha256sum -c` reads it
    checkpoints/last       link to the newest step-N
    checkpoints/previous   link to the one before it, for when `last` is damaged
    checkpoints/best       link to the one with the best validation score
    checkpoints/epoch-N    link to the one of epoch N, with --keep-every
    .lock                  held by the process that writes here

A checkpoint is written under a temporary name, synced and renamed; then the links are
replaced. Whatever happens in between, `last` is whole.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from fastadv.errors import CheckpointError, ConfigError
from fastadv.files import (
    FolderLock,
    file_sha256,
    replace_file,
    say_unlocked,
    sync_folder,
    write_atomic,
)
from fastadv.models import NormalizedModel, read_metadata, save_model
from fastadv.runs.eventlog import EventLog
from fastadv.runs.listeners import Listeners
from fastadv.training.config import TrainConfig

# May differ when a run is resumed: none of them changes what is computed.
_MAY_CHANGE = {
    "out",
    "resume",
    "device",
    "workers",
    "save_minutes",
    "backend",
    "data",
    "dataset_option",
    "keep_every",
    "pictures_every",
    "tensorboard",
    "wandb",
    "parallel",
}
SUMS = "SHA256SUMS"

log = logging.getLogger(__name__)

# What of the state travels with the weights.
METADATA = ("config", "resolution", "classes", "epoch", "step", "best")


class RunDirectory:
    """Where one run lives.

    Args:
        path: the directory.
        writes: False for ranks but the first: they neither log nor save.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.checkpoints = path / "checkpoints"
        self.log_file = path / "log.jsonl"
        self._log = EventLog(self.log_file)
        self.listeners = Listeners()
        self._lock: FolderLock | None = None

    @property
    def began(self) -> bool:
        """Whether a checkpoint was saved here."""
        return os.path.lexists(self.checkpoints / "last")

    def prepare(self, config: TrainConfig) -> dict[str, Any] | None:
        """Take the directory for this process, and read what it holds.

        Returns:
            The state to resume from, or None for a fresh start.

        Raises:
            ConfigError: the directory holds another run, or `resume` with choices
                that differ from those it was started with, or another process writes
                there.
            CheckpointError: its state cannot be read.
        """
        if self.began and not config.resume:
            raise ConfigError(
                f"{self.path} already holds a run; add --resume to continue it, or "
                "choose another --out"
            )
        self._take_lock()
        try:
            if not self.began:
                return None
            state, used, damage = self._newest_state()
            self._check_same(config, state["config"])
            self._repair(state, used, damage)
        except BaseException:
            self.release()
            raise
        return state

    def record(self, values: dict[str, Any]) -> None:
        """Write config.yaml; to be called once nothing can be refused any more.

        Args:
            values: what `TrainConfig.to_dict` gave.

        Raises:
            CheckpointError: it cannot be written.
        """
        # Without `resume`, which is about one process: the file begins the run anew.
        text = yaml.safe_dump(values | {"resume": False}, sort_keys=False)
        write_atomic(self.path / "config.yaml", text.encode())

    def restore_config(self) -> None:
        """Write config.yaml as the newest checkpoint has it, if one can be read."""
        for link in ("last", "previous"):
            file = self.checkpoints / link / "model.safetensors"
            try:
                self.record(read_metadata(file)["user"]["config"])
            except CheckpointError:
                continue
            name = self.path / "config.yaml"
            log.warning("%s was gone or empty: written again from %s", name, file)
            return

    def _take_lock(self) -> None:
        try:
            self._lock = FolderLock(self.path)
        except BlockingIOError as error:
            raise ConfigError(
                f"{self.path} is being written by {error.strerror}; wait until it ends, "
                "stop it, or choose another --out"
            ) from None
        except OSError as error:
            say_unlocked(self.path, error)

    def release(self) -> None:
        """Let other processes write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _check_same(self, config: TrainConfig, saved: dict[str, Any]) -> None:
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

    def _newest_state(self) -> tuple[dict[str, Any], Path, str | None]:
        """The state in `last`, or where that is damaged, in the checkpoint before it.

        Returns:
            It, the checkpoint it is of, and what is wrong with `last`, if anything is.
        """
        damage: list[str] = []
        for name in ("last", "previous"):
            link = self.checkpoints / name
            if not os.path.lexists(link):
                continue
            try:
                state = self._read_state(link)
            except CheckpointError as error:
                damage.append(str(error))
                continue
            return state, link.resolve(), damage[0] if damage else None
        raise CheckpointError(
            f"{'; '.join(damage)}; no other checkpoint is left, so the run cannot be "
            "resumed. Start it again with another --out"
        )

    def _repair(self, state: dict[str, Any], used: Path, damage: str | None) -> None:
        """Point the links away from what is damaged, once the run does go on."""
        if damage:
            log.warning("%s; going on from %s, the one before", damage, used)
            self.log("damaged_checkpoint", reason=damage, used=used.name)
            self._point("last", used)
        best = self.checkpoints / "best"
        try:
            if os.path.lexists(best):
                self._check_sums(best)
        except CheckpointError as error:
            log.warning("%s; the best epoch is chosen again from those to come", error)
            self.log("damaged_checkpoint", reason=str(error), used=None)
            best.unlink(missing_ok=True)
        if not os.path.lexists(best):
            state["best"] = -1.0

    @staticmethod
    def _check_sums(folder: Path) -> None:
        """Raise CheckpointError unless the files have the checksums they were saved with."""
        sums = folder / SUMS
        if not folder.exists():
            raise CheckpointError(f"{folder} points at a checkpoint that is gone")
        if not sums.exists():  # of a version that wrote none
            return
        for line in sums.read_text(errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            try:
                found = file_sha256(folder / name)
            except OSError as error:
                reason = error.strerror or error
                raise CheckpointError(
                    f"could not read {folder / name}: {reason}"
                ) from error
            if found != digest:
                raise CheckpointError(f"{folder / name} is damaged (checksum differs)")

    def _read_state(self, folder: Path) -> dict[str, Any]:
        self._check_sums(folder)
        path = folder / "state.pt"
        try:
            state: dict[str, Any] = torch.load(
                path, map_location="cpu", weights_only=True
            )
        except Exception as error:  # torch raises many types for a damaged file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path} cannot be read ({reason})") from error
        return state

    def log(self, event: str, **values: Any) -> None:
        """Append one event to log.jsonl, and tell the listeners."""
        if self.writes:
            self._log.append(event, **values)
            self.listeners.event(event, values)

    def events(self) -> list[dict[str, Any]]:
        """All events logged so far; a line torn by a crash is left out."""
        return self._log.read()

    def save(
        self,
        model: NormalizedModel,
        state: dict[str, Any],
        *,
        step: int,
        best: bool,
        keep: str | None = None,
    ) -> Path:
        """Write checkpoint `step-N`, point `last` (and `best`) at it, drop older ones.

        What `last` was becomes `previous`; what no link points at is dropped.

        Args:
            model: whose weights are written for other commands to load.
            state: all that a resume needs, plain values and tensors.
            step: names the checkpoint.
            best: whether its validation score is the best so far.
            keep: name of another link, which keeps it for good.

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
            self._write_sums(temporary)
            sync_folder(temporary)
            os.rename(temporary, final)
            # `best` first: killed in between, the run goes on from the checkpoint
            # before, finds the same score again and points both links.
            if best:
                self._point("best", final)
            if keep:
                self._point(keep, final)
            last = self.checkpoints / "last"
            if last.exists():
                self._point("previous", last.resolve())
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

    @staticmethod
    def _write_sums(folder: Path) -> None:
        files = sorted(folder.iterdir())
        text = "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)
        replace_file(folder / SUMS, text.encode())

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
        links = [path for path in self.checkpoints.iterdir() if path.is_symlink()]
        for link in [link for link in links if link.name.startswith(".")]:
            link.unlink(missing_ok=True)  # of a process killed in `_point`
            links.remove(link)
        kept = {link.resolve() for link in links}
        for folder in self.checkpoints.glob("step-*"):
            if folder.resolve() not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self.checkpoints.glob(".writing-*"):
            shutil.rmtree(folder, ignore_errors=True)
