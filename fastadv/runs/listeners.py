"""TensorBoard and Weights & Biases as listeners to the events of a run.

A run logs each event once; `RunDirectory.log` writes it down and passes it to the
listeners. One that fails is reported and left out from then on: it never stops the run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from fastadv.errors import ConfigError

log = logging.getLogger(__name__)

PICTURE = "picture"  # the event that names a file in the run directory
Started = TypeVar("Started")
# Numbers of an event that are no measurements.
_NOT_MEASURED = {"step", "epoch", "time", "n", "robust_n", "total_steps"}


class EventListener(Protocol):
    """An object that every event of a run is reported to."""

    def event(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """Take note of one event, whose `values` are plain, as in log.jsonl."""

    def close(self) -> None:
        """Finish, since no event comes after this."""


class ListenerGroup:
    """The listeners of a run by name; no exception of theirs reaches the run."""

    def __init__(self, named: Mapping[str, EventListener] | None = None) -> None:
        self._all = dict(named or {})
        self._named = dict(self._all)  # without those that failed
        self._step = 0

    def add(self, name: str, listener: EventListener) -> None:
        """Report events to `listener` from now on."""
        self._all[name] = self._named[name] = listener

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        """Report an event to all listeners; one without a step belongs to the last step."""
        self._step = int(values.get("step", self._step))
        self._call(lambda listener: listener.event(name, self._step, values))

    def close(self) -> None:
        """Close all listeners; later events go to nobody."""
        self._named = dict(self._all)
        self._call(lambda listener: listener.close())
        self._named = {}

    def _call(self, method: Callable[[EventListener], None]) -> None:
        for name, listener in list(self._named.items()):
            try:
                method(listener)
            except Exception as error:
                del self._named[name]
                reason = str(error) or type(error).__name__
                log.warning("%s failed (%s); the run goes on without it", name, reason)


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
                f"`{package}` needs the package {package}, which is not installed: "
                f"pip install 'fastadv[{package}]', or leave `{package}` out"
            )
    if wanted["wandb"] and writes:
        _start("wandb", _log_in)


def _log_in() -> None:
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return
    import wandb

    wandb.login(verify=False)  # asks for a key where somebody can answer


@contextmanager
def open_listeners(
    folder: Path,
    step: int,
    config: Mapping[str, Any],
    tensorboard: bool,
    wandb: str | None,
) -> Iterator[ListenerGroup]:
    """Start the listeners of a run, and close them when the block ends.

    Args:
        folder: The run directory.
        step: The step at which the run begins or goes on.
        config: The choices of the run, which Weights & Biases shows.
        tensorboard: Whether to write TensorBoard files.
        wandb: Project of Weights & Biases to send to, or None.

    Raises:
        ConfigError: One of them cannot be started.
    """
    group = ListenerGroup()
    try:
        if tensorboard:
            group.add("tensorboard", _start("tensorboard", _TensorBoard, folder, step))
        if wandb is not None:
            group.add("wandb", _start("wandb", _Wandb, folder, wandb, config))
        yield group
    finally:
        group.close()


def _start(name: str, start: Callable[..., Started], *args: Any) -> Started:
    try:
        return start(*args)
    except Exception as error:  # these packages raise errors of many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = " (WANDB_MODE=offline needs no account)" if name == "wandb" else ""
        raise ConfigError(
            f"`{name}` could not be started: {reason}; correct it{hint}, or leave "
            f"`{name}` out"
        ) from error


def _measurements(name: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the measured numbers of an event by the names of curves, `train/loss`."""
    return {
        f"{name}/{key}": float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and key not in _NOT_MEASURED
    }


class _TensorBoard:
    """Writes event files to `RUN/tensorboard`."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        # What an earlier process wrote from there on is no longer part of the run.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def event(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        if name == PICTURE:
            with Image.open(self._folder / values["file"]) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(PICTURE, pixels, step, dataformats="HWC")
        elif name in ("train", "val", "test"):
            for key, value in _measurements(name, values).items():
                self._writer.add_scalar(key, value, step)
        elif "config" in values:
            rows = "".join(f"| {k} | {v} |\n" for k, v in values["config"].items())
            text = f"| option | value |\n| --- | --- |\n{rows}"
            self._writer.add_text(name, text, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Sends to a run of Weights & Biases; its environment variables are respected."""

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._folder, self._wandb = folder, wandb
        place = str(folder.resolve()).encode()  # a resumed run continues there
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
        if name == PICTURE:
            image = self._wandb.Image(str(self._folder / values["file"]))
            self._run.log({PICTURE: image}, step=step)
        elif name in ("train", "val", "test"):
            self._run.log(_measurements(name, values), step=step)

    def close(self) -> None:
        self._run.finish()
