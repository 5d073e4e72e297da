"""Where a run's events go besides log.jsonl: TensorBoard and Weights & Biases.

A run logs each event once; `RunDirectory.log` writes it down and tells the listeners. One
that fails is warned about and left out from then on: no logger stops a training.
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
from fastadv.training.config import TrainConfig

log = logging.getLogger(__name__)

PICTURE = "picture"  # the event that names a file in the run directory
Made = TypeVar("Made")
# Numbers of an event that are no measurements.
_NOT_MEASURED = {"step", "epoch", "time", "n", "robust_n", "total_steps"}


class Listener(Protocol):
    """What is told about every event."""

    def event(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """`values` are plain, as in log.jsonl."""

    def close(self) -> None:
        """No event comes after this."""


class Listeners:
    """All listeners of a run; nothing they raise reaches the run."""

    def __init__(self, named: Mapping[str, Listener] | None = None) -> None:
        self._named = dict(named or {})
        self._step = 0

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        """Tell everybody; events without a step belong to the last one."""
        self._step = int(values.get("step", self._step))
        for who, listener in list(self._named.items()):
            try:
                listener.event(name, self._step, values)
            except Exception as error:
                self._leave_out(who, error)

    def close(self) -> None:
        """End all of them."""
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


def check_loggers(config: TrainConfig, *, writes: bool = True) -> None:
    """See that the loggers asked for can be started, before time is spent on the data.

    Args:
        config: with the fields `tensorboard` and `wandb`.
        writes: of a rank that writes; others need not be logged in.

    Raises:
        ConfigError: one is not installed, or Weights & Biases knows no account.
    """
    wanted = {"tensorboard": config.tensorboard, "wandb": config.wandb is not None}
    for package, asked in wanted.items():
        if asked and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"--{package} needs the package {package}, which is not installed: "
                f"pip install 'fastadv[{package}]', or leave --{package} out"
            )
    if wanted["wandb"] and writes:
        _started("wandb", _log_in)


def _log_in() -> None:
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return
    import wandb

    wandb.login(verify=False)  # asks for a key where somebody can answer


class Told(Protocol):
    """What has listeners: a `RunDirectory`."""

    path: Path
    writes: bool
    listeners: Listeners


@contextmanager
def loggers(config: TrainConfig, run: Told, step: int) -> Iterator[None]:
    """Have `run` tell the loggers that `config` asks for; they are closed in the end.

    Args:
        config: with the fields `tensorboard` and `wandb`.
        run: of a rank that writes; others have nothing to tell.
        step: where the run begins or goes on.

    Raises:
        ConfigError: one of them cannot be started.
    """
    named: dict[str, Listener] = {}
    try:
        if config.tensorboard and run.writes:
            named["tensorboard"] = _started("tensorboard", TensorBoard, run.path, step)
        if config.wandb is not None and run.writes:
            named["wandb"] = _started("wandb", Wandb, run.path, config)
        run.listeners = Listeners(named)
        yield
    finally:
        Listeners(named).close()
        run.listeners = Listeners()


def _started(name: str, start: Callable[..., Made], *args: Any) -> Made:
    try:
        return start(*args)
    except Exception as error:  # whatever a package raises that has its own services
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = " (WANDB_MODE=offline needs no account)" if name == "wandb" else ""
        raise ConfigError(
            f"--{name} could not be started: {reason}; correct it{hint}, or leave "
            f"--{name} out"
        ) from error


def measurements(name: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event under the names of curves, `train/loss`."""
    return {
        f"{name}/{key}": float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and key not in _NOT_MEASURED
    }


class TensorBoard:
    """Event files in `RUN/tensorboard`.

    Args:
        folder: the run directory.
        step: what an earlier process wrote from this step on is hidden: it did not count.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def event(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """Numbers become curves, pictures images, the configuration text."""
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
        """Write what is still held back."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; the environment (WANDB_MODE, ...) is respected.

    Args:
        folder: the run directory, which also names the run: resumed, it goes on there.
        config: its `wandb` is the project.
    """

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        import hashlib

        import wandb

        self._folder, self._wandb = folder, wandb
        place = str(folder.resolve()).encode()
        self._run = wandb.init(
            project=config.wandb,
            name=folder.name,
            id=hashlib.sha256(place).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            config=config.to_dict(),
            # Signals and the terminal are the trainer's.
            settings=wandb.Settings(console="off", silent=True),
        )

    def event(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """Numbers become curves, pictures images."""
        if name == PICTURE:
            image = self._wandb.Image(str(self._folder / values["file"]))
            self._run.log({PICTURE: image}, step=step)
        elif name in ("train", "val", "test"):
            self._run.log(measurements(name, values), step=step)

    def close(self) -> None:
        """Hand over what is still held back."""
        self._run.finish()
