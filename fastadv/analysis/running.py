"""Many analyses, one task for each source, on the executors that sweeps run on."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastadv.analysis.config import AnalysisConfig
from fastadv.analysis.contract import Analysis, measure_once
from fastadv.errors import FastadvError
from fastadv.kernels import use_backend
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
    tasks = [
        Task(_work, job, config.results, (identity,), str(job.analysis))
        for identity, job in left.items()
    ]
    if tasks:
        failures = run_tasks(
            tasks,
            make_executor(folder),
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


@dataclass(frozen=True)
class _Job:
    """The analysis of one source, which can be pickled."""

    module: str
    config: AnalysisConfig
    subject: Any

    @cached_property
    def analysis(self) -> Analysis:
        """The analysis, prepared once in each process."""
        prepare: Any = importlib.import_module(self.module).prepare
        found: Analysis = prepare(self.config, self.subject)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _Job, (self.module, self.config, self.subject)


def _work(job: _Job, place: Place) -> None:
    """Compute the rows of an analysis into its table, at a place."""
    config = job.config
    if config.workers is None and place.threads is not None:
        config = dataclasses.replace(config, workers=min(8, place.threads))
    if config.device == "auto" and place.device is not None:
        config = dataclasses.replace(config, device=place.device)
    if config != job.config:
        job = _Job(job.module, config, job.subject)
    with use_backend(config.backend):
        measure_once(ResultsTable(config.results, once=True), job.analysis)
