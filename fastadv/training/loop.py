"""The loop that every training shares: epochs, reports, checkpoints, resuming, stopping."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sized
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch
from torch import Tensor

from fastadv.errors import (
    CheckpointError,
    FastadvError,
    Preempted,
    TrainingDiverged,
)
from fastadv.kernels import use_backend
from fastadv.kernels.registry import check_backend_name
from fastadv.phases import phase
from fastadv.runs.directory import RunDirectory
from fastadv.runs.distributed import World, random_state, set_random_state
from fastadv.runs.listeners import check_listeners, open_listeners
from fastadv.runs.preemption import StopRequest, stop_on_signal
from fastadv.runs.profile import StepProfile
from fastadv.training.looplog import Config, Interval, LoopLog
from fastadv.training.validation import Interrupted

_LOG_SECONDS = 10.0  # between "train" events; reading the losses waits for the device


class WithImages(Protocol):
    """A batch that has images, of whatever kind."""

    @property
    def images(self) -> Sized:
        """The images of the batch."""


AnyBatch = TypeVar("AnyBatch", bound=WithImages)
Batch_co = TypeVar("Batch_co", bound=WithImages, covariant=True)
Result = TypeVar("Result")
Summary = TypeVar("Summary")


class EpochLoader(Protocol[Batch_co]):
    """A loader of training batches, whose position is part of a checkpoint."""

    @property
    def epoch(self) -> int:
        """The epoch of the current or next iteration."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def __iter__(self) -> Iterator[Batch_co]:
        """Yield the batches of an epoch that are left, then advance it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position that `state_dict` returned."""


class LoopLearner(Protocol):
    """What is trained, with everything that an update changes."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser whose learning rate the schedule sets."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; `weights` is a state dict."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, to the bit."""


class TrainingLoop(Generic[Config, AnyBatch, Result, Summary]):
    """A run of training: its state, its checkpoints and the loop over its epochs.

    A subclass builds `loader`, `learner` and `log`, calls `prepare` at the end of its
    constructor, and fills in the methods that raise `NotImplementedError`.

    Args:
        config: The choices of the run.
        world: The ranks of which this process is one; None is one process alone.
        may_change: Choices that may differ when a run is resumed.

    Attributes:
        loader: Batches of the training images, in the order of the run.
        learner: What is trained.
        log: The log and the progress of the run.
        device: The device of this rank.
        run: The run directory.
        profile: Measures where the time of some steps goes.
        step: Number of updates done.
        total_steps: Number of updates of the whole run.
        resumed: Whether the run goes on from a checkpoint.

    Raises:
        ConfigError: The device, the kernels or the listeners cannot be used.
    """

    loader: EpochLoader[AnyBatch]
    learner: LoopLearner
    log: LoopLog[Config]
    profile: StepProfile
    total_steps: int

    def __init__(
        self, config: Config, world: World | None, may_change: Collection[str]
    ) -> None:
        self.config = config
        self.world = world or World()
        leads = self.world.leads
        check_listeners(config.tensorboard, config.wandb, writes=leads)
        if config.backend != "auto":
            check_backend_name(config.backend)
        self.device = self.world.device(config.device)
        self.run = RunDirectory(
            config.out_path, may_change=tuple(may_change), writes=leads
        )
        self.step, self.resumed = 0, False
        self._validated = True  # the model that the last epoch left
        self._saved_at = 0.0

    # ---- what a kind of training fills in ----

    def describe(self) -> None:
        """Print a description of the run, with warnings where due."""
        raise NotImplementedError

    def update(self, batch: AnyBatch) -> Result:
        """Do one training step, in the mode of training."""
        raise NotImplementedError

    def _values(self, result: Result) -> dict[str, Tensor]:
        """Return what a step measured, as `Interval.add` takes it."""
        raise NotImplementedError

    def _seed(self) -> None:
        """Seed torch's generators at the begin of a run, if it draws from them."""

    def _begin_epoch(self, epoch: int) -> None:
        """Set up an epoch, and put the network in the mode of training."""
        raise NotImplementedError

    def _after_update(self) -> None:
        """Do what follows an update and is no part of it."""

    def _end_epoch(self) -> None:
        """Do what follows the last batch of an epoch."""

    def _validates(self, epoch: int) -> bool:
        """Return whether a validation follows after `epoch` epochs."""
        raise NotImplementedError

    def _validate(self, stop: StopRequest) -> Any:
        """Return what a validation measures; `Interrupted` is raised at a signal."""
        raise NotImplementedError

    def _scored(self, found: Any, epoch: int) -> bool:
        """Log what a validation found; return whether it is the best so far."""
        raise NotImplementedError

    def _after_epoch(self, epoch: int) -> None:
        """Do what follows a validation, before the epoch is saved."""

    def _finish(self, stop: StopRequest) -> Summary:
        """Test what was trained, at the end of the last epoch."""
        raise NotImplementedError

    def _own_state(self) -> dict[str, Any]:
        """Return what a resume needs besides the parts that all loops have."""
        raise NotImplementedError

    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Check and take over a state, before its position and weights are loaded."""
        raise NotImplementedError

    def _writer(self, state: dict[str, Any]) -> Callable[[Path], None]:
        """Return what writes the network into a folder. Every rank must call it."""
        raise NotImplementedError

    # ---- state ----

    def prepare(self, batch_size: int, *, dry_run: bool, profile: int | None) -> None:
        """Open the run directory, and continue from its state if it is to be resumed.

        Args:
            batch_size: Images of an update over all ranks, for the profile.
            dry_run: Neither create nor open the run directory.
            profile: Number of steps to time; None times nothing.

        Raises:
            ConfigError: The folder holds another run, or the state is of other choices.
            CheckpointError: The state cannot be read.
        """
        config, leads = self.config, self.world.leads
        folder = self.run.path if leads else None
        self.profile = StepProfile(
            folder, profile, self.device, batch_size, self.log.note
        )
        if dry_run:
            return
        state = None
        if leads:
            state = self.run.prepare(config.to_dict(), resume=config.resume)
        state = self.world.share(state)
        self.resumed = state is not None
        try:
            if state is not None:
                self._resume_from(state)
            if leads:  # only now: a resume that is refused changes nothing
                self.run.record(config.to_dict())
        except BaseException:
            self.run.release()
            raise

    def _state(self) -> dict[str, Any]:
        """Return everything that a resume needs. Every rank must call it."""
        return {
            "config": self.config.to_dict(),
            "epoch": self.loader.epoch,
            "step": self.step,
            "validated": self._validated,
            "loader": self.loader.state_dict(),
            "rng": self.world.gather(random_state()),
            **self._own_state(),
            **self.learner.state_dict(),
        }

    def _resume_from(self, state: dict[str, Any]) -> None:
        try:
            self._load_state(state)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the state in {self.run.checkpoints / 'last'} is not one of this program "
                f"({type(error).__name__}: {error}); start the run again with another `out`"
            ) from error

    def _load_state(self, state: dict[str, Any]) -> None:
        self._load_own_state(state)
        self.loader.load_state_dict(state["loader"])
        self.learner.load_state_dict(state)
        self.step = state["step"]
        self._validated = state.get("validated", True)
        set_random_state(state["rng"], self.world.rank, state["config"]["seed"])

    def _save(self, *, best: bool = False, keep: str | None = None) -> None:
        state = self._state()
        if not all(value.isfinite().all() for value in state["weights"].values()):
            raise TrainingDiverged(
                f"the weights after step {self.step - 1} are not finite"
            )
        write = self._writer(state)
        if self.world.leads:
            self.run.save(write, state, step=self.step, best=best, keep=keep)
        self._saved_at = time.monotonic()

    @contextlib.contextmanager
    def _saved_on_error(self) -> Iterator[None]:
        """Save before an error ends the run; several ranks resume from `last` instead."""
        try:
            yield
        except Interrupted:
            raise
        except Exception:
            if self.world.size == 1 and self.step:
                with contextlib.suppress(FastadvError):
                    self._save()
            raise

    # ---- the loop ----

    def fit(self) -> Summary:
        """Train to the end of the last epoch, validating and saving on the way, and test.

        Raises:
            Preempted: A signal requested a stop; the state is saved.
            TrainingDiverged: A loss or a weight is not finite; nothing was saved since.
            OutputError: A checkpoint or the log cannot be written.
        """
        config, leads = self.config, self.world.leads
        if not self.resumed:
            self._seed()
        self.log.begin(self.step)
        self.describe()
        self._saved_at = time.monotonic()
        with (
            use_backend(config.backend),
            open_listeners(
                self.run.path,
                self.step,
                config.to_dict(),
                config.tensorboard and leads,
                config.wandb if leads else None,
            ) as self.run.listeners,
            contextlib.closing(self.profile),
            stop_on_signal() as stop,
        ):
            try:
                self.log.started(self.step, resumed=self.resumed)
                while self.loader.epoch < config.epochs or not self._validated:
                    if self._validated:
                        self._epoch(stop)
                    self._finish_epoch(stop)
                return self._finish(stop)
            except TrainingDiverged as error:
                raise self.log.diverged(error, self.step) from None
            except Interrupted:
                self._stop(stop)
            finally:
                self.run.release()

    def _epoch(self, stop: StopRequest) -> None:
        config, epoch = self.config, self.loader.epoch
        self._begin_epoch(epoch)
        interval = Interval()
        batches, stopping = iter(self.loader), 0  # signal number
        self.profile.begin_epoch()
        while not stopping:
            began = time.monotonic()
            with phase("data"), self._saved_on_error():
                batch = next(batches, None)
            if batch is None:
                self._end_epoch()
                break
            waited = time.monotonic() - began
            result = self.update(batch)
            interval.add(self._values(result), len(batch.images), waited)
            self._after_update()
            now = time.monotonic()
            stopping, overdue, report = self.world.agree_to_stop(
                stop,
                now - self._saved_at > 60 * config.save_minutes,
                now - interval.began > _LOG_SECONDS,
            )
            if stopping or overdue or report:
                with self._saved_on_error():
                    interval = self._report(interval, epoch)
            else:
                self.log.show(epoch, self.step)
            self.profile.end_step()
            if overdue and not stopping and self.step % len(self.loader):
                self._save()
                self.profile.begin_epoch()
        if interval.steps:
            self._report(interval, epoch)
        if stopping:
            self._stop(stop)

    def _report(self, interval: Interval, epoch: int) -> Interval:
        lr = self.learner.optimizer.param_groups[0]["lr"]
        self.log.trained(interval, epoch, self.step, lr)
        return Interval()

    def _finish_epoch(self, stop: StopRequest) -> None:
        epoch = self.loader.epoch  # epochs done: the loader is at the next one
        best = False
        if self._validates(epoch):
            self._validated = False
            with self._saved_on_error():
                found = self._validate(stop)
            self._validated = True
            best = self._scored(found, epoch)
        self._after_epoch(epoch)
        every = self.config.keep_every
        keep = f"epoch-{epoch:04d}" if every and epoch % every == 0 else None
        self._save(best=best, keep=keep)
        number, *_ = self.world.agree_to_stop(stop)
        if number:
            self._preempted(stop)

    def _stop(self, stop: StopRequest) -> NoReturn:
        self.world.agree_to_stop(stop)
        self._save()
        self._preempted(stop)

    def _preempted(self, stop: StopRequest) -> NoReturn:
        self.run.log("preempted", step=self.step, signal=stop.signal)
        raise Preempted(
            f"{stop.signal}: saved step {self.step}; continue with "
            f"`resume` `out={self.run.path}`"
        )
