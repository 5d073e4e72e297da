"""The run directory: configuration, log and checkpoints, never half written.

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
import itertools
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from fastadv.checksums import SUMS, check_sums, write_sums
from fastadv.errors import CheckpointError, ConfigError, OutputError
from fastadv.files import (
    FolderLock,
    lock_folder,
    replace_file,
    sync_folder,
    write_atomic,
)
from fastadv.models.file_checksums import check_tensors, read_texts
from fastadv.runs.eventlog import EventLog, refuse_changes
from fastadv.runs.listeners import ListenerGroup

log = logging.getLogger(__name__)


class RunDirectory:
    """The directory of one run, which one process at a time may write.

    Args:
        path: The directory.
        may_change: Keys of the configuration that may differ when the run is resumed,
            because they do not change what is computed.
        writes: Whether this process logs and saves. Of several ranks only the first does.

    Attributes:
        listeners: Listeners that every event is reported to.
    """

    def __init__(
        self, path: Path, *, may_change: Collection[str] = (), writes: bool = True
    ) -> None:
        self.path = path
        self.writes = writes
        self.checkpoints = path / "checkpoints"
        self.log_file = path / "log.jsonl"
        self.listeners = ListenerGroup()
        self._may_change = frozenset(may_change)
        self._log = EventLog(self.log_file)
        self._lock: FolderLock | None = None

    @property
    def began(self) -> bool:
        """Whether a checkpoint was saved here."""
        return os.path.lexists(self.checkpoints / "last")

    @property
    def has_best(self) -> bool:
        """Whether the checkpoint with the best validation score is known."""
        return os.path.lexists(self.checkpoints / "best")

    def prepare(
        self, config: Mapping[str, Any], *, resume: bool
    ) -> dict[str, Any] | None:
        """Lock the directory for this process and read the state it holds.

        Args:
            config: The choices of the run, as plain values by name.
            resume: Whether to continue the run that is here, if there is one.

        Returns:
            The `state` given to `save`, to resume from, or None for a fresh start.

        Raises:
            ConfigError: The directory holds a run and `resume` is false, or `config`
                differs from the saved one in more than `may_change`, or another process
                writes there.
            CheckpointError: The saved state cannot be read.
        """
        if self.began and not resume:
            raise ConfigError(
                f"{self.path} already holds a run; add `resume` to continue it, or "
                "choose another `out`"
            )
        self._lock = lock_folder(
            self.path,
            f"{self.path} is being written",
            "wait until it ends, stop it, or choose another `out`",
        )
        try:
            if not self.began:
                return None
            state, used, damage = self._newest_state()
            saved = state["config"]
            same = [k for k in saved if k in config and k not in self._may_change]
            refuse_changes(
                self.path, {k: saved[k] for k in same}, {k: config[k] for k in same}
            )
            self._repair(used, damage)
        except BaseException:
            self.release()
            raise
        return state

    def record(self, config: Mapping[str, Any]) -> None:
        """Write `config` to config.yaml, once nothing can be refused any more.

        The key `resume` is about one process: in the file, which begins the run anew,
        it is false.

        Raises:
            OutputError: The file cannot be written.
        """
        text = yaml.safe_dump({**config, "resume": False}, sort_keys=False)
        write_atomic(self.path / "config.yaml", text.encode())

    def restore_config(self) -> None:
        """Write config.yaml as the newest checkpoint has it, if one can be read.

        Raises:
            CheckpointError: No hash is known of that checkpoint, so that its choices may
                be others than those of the run.
        """
        try:
            state, used, _ = self._newest_state()
        except CheckpointError:
            return
        name = self.path / "config.yaml"
        if "state.pt" in check_sums(used, ["state.pt"]):
            raise CheckpointError(
                f"{name} is gone or empty, and is not written again from {used}, whose "
                f"{SUMS} is missing, empty or partial: its choices may be damaged. Give "
                "all flags of the run, or put the file back"
            )
        self.record(state["config"])
        log.warning("%s was gone or empty: written again from %s", name, used)

    def release(self) -> None:
        """Unlock the directory, so that other processes may write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _newest_state(self) -> tuple[dict[str, Any], Path, str | None]:
        """Return state and folder of the newest whole checkpoint, and damage to `last`."""
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
            "resumed. Start it again with another `out`"
        )

    def _repair(self, used: Path, damage: str | None) -> None:
        """Make the links point away from damaged checkpoints, once the run does go on."""
        if damage:
            log.warning("%s; going on from %s, the one before", damage, used)
            self.log("damaged_checkpoint", reason=damage, used=used.name)
            self._point("last", used)
        best = self.checkpoints / "best"
        try:
            if self.has_best:
                _check_files(best)
        except CheckpointError as error:
            log.warning("%s; the best epoch is chosen again from those to come", error)
            self.log("damaged_checkpoint", reason=str(error), used=None)
            best.unlink(missing_ok=True)

    def _read_state(self, folder: Path) -> dict[str, Any]:
        _check_files(folder)
        path = folder / "state.pt"
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path} cannot be read ({reason})") from error
        if not isinstance(loaded, dict) or not isinstance(loaded.get("config"), dict):
            raise CheckpointError(f"{path} is no state of a run (no `config` in it)")
        return cast(dict[str, Any], loaded)

    def log(self, event: str, **values: Any) -> None:
        """Append one event to log.jsonl and report it to the listeners.

        Raises:
            OutputError: log.jsonl cannot be written.
        """
        if self.writes:
            self._log.append(event, **values)
            self.listeners.event(event, values)

    def events(self) -> list[dict[str, Any]]:
        """Return all events logged so far, without a line that a crash tore."""
        return self._log.read()

    def save(
        self,
        write_model: Callable[[Path], None],
        state: dict[str, Any],
        *,
        step: int,
        best: bool,
        keep: str | None = None,
    ) -> Path:
        """Write checkpoint `step-N`, point `last` (and `best`) at it, drop older ones.

        `previous` then points at the former `last`. A checkpoint without a link is
        dropped.

        Args:
            write_model: Writes the weights into the folder it is given, for other
                commands to load.
            state: All that a resume needs, as plain values and tensors. `config` holds
                the choices that `prepare` compares.
            step: Number of training steps done; it names the checkpoint.
            best: Whether its validation score is the best so far.
            keep: Name of another link, which keeps the checkpoint for good.

        Returns:
            The folder of the checkpoint.

        Raises:
            OutputError: The checkpoint cannot be written (full disk, ...); those that
                were there are untouched.
        """
        final = self._free_name(f"step-{step:08d}")
        temporary = self.checkpoints / f".writing-{step:08d}-{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_model(temporary)
            buffer = io.BytesIO()  # torch hides why a write to a file failed
            torch.save(state, buffer)
            replace_file(temporary / "state.pt", buffer.getbuffer())
            write_sums(temporary)
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
            raise OutputError(
                f"could not save {final}: {error}; the checkpoint before it is "
                f"unchanged. Free space, then continue with `resume` `out={self.path}`"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._drop_unlinked()
        return final

    def _free_name(self, name: str) -> Path:
        """Return the folder `name`, or `name-2`, ...: no checkpoint is ever rewritten."""
        others = (f"{name}-{count}" for count in itertools.count(2))
        paths = map(self.checkpoints.joinpath, itertools.chain([name], others))
        return next(path for path in paths if not path.exists())

    def _point(self, link: str, target: Path) -> None:
        temporary = self.checkpoints / f".{link}-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        os.replace(temporary, self.checkpoints / link)
        sync_folder(self.checkpoints)

    def _drop_unlinked(self) -> None:
        for left in self.checkpoints.glob(".*"):  # by a process that was killed
            if left.is_symlink():
                left.unlink(missing_ok=True)
            else:
                shutil.rmtree(left, ignore_errors=True)
        paths = list(self.checkpoints.iterdir())
        kept = {path.resolve() for path in paths if path.is_symlink()}
        for path in paths:
            if path.name.startswith("step-") and path.resolve() not in kept:
                shutil.rmtree(path, ignore_errors=True)


def _check_files(folder: Path) -> None:
    """Check the files of a checkpoint against their hashes.

    Where the SHA256SUMS of the folder does not state them, that is said, and the checksums
    inside of the files are taken: that of safetensors, and those of the members of a zip.

    Raises:
        CheckpointError: A file is damaged, or the folder is gone.
    """
    if not folder.exists():
        raise CheckpointError(f"{folder} points at a checkpoint that is gone")
    names = sorted({"state.pt", *(path.name for path in folder.iterdir())} - {SUMS})
    unknown = check_sums(folder, names)
    if not unknown:
        return
    log.warning(
        "%s: %s is missing, empty or partial: it states no hash of %s. The checksums inside "
        "of these files are checked instead",
        *(folder, SUMS, " and ".join(unknown)),
    )
    for path in map(folder.joinpath, unknown):
        if not path.is_file():
            raise CheckpointError(f"could not read {path}: it is gone")
        if path.suffix == ".safetensors" and not check_tensors(path, read_texts(path)):
            log.warning("%s states no hash of its content either", path)
        elif path.suffix == ".pt":
            _check_zip(path)


def _check_zip(path: Path) -> None:
    """Raise CheckpointError unless all members of what `torch.save` wrote are whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged (checksum of {damaged} differs)")
