"""fastadv-transfer sweep: every experiment of a recipe into one results table."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from fastadv.cli import common
from fastadv.errors import ConfigError, FastadvError, in_flags
from fastadv.machine import usable_cores
from fastadv.runs.engine_config import EngineConfig

if TYPE_CHECKING:
    from fastadv.transfer.sweep import SweepPlan

PROG = "fastadv-transfer sweep"


@dataclass(frozen=True, kw_only=True)
class SweepCommand(EngineConfig):
    """Run every experiment of a recipe and append the results to one table.

    After an interruption, the same command goes on: finished rows are never computed
    again. An example is recipes/robust-transfer.yaml; fastadv/transfer/recipe.py describes
    the format.
    """

    recipe: Annotated[str, Positional, arg(metavar="RECIPE")]
    """YAML file with sources, datasets, protocols, seeds and any flag of
    fastadv-transfer. A list is an axis of the sweep."""
    tier: str | None = None
    """Tier of the recipe to run; its header lists them. Default: the first."""
    workers: Annotated[int | None, arg(aliases=["--jobs"])] = None
    """Number of tasks at once with processes and ray. Default: as many as there is room
    for."""
    results: str | None = None
    """Results table. Default: that of the recipe, else ./results."""
    skip_missing: bool = False
    """Leave out sources and data sets that cannot be opened, and list them."""
    plan: bool = False
    """Measure a few passes of each network and print what the sweep will take: images
    passed, disk, time on this machine, and what differences the design can find. What is
    missing is listed; nothing is downloaded."""
    dry_run: bool = False
    """Print the tasks that are left without running them."""
    json: bool = False
    """Print the summary as JSON."""


def body(argv: list[str]) -> None:
    """Parse the command line, plan and run the sweep, and print a summary."""
    command = common.parse(SweepCommand, argv, PROG)

    from fastadv.results.table import ResultsTable
    from fastadv.runs.executors import make_executor
    from fastadv.runs.tasks import run_tasks
    from fastadv.transfer.recipe import read_recipe
    from fastadv.transfer.sweep import plan_sweep

    path = Path(command.recipe)
    configs = read_recipe(path, command.tier, results=command.results)
    results = {str(Path(c.results).expanduser().absolute()) for c in configs}
    if len(results) != 1:
        raise ConfigError(f"{command.recipe}: results must be one folder for all")
    # The path is absolute since workers need not share the working directory.
    [folder] = results
    configs = [dataclasses.replace(config, results=folder) for config in configs]
    table = ResultsTable(configs[0].results, once=True)
    plan = plan_sweep(
        configs, table, skip_missing=command.skip_missing, survey=command.plan
    )
    if command.plan:
        _print_cost(plan, command)
        return
    _announce(plan, command)
    if command.dry_run:
        return
    table.prepare()
    failures = []
    if plan.tasks:
        executor = make_executor(
            command.engine,
            table.path,
            workers=command.workers,
            address=command.address,
            cpus_per_task=command.cpus_per_task,
            gpus_per_task=command.gpus_per_task,
        )
        failures = run_tasks(
            plan.tasks, executor, table, done=plan.done, retries=command.retries
        )
    given_up = sum(len(failure.task.identities) for failure in failures)
    summary = {
        "results": str(table.path),
        "rows": plan.rows,
        "before": plan.done,
        "failed": [
            {"task": str(f.task), "reason": in_flags(str(f.error))} for f in failures
        ],
    }
    text = f"{plan.rows - given_up} of {plan.rows} rows are in {table.path} "
    common.show(command, summary, f"{text}({plan.done} were before)")
    if failures:
        listed = "\n  ".join(f"{each.task}: {each.error}" for each in failures)
        raise FastadvError(f"{given_up} row(s) could not be computed:\n  {listed}")


def _print_cost(plan: SweepPlan, command: SweepCommand) -> None:
    """Measure, and print what a sweep will take."""
    from fastadv.transfer.cost import sweep_cost

    usual = usable_cores() if command.engine == "processes" else 1
    cost = sweep_cost(plan, command.workers or usual)
    common.show(command, cost.to_dict(), in_flags(cost.text()))


def _announce(plan: SweepPlan, command: SweepCommand) -> None:
    for problem in plan.missing:
        print(f"left out: {in_flags(problem)}", file=sys.stderr)
    line = f"{plan.rows} rows, {plan.done} done, {len(plan.tasks)} task(s) left"
    if plan.tasks:
        line += f", about {plan.bytes_left / 1e6:.3g} MB to be written"
    if command.dry_run:
        tasks = [str(task) for task in plan.tasks]
        common.show(command, tasks, "\n".join([*tasks, line]))
    else:
        print(line, file=sys.stderr, flush=True)
