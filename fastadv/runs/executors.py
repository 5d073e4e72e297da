"""Where tasks run: in this process, in local processes, or on Ray.

An executor only runs tasks and reports those that ended. The module `tasks` decides which
are finished and which run again.
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
from typing import Any, Literal

from fastadv.errors import ConfigError
from fastadv.machine import usable_cores
from fastadv.models.own_networks import VARIABLE
from fastadv.runs.tasks import Ended, Executor, Place, Task, run_task

EngineName = Literal["serial", "processes", "ray"]
# One log per worker, beside the files of the table. Readers of Parquet data sets pass
# over names that begin with an underscore.
_LOGS = "_logs"
_REACH_SECONDS = 5.0
_CLOSE_SECONDS = 10.0  # an idle worker has so long to end


def make_executor(
    name: EngineName,
    results: Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    cpus_per_task: float = 1,
    gpus_per_task: float = 0,
) -> Executor:
    """Make an executor.

    Args:
        name: serial, processes or ray.
        results: Folder of the table; the workers' logs go below it.
        workers: Number of tasks at once. By default that is, for processes, one per GPU,
            or per core where there is none; for ray, as many as the cluster has room for.
        address: Address of a Ray cluster, `auto`, `host:port` or `ray://host:port`;
            None starts one here. Sources, data and the results folder must be at the
            same paths on every node.
        cpus_per_task: Cores that a Ray task reserves.
        gpus_per_task: GPUs that a Ray task reserves; it may be a fraction.

    Raises:
        ConfigError: An argument does not fit, or Ray is missing or unreachable.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"`workers={workers}` must be at least 1")
    if name == "serial":
        if workers not in (None, 1):
            raise ConfigError(
                f"`workers={workers}` needs `engine=processes` or `engine=ray`; serial "
                "runs one task at a time"
            )
        return SerialExecutor()
    if name == "processes":
        return _ProcessExecutor(workers or _places(), results / _LOGS)
    return _RayExecutor(workers, address, cpus_per_task, gpus_per_task)


def _places() -> int:
    """Return the number of GPUs, or of cores where there is none.

    Each worker on a GPU has a context and a copy of the images in its memory, so that
    more of them would crowd it and not be quicker.
    """
    import torch

    return torch.cuda.device_count() or usable_cores()


class SerialExecutor:
    """One task after another in this process."""

    slots = 1

    def __init__(self) -> None:
        self._next: Task | None = None

    def start(self, task: Task) -> None:
        """Keep the task; `wait` runs it."""
        self._next = task

    def wait(self) -> list[Ended]:
        """Run the task that was started."""
        task, self._next = self._next, None
        return [run_task(task, Place())] if task else []

    def close(self) -> None:
        """Do nothing: no task runs between calls."""


# ---- local processes ----


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: Task | None = None


class _ProcessExecutor:
    """Local processes, each with its share of the cores; one that died is replaced."""

    def __init__(self, workers: int, logs: Path) -> None:
        self.slots = workers
        self.logs = logs
        self._workers: dict[int, _Worker] = {}

    def start(self, task: Task) -> None:
        busy = {n for n, worker in self._workers.items() if worker.task is not None}
        number = min(set(range(self.slots)) - busy)
        worker = self._workers.get(number)
        if worker is None or not worker.process.is_alive():
            worker = self._workers[number] = self._spawn(number)
        worker.task = task
        # If it died this very moment, `wait` will report that.
        with contextlib.suppress(OSError):
            worker.connection.send(task)

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
        busy = [w.connection for w in self._workers.values() if w.task is not None]
        # With a limit: decoding processes of a killed worker inherit its end of the
        # pipe and may keep it open for seconds.
        ready = multiprocessing.connection.wait(busy, timeout=0.5)
        ended = []
        for number, worker in list(self._workers.items()):
            task, connection = worker.task, worker.connection
            if task is None or (connection not in ready and worker.process.is_alive()):
                continue
            worker.task = None
            try:
                # It may have answered before it died.
                if not connection.poll():
                    raise EOFError
                ended.append(replace(connection.recv(), task=task))
            except (EOFError, OSError):
                worker.process.join()
                code = worker.process.exitcode or 0
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                log = self.logs / f"worker-{number}.log"
                reason = f"its process died ({how}); see {log}"
                ended.append(Ended(task, reason, crashed=True))
                connection.close()
                del self._workers[number]
        return ended

    def close(self) -> None:
        # Idle workers end, others are killed: rows are written whole or not at all.
        for worker in self._workers.values():
            worker.connection.close()
            if worker.task is not None:
                worker.process.kill()
        for worker in self._workers.values():
            worker.process.join(_CLOSE_SECONDS)
            worker.process.kill()  # does nothing if it has ended
            worker.process.join()
        self._workers.clear()


def _work(connection: Connection, number: int, threads: int, logs: Path) -> None:
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
    gpus = torch.cuda.device_count()
    place = Place(threads, f"cuda:{number % gpus}" if gpus else None)
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        connection.send(run_task(task, place))


def _die_with_parent() -> None:
    """End with the parent, so that no worker computes what another sweep redoes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


# ---- Ray ----


class _RayExecutor:
    """A Ray cluster: one of this machine, or one that exists."""

    def __init__(
        self, workers: int | None, address: str | None, cpus: float, gpus: float
    ) -> None:
        # No statistics of use are sent to anybody.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise ConfigError(
                f"`engine=ray` needs Ray ({error}): pip install 'fastadv[ray]', or use "
                "`engine=processes`"
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
                f"no Ray cluster at `address={address}`: {error}. Start one with `ray "
                "start --head`, set RAY_AUTH_MODE=token if it asks for a token, or leave "
                "`address` out for one on this machine"
            ) from None
        room = ray.cluster_resources()
        cores, devices = room.get("CPU", 0), room.get("GPU", 0)
        fits = [has / needs for has, needs in ((cores, cpus), (devices, gpus)) if needs]
        if min(fits, default=1) < 1:
            ray.shutdown()
            raise ConfigError(
                f"a task reserves {cpus:g} core(s) and {gpus:g} GPU(s), the Ray cluster "
                f"has {cores:g} and {devices:g}; lower `cpus_per_task` or "
                "`gpus_per_task`"
            )
        self.slots = workers or int(min(fits, default=1))
        self._ray = ray
        # `run_tasks` retries: it first looks what the dead task had finished.
        self._run = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_ray_task)
        self._folder = os.getcwd()
        # Nodes of a cluster do not inherit what the user typed here.
        self._typed = os.environ.get(VARIABLE, "")
        self._threads = max(1, int(cpus))
        self._running: dict[Any, Task] = {}

    def start(self, task: Task) -> None:
        started = self._run.remote(task, self._threads, self._folder, self._typed)
        self._running[started] = task

    def wait(self) -> list[Ended]:
        ready, _ = self._ray.wait(list(self._running), timeout=0.5)
        ended = []
        for reference in ready:
            task = self._running.pop(reference)
            try:
                ended.append(replace(self._ray.get(reference), task=task))
            except self._ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                ended.append(Ended(task, f"its Ray worker died: {lines[0]}", True))
        return ended

    def close(self) -> None:
        for reference in self._running:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()


def _ray_task(task: Task, threads: int, folder: str, typed: str) -> Ended:
    import torch

    os.chdir(folder)  # relative paths are relative to it
    os.environ[VARIABLE] = typed
    torch.set_num_threads(threads)
    return run_task(task, Place(threads))


def _check_reachable(address: str) -> None:
    """Refuse an address nobody answers at; Ray would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"`address={address!r}` is no Ray address; use auto, host:port or "
            "ray://host:port"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster at `address={address}`: {error.strerror or error}. Start "
            "one with `ray start --head`, or leave `address` out for one on this machine"
        ) from None
