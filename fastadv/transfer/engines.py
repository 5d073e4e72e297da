"""Where the tasks of a sweep run: in this process, in local ones, or on Ray.

An engine only runs tasks and says what became of them. What is retried, and what counts
as finished, is `sweep`'s business; rows are written by the task itself, the moment they
are known, so that no crash of anything else can lose them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

from fastadv.errors import ConfigError, DataError, FastadvError
from fastadv.machine import usable_cores
from fastadv.transfer.config import TransferConfig

EngineName = Literal["serial", "processes", "ray"]
# One per worker, beside the table's files. Readers of Parquet data sets pass over names
# that begin so.
_LOGS = "_logs"
_REACH_SECONDS = 5.0
_LAST_SECONDS = 10.0  # an idle worker has to end


@dataclass(frozen=True)
class Ended:
    """A task that is over.

    Attributes:
        config: what ran.
        error: why it failed; None if it did not.
        crashed: it may work another time: the process died, or something failed that
            fastadv does not know.
    """

    config: TransferConfig
    error: str | None = None
    crashed: bool = False


class Engine(Protocol):
    """Runs up to `slots` tasks at once."""

    slots: int

    def start(self, config: TransferConfig) -> None:
        """Begin a task; there must be a free slot."""

    def wait(self) -> list[Ended]:
        """Block until a task has ended, or a while; those that have."""

    def close(self) -> None:
        """End everything that still runs."""


def make_engine(
    name: EngineName,
    results: Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    cpus_per_task: float = 1,
    gpus_per_task: float = 0,
) -> Engine:
    """The engine of a name.

    Args:
        name: serial, processes or ray.
        results: folder of the table; the workers' logs go below it.
        workers: tasks at once; default one per core (processes), or what the cluster
            has room for (ray).
        address: of a Ray cluster, `auto` or `host:port`; None starts one here.
        cpus_per_task: cores a Ray task reserves.
        gpus_per_task: GPUs a Ray task reserves, also a fraction.

    Raises:
        ConfigError: an argument that does not fit, or Ray missing or unreachable.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers} must be at least 1")
    if name == "serial":
        if workers not in (None, 1):
            raise ConfigError(
                f"--workers {workers} needs --engine processes or --engine ray; serial "
                "runs one task at a time"
            )
        return SerialEngine()
    if name == "processes":
        return ProcessEngine(workers or usable_cores(), results / _LOGS)
    return RayEngine(workers, address, cpus_per_task, gpus_per_task)


def run_task(config: TransferConfig) -> Ended:
    """Compute a task's rows into the table at `config.results`."""
    # Not at the top: a sweep's `--help` imports no torch.
    from fastadv.results.legacy import LegacyTable
    from fastadv.transfer.protocol import TransferRun

    try:
        if not Path(config.results).is_dir():
            raise DataError(
                f"{socket.gethostname()} does not see the results folder "
                f"{config.results}; every worker needs it, e.g. on a shared file system"
            )
        for _ in TransferRun(config, LegacyTable(config.results, once=True)).rows():
            pass
    except (FastadvError, ValueError, TypeError) as error:
        return Ended(config, str(error))
    except Exception as error:  # whatever it is must not end the other tasks
        logging.getLogger(__name__).exception("a task failed")
        return Ended(config, f"{type(error).__name__}: {error}", crashed=True)
    return Ended(config)


class SerialEngine:
    """One task after another in this process."""

    slots = 1

    def __init__(self) -> None:
        self._next: TransferConfig | None = None

    def start(self, config: TransferConfig) -> None:
        """Note the task; `wait` runs it."""
        self._next = config

    def wait(self) -> list[Ended]:
        """Run the task."""
        config, self._next = self._next, None
        return [] if config is None else [run_task(config)]

    def close(self) -> None:
        """Nothing runs between calls."""


# ---- local processes ----


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: TransferConfig | None = None


class ProcessEngine:
    """Local processes that live as long as they do not die, each with its share of cores.

    Args:
        workers: how many.
        logs: folder of what they print.
    """

    def __init__(self, workers: int, logs: Path) -> None:
        self.slots = workers
        self.logs = logs
        self._workers: dict[int, _Worker] = {}

    def start(self, config: TransferConfig) -> None:
        """Give the task to an idle worker, or to a new one."""
        number = next(
            n
            for n in range(self.slots)
            if n not in self._workers or self._workers[n].task is None
        )
        worker = self._workers.get(number)
        if worker is None or not worker.process.is_alive():
            worker = self._workers[number] = self._spawn(number)
        worker.task = config
        # Died this very moment: `wait` will say so.
        with contextlib.suppress(OSError):
            worker.connection.send(config)

    def _spawn(self, number: int) -> _Worker:
        # Not fork: threads of torch and CUDA do not survive it.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, usable_cores() // self.slots)
        process = context.Process(
            target=_work, args=(theirs, number, threads, self.logs), daemon=False
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def wait(self) -> list[Ended]:
        """Wait for a worker to answer or to die."""
        busy = {n: w for n, w in self._workers.items() if w.task is not None}
        # With a limit: decoding processes of a killed worker inherit its end of the
        # pipe and may keep it open for seconds.
        ready = multiprocessing.connection.wait(
            [worker.connection for worker in busy.values()], timeout=0.5
        )
        ended = []
        for number, worker in busy.items():
            if worker.connection not in ready and worker.process.is_alive():
                continue
            task, worker.task = worker.task, None
            try:
                # It may have answered before it died.
                if not worker.connection.poll():
                    raise EOFError
                ended.append(worker.connection.recv())
            except (EOFError, OSError):
                worker.process.join()
                code = worker.process.exitcode or 0
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                log = self.logs / f"worker-{number}.log"
                if task is not None:
                    ended.append(
                        Ended(task, f"its process died ({how}); see {log}", True)
                    )
                worker.connection.close()
                del self._workers[number]
        return ended

    def close(self) -> None:
        """Let idle workers go, kill the others: rows are written whole or not at all."""
        for worker in self._workers.values():
            worker.connection.close()
            if worker.task is not None:
                worker.process.kill()
        for worker in self._workers.values():
            worker.process.join(_LAST_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()


def _work(connection: Connection, number: int, threads: int, logs: Path) -> None:
    """A worker's life: tasks in, what became of them out, until the sweep is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group
    threading.Thread(target=_die_with_parent, daemon=True).start()
    logs.mkdir(parents=True, exist_ok=True)
    log = open(logs / f"worker-{number}.log", "a", buffering=1)  # noqa: SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    logging.basicConfig(stream=log, level=logging.WARNING)
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            config: TransferConfig = connection.recv()
        except EOFError:
            return
        ended = run_task(_placed(config, number, threads, torch.cuda.device_count()))
        connection.send(replace(ended, config=config))


def _placed(
    config: TransferConfig, number: int, threads: int, gpus: int
) -> TransferConfig:
    """The task with this worker's share of decoders, and its GPU where there are any."""
    if config.workers is None:
        config = replace(config, workers=min(8, threads))
    if config.device == "auto" and gpus:
        config = replace(config, device=f"cuda:{number % gpus}")
    return config


def _die_with_parent() -> None:
    """A sweep that was killed leaves no worker behind to compute what another redoes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


# ---- Ray ----


class RayEngine:
    """A Ray cluster: this machine's own, or one that exists.

    Sources, data and the results folder must be at the same paths on every node.

    Args:
        workers: tasks at once; None for what the cluster has room for.
        address: `auto`, `host:port` or `ray://host:port`; None starts a local cluster.
        cpus: cores a task reserves.
        gpus: GPUs a task reserves.

    Raises:
        ConfigError: Ray is not installed or there is no cluster at the address.
    """

    def __init__(
        self, workers: int | None, address: str | None, cpus: float, gpus: float
    ) -> None:
        # What is computed here is nobody else's business.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise ConfigError(
                f"--engine ray needs Ray ({error}): pip install 'fastadv[ray]', or use "
                "--engine processes"
            ) from None
        if address not in (None, "auto", "local"):
            _check_reachable(str(address))
        options: dict[str, Any] = {"address": address or "local"}
        if address in (None, "local"):
            options["num_cpus"] = max(1, round((workers or usable_cores()) * cpus))
            options["include_dashboard"] = False
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise ConfigError(
                f"no Ray cluster at --address {address}: {error}. Start one with `ray "
                "start --head`, set RAY_AUTH_MODE=token if that said it asks for a token, "
                "or leave --address out for one on this machine"
            ) from None
        room = ray.cluster_resources()
        fits = [room.get("CPU", 0) / cpus] if cpus else []
        fits += [room.get("GPU", 0) / gpus] if gpus else []
        if min(fits, default=1) < 1:
            ray.shutdown()
            raise ConfigError(
                f"a task reserves {cpus:g} core(s) and {gpus:g} GPU(s), the Ray cluster "
                f"has {room.get('CPU', 0):g} and {room.get('GPU', 0):g}; lower "
                "--cpus-per-task or --gpus-per-task"
            )
        self.slots = workers or int(min(fits, default=1))
        self._ray = ray
        # Retries are the sweep's, which first looks what the dead task had finished.
        self._run = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_ray_task)
        self._folder = os.getcwd()
        self._threads = max(1, int(cpus))
        self._running: dict[Any, TransferConfig] = {}

    def start(self, config: TransferConfig) -> None:
        """Queue the task on the cluster."""
        self._running[self._run.remote(config, self._threads, self._folder)] = config

    def wait(self) -> list[Ended]:
        """Wait for a task to end, or for a node to be lost."""
        ready, _ = self._ray.wait(list(self._running), timeout=0.5)
        ended = []
        for reference in ready:
            config = self._running.pop(reference)
            try:
                ended.append(replace(self._ray.get(reference), config=config))
            except self._ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                ended.append(Ended(config, f"its Ray worker died: {lines[0]}", True))
        return ended

    def close(self) -> None:
        """Cancel what runs and leave the cluster; one of our own ends with that."""
        for reference in self._running:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()


def _ray_task(config: TransferConfig, threads: int, folder: str) -> Ended:
    import torch

    os.chdir(folder)  # what relative paths are relative to
    torch.set_num_threads(threads)
    return run_task(_placed(config, 0, threads, gpus=0))


def _check_reachable(address: str) -> None:
    """Ray itself tries for a minute and then prints a page."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"--address {address!r} is no Ray address; use auto, host:port or "
            "ray://host:port"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster at --address {address}: {error.strerror or error}. Start "
            "one with `ray start --head`, or leave --address out for one on this machine"
        ) from None
