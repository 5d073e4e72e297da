"""TensorBoard and Weights & Biases: what is told about a run's events besides log.jsonl.

A run logs each event once; `RunDirectory.log` writes it down and tells the listeners. A
listener that fails is reported and left out from then on: it never stops the run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fastadv.errors import ConfigError

log = logging.getLogger(__name__)

PICTURE = "picture"  # the event that names a file in the run directory
Started = TypeVar("Started")
# Numbers of an event that are no measurements.
_NOT_MEASURED = {"step", "epoch", "time", "n", "robust_n", "total_steps"}


class EventListener(Protocol):
    """An object that is told about every event of a run."""

    def event(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """Take note of one event, whose `values` are plain, as in log.jsonl."""

    def close(self) -> None:
        """Finish, since no event comes after this."""


class ListenerGroup:
    """The listeners of a run by name; no exception of theirs reaches the run."""

    def __init__(self, named: Mapping[str, EventListener] | None = None) -> None:
        self._named = dict(named or {})
        self._step = 0

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        """Tell all listeners; an event without a step belongs to the last step."""
        self._step = int(values.get("step", self._step))
        for who, listener in list(self._named.items()):
            try:
                listener.event(name, self._step, values)
            except Exception as error:
                self._leave_out(who, error)

    def close(self) -> None:
        """Close all listeners; later events go to nobody."""
        for who, listener in list(self._named.items()):
            try:
                listener.close()
            except Exception as error:
                self._leave_out(who, error)
        self._named = {}

    def _leave_out(self, who: str, error: Exception) -> None:
        del self._named[who]
        reason = str(error) or type(error).__name__
        log.warning("%s failed (%s); the run goes on without it", who, reason)


def check_listeners(tensorboard: bool, wandb: str | None, *, writes: bool) -> None:
    """Check that the listeners can be started, before time is spent on the data.

    Args:
        tensorboard: Whether TensorBoard files are to be written.
        wandb: Project of Weights & Biases to send to, or None.
        writes: Whether this rank writes. Others need not be logged in.

    Raises:
        ConfigError: A package is not installed, or Weights & Biases knows no account.
    """
    wanted = {"tensorboard": tensorboard, "wandb": wandb is not None}
    for package, needed in wanted.items():
        if needed and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"--{package} needs the package {package}, which is not installed: "
                f"pip install 'fastadv[{package}]', or leave --{package} out"
            )
    if wanted["wandb"] and writes:
        _start("wandb", _log_in)


def _log_in() -> None:
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return
    import wandb

    wandb.login(verify=False)  # asks for a key where somebody can answer


class ObservedRun(Protocol):
    """A run that listeners are told about: a `RunDirectory`."""

    path: Path
    writes: bool
    listeners: ListenerGroup


@contextmanager
def open_listeners(
    run: ObservedRun,
    step: int,
    config: Mapping[str, Any],
    tensorboard: bool,
    wandb: str | None,
) -> Iterator[None]:
    """Start the listeners of a run, and close them when the block ends.

    Args:
        run: The run. One that does not write (another rank does) has no listeners.
        step: The step at which the run begins or goes on.
        config: The choices of the run, which Weights & Biases shows.
        tensorboard: Whether to write TensorBoard files.
        wandb: Project of Weights & Biases to send to, or None.

    Raises:
        ConfigError: One of them cannot be started.
    """
    named: dict[str, EventListener] = {}
    try:
        if tensorboard and run.writes:
            start = TensorBoardListener
            named["tensorboard"] = _start("tensorboard", start, run.path, step)
        if wandb is not None and run.writes:
            named["wandb"] = _start("wandb", WandbListener, run.path, wandb, config)
        run.listeners = ListenerGroup(named)
        yield
    finally:
        ListenerGroup(named).close()
        run.listeners = ListenerGroup()


def _start(name: str, start: Callable[..., Started], *args: Any) -> Started:
    try:
        return start(*args)
    except Exception as error:  # these packages raise errors of many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = " (WANDB_MODE=offline needs no account)" if name == "wandb" else ""
        raise ConfigError(
            f"--{name} could not be started: {reason}; correct it{hint}, or leave "
            f"--{name} out"
        ) from error


def measurements(name: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the measured numbers of an event by the names of curves, `train/loss`."""
    return {
        f"{name}/{key}": float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and key not in _NOT_MEASURED
    }


class TensorBoardListener:
    """Writes event files to `RUN/tensorboard`.

    Args:
        folder: The run directory.
        step: The step at which the run goes on; what an earlier process wrote from there
            on is hidden, since the run no longer contains it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def event(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """Add numbers as curves, pictures as images and the configuration as text."""
        if name == PICTURE:
            self._picture(values["file"], step)
        elif name in ("train", "val", "test"):
            for key, value in measurements(name, values).items():
                self._writer.add_scalar(key, value, step)
        elif "config" in values:
            rows = "".join(f"| {k} | {v} |\n" for k, v in values["config"].items())
            text = f"| option | value |\n| --- | --- |\n{rows}"
            self._writer.add_text(name, text, step)

    def _picture(self, file: str, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(self._folder / file) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(PICTURE, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still buffered."""
        self._writer.close()


class WandbListener:
    """Sends to a run of Weights & Biases; its environment variables are respected.

    Args:
        folder: The run directory. It also names the run, so that a resumed run continues
            there.
        project: Name of the project.
        config: The choices of the run.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        import hashlib

        import wandb

        self._folder, self._wandb = folder, wandb
        place = str(folder.resolve()).encode()
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=hashlib.sha256(place).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            config=dict(config),
            # The trainer handles signals and the terminal.
            settings=wandb.Settings(console="off", silent=True),
        )

    def event(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """Log numbers as curves and pictures as images."""
        if name == PICTURE:
            image = self._wandb.Image(str(self._folder / values["file"]))
            self._run.log({PICTURE: image}, step=step)
        elif name in ("train", "val", "test"):
            self._run.log(measurements(name, values), step=step)

    def close(self) -> None:
        """Send what is still buffered."""
        self._run.finish()
