"""Analyses as tasks on the executors that sweeps run on.

Each source is a task. Where there are more workers than sources, several compute one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastadv.analysis.config import AnalysisConfig
from fastadv.analysis.contract import Analysis, measure_once
from fastadv.device import exact_float32
from fastadv.errors import FastadvError
from fastadv.kernels import use_backend
from fastadv.results.portions import Share, ShareDone
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable
from fastadv.runs.executors import SerialExecutor
from fastadv.runs.tasks import Executor, Place, Task, run_tasks


def run_analyses(
    module: str,
    config: AnalysisConfig,
    make_executor: Callable[[Path], Executor] = lambda _: SerialExecutor(),
    *,
    retries: int = 0,
) -> list[Row]:
    """Analyse every source of a configuration, each once, and return the rows.

    All sources and images are opened first, so that a mistake is found before anything is
    computed. Where a stop signal ends the work, finished rows and finished portions stay,
    and the same call continues.

    Args:
        module: Name of the module of the analysis; its `prepare` takes the configuration
            and one of its subjects, and returns an `Analysis`.
        config: The choices.
        make_executor: Makes what runs the tasks, given the folder of the table.
        retries: How often an analysis is started again after its process died.

    Raises:
        CheckpointError, DataError, ConfigError: A source or the images are unusable.
        FastadvError: An analysis failed; the others are in the table.
        Preempted: A stop signal came.
    """
    # The path is absolute since workers need not share the working directory.
    folder = Path(config.results).expanduser().absolute()
    config = dataclasses.replace(config, results=str(folder))
    table = ResultsTable(folder, once=True)
    table.prepare()
    finished = table.identities()
    jobs: dict[str, _Job] = {}
    for subject in config.subjects:
        job = _Job(module, config, subject)
        jobs.setdefault(job.analysis.experiment, job)
    left = {identity: job for identity, job in jobs.items() if identity not in finished}
    if left:
        executor = make_executor(folder)
        failures = run_tasks(
            _tasks(left, executor.slots),
            executor,
            table,
            done=len(jobs) - len(left),
            retries=retries,
            what="analyses",
        )
        if len(failures) == 1:
            raise FastadvError(str(failures[0].error))
        if failures:
            listed = "\n  ".join(f"{each.task}: {each.error}" for each in failures)
            raise FastadvError(f"{len(failures)} analyses failed:\n  {listed}")
    return [row for identity in jobs for row in table.rows(experiment=identity)]


def _tasks(jobs: Mapping[str, _Job], slots: int) -> list[Task]:
    """Return a task for each analysis, and the help that as many slots can give."""
    tasks, processes = [], -(-slots // len(jobs))
    for helps in [False] + [True] * (processes - 1):
        for identity, job in jobs.items():
            analysis = job.analysis
            if processes > 1 and analysis.shared:
                job = dataclasses.replace(job, share=Share(processes, helps))
            elif helps:
                continue
            name = f"a share of {analysis}" if helps else str(analysis)
            # The process that computes the numbers leaves the rows.
            rows = () if helps else (identity,)
            tasks.append(Task(_work, job, job.config.results, rows, name))
    return tasks


@dataclass(frozen=True)
class _Job:
    """The analysis of one source, or a share of it, which can be pickled."""

    module: str
    config: AnalysisConfig
    subject: Any
    share: Share | None = None

    @cached_property
    def analysis(self) -> Analysis:
        """The analysis, prepared once in each process."""
        prepare: Any = importlib.import_module(self.module).prepare
        found: Analysis = prepare(self.config, self.subject)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _Job, (self.module, self.config, self.subject, self.share)


def _work(job: _Job, place: Place) -> None:
    """Compute the rows of an analysis into its table, at a place."""
    config = job.config
    if config.workers is None and place.threads is not None:
        config = dataclasses.replace(config, workers=min(8, place.threads))
    if config.device == "auto" and place.device is not None:
        config = dataclasses.replace(config, device=place.device)
    if config != job.config:
        job = _Job(job.module, config, job.subject, job.share)
    table = ResultsTable(config.results, once=True)
    exact = exact_float32()
    with use_backend(config.backend), exact, contextlib.suppress(ShareDone):
        measure_once(table, job.analysis, job.share)
