"""Sweeps: recipes, plans, and rows that are never computed twice."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sweep_runs import ROWS, recipe_file, values

from fastadv.cli import train as train_command, transfer as command
from fastadv.errors import ConfigError, DataError
from fastadv.models.published import robustbench_model, salman2020_file
from fastadv.results.schema import SCHEMA
from fastadv.results.table import ResultsTable
from fastadv.runs.executors import SerialExecutor
from fastadv.runs.tasks import Ended, Place, Task, run_task, run_tasks
from fastadv.transfer.recipe import COMMAND, read_recipe
from fastadv.transfer.sweep import SweepPlan, plan_sweep

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


# ---- recipes ----


def test_a_recipe_is_a_product_of_its_lists(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "sources: ['{a,b}_eps{0,3}.ckpt', {source: c, name: mine, source_accuracy: 61}]\n"
        "datasets: [x, {dataset: y, resolution: 64}]\n"
        "protocols:\n"
        "  - fixed_feature\n"
        "  - {mode: full_network, lr: [1e-2, 0.001], epochs: 3}\n"
        "  - {mode: last_k_blocks, k: [1, 3], lrs: [0.1, 0.2], num_train: [10, null]}\n"
        "seeds: [4, 5]\n"
    )
    found = read_recipe(file, results="here", device=None)
    assert len(found) == 5 * 2 * (1 + 2 + 4)
    assert {config.seeds for config in found} == {(4, 5)}
    assert {config.results for config in found} == {"here"}
    assert {config.source for config in found} == {
        "a_eps0.ckpt", "a_eps3.ckpt", "b_eps0.ckpt", "b_eps3.ckpt", "c"
    }  # fmt: skip
    assert {(c.name, c.source_accuracy) for c in found if c.source == "c"} == {
        ("mine", 61.0)
    }
    tuned = [c for c in found if c.mode == "full_network" and c.source == "c"]
    assert [(c.dataset, c.resolution, c.lrs) for c in tuned] == [
        ("x", None, (0.01,)), ("x", None, (0.001,)), ("y", 64, (0.01,)), ("y", 64, (0.001,))
    ]  # fmt: skip
    blocks = [c for c in found if c.mode == "last_k_blocks" and c.source == "c"]
    assert {(c.k, c.num_train) for c in blocks} == {
        (1, 10),
        (1, None),
        (3, 10),
        (3, None),
    }
    assert {c.lrs for c in blocks} == {(0.1, 0.2)}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sources": []}, r"sources is \[\]; a recipe needs a list of at least one"),
        ({"datasets": None}, "datasets is None"),
        ({"seeds": [0, 1, 0]}, "`seeds=0 1 0`: 0 is there more than once"),
        (
            {"protocols": [{"epochs": 3}]},
            "entry 1 of protocols is .* with the key mode",
        ),
        ({"epoch": 3}, "unknown key 'epoch'; perhaps you meant: epochs"),
        ({"num_train": "many"}, "num_train: 'many' is not a value of type int"),
        ({"num_train": []}, "num_train: an axis needs at least one value"),
        ({"protocols": ["fixed"]}, "mode: 'fixed' is not one of"),
        ({"val_fraction": [0.1, 2]}, "`val_fraction=2.0` cannot work"),
    ],
)
def test_wrong_recipes_say_where(
    change: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_recipe(recipe_file(tmp_path, tmp_path, **change))


@pytest.mark.parametrize(
    ("name", "experiments"),
    # Sources x targets x protocols x sides; sources x targets x blocks x sizes.
    [
        ("salman2020", {
            "all": 40 * 12 * 2 * 2, "table1": 40 * 12 * 2, "width": 8 * 12 * 2,
            "granularity": 40 * 12 * 2, "architectures": 12 * 7, "linf": 12 * 2 * 2,
            "texture": 11 * 12 * 2,
        }),
        ("utrera2021-limited", {
            "all": 4 * 6 * 4 * 10, "figure2": 4 * 6 * 10, "figure3": 4 * 6,
            "figure4": 6 * 4 * 10, "figure5": 3 * 6 * 10, "scratch": 6,
            "downscaled": 4 * 3 * 10, "attacked": 4 * 6 * 10,
        }),
        ("robust-transfer", {"headline": 12 * 12 * 2, "full": 12 * 12 * 2 * 2}),
        ("zhang2023", {
            "comparison": 3 * 3 * 3, "rates": 9 * 9, "blocks": 3 * 3 * 7,
            "images": 3 * 2 * 5, "detail": 3 * 3 * 2 * 4, "texture": 3 * 2 * 2,
        }),
        ("zhang2023-methods", {None: 4}),
        ("transfer-small", {None: 22}),
    ],
)  # fmt: skip
def test_the_recipes_of_the_project(
    name: str, experiments: dict[str | None, int]
) -> None:
    file = RECIPES / f"{name}.yaml"
    tiers = yaml.safe_load(file.read_text()).get("tiers", {None: {}})
    assert {tier: len(read_recipe(file, tier)) for tier in tiers} == experiments
    assert read_recipe(file) == read_recipe(file, next(iter(tiers)))
    assert len(tiers) < 2 or all(f"{tier}" in file.read_text() for tier in tiers)
    assert f"fastadv-transfer sweep recipes/{file.name}" in file.read_text()


def test_every_recipe_of_sweeps_is_checked_above() -> None:
    sweeps = {f.stem for f in RECIPES.glob("*.yaml") if COMMAND in f.read_text()}
    [mark] = test_the_recipes_of_the_project.pytestmark  # type: ignore[attr-defined]
    assert {name for name, _ in mark.args[1]} == sweeps


def test_sources_of_the_papers_are_published_names() -> None:
    for name in ("robust-transfer", "salman2020", "zhang2023", "zhang2023-methods"):
        for file in RECIPES.glob(f"{name}.yaml"):
            for tier in yaml.safe_load(file.read_text()).get("tiers", [None]):
                for config in read_recipe(file, tier):
                    scheme, _, source = config.source.partition(":")
                    known = {
                        "salman2020": salman2020_file,
                        "robustbench": robustbench_model,
                    }
                    known[scheme](source)


def test_tiers_replace_keys_of_the_recipe(runs: Path, tmp_path: Path) -> None:
    tiers = {"one": {"protocols": ["fixed_feature"], "seeds": [3]}}
    tiers["two"] = {"datasets": ["digits"]}
    file = recipe_file(tmp_path, runs, tiers=tiers)
    assert {config.seeds for config in read_recipe(file)} == {(3,)}
    assert {config.dataset for config in read_recipe(file, "two")} == {"digits"}
    with pytest.raises(ConfigError, match="unknown tier 'tow'; perhaps you meant: two"):
        read_recipe(file, "tow")
    with pytest.raises(ConfigError, match="tiers is 3; give a mapping"):
        read_recipe(recipe_file(tmp_path, runs, tiers=3))
    with pytest.raises(ConfigError, match="has no tiers"):
        read_recipe(recipe_file(tmp_path, runs), "one")


@pytest.mark.parametrize("says", [True, False])
def test_recipes_of_the_two_kinds_are_told_apart(
    says: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those that do not say which command they are for, as older ones do not."""
    for name, words, told in (
        ("trades", ["sweep"], "fastadv-train (run: fastadv-train --config"),
        ("salman2020", ["--config"], f"{COMMAND} (run: {COMMAND}"),
    ):
        text = (RECIPES / f"{name}.yaml").read_text()
        file = tmp_path / f"{name}.yaml"
        file.write_text(text if says else re.sub("(?m)^command: .*\n", "", text))
        main = command.main if words == ["sweep"] else train_command.main
        assert main([*words, str(file)]) == 2
        assert f"{file} is a recipe of {told} {file})" in capsys.readouterr().err


@pytest.mark.parametrize("name", [path.name for path in RECIPES.glob("*.yaml")])
def test_recipes_say_which_command_they_are_for(name: str) -> None:
    command = yaml.safe_load((RECIPES / name).read_text())["command"]
    others = ("fastadv-train --config", "fastadv-detect train --config")
    assert command in (COMMAND, *others)
    assert f"{command} recipes/{name}" in (RECIPES / name).read_text()


def test_a_recipe_without_a_command_still_works(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    recipe = RECIPES / "transfer-small.yaml"
    old.write_text(recipe.read_text().replace(f"command: {COMMAND}\n", ""))
    assert read_recipe(old) == read_recipe(recipe)


def test_missing_sources_and_data_are_all_named(runs: Path, tmp_path: Path) -> None:
    file = recipe_file(
        tmp_path,
        runs,
        sources=[f"{runs}/eps{{0,7}}"],
        datasets=["digits", "digit"],
    )
    table = ResultsTable(tmp_path / "r", once=True)
    with pytest.raises(DataError, match=r"2 source\(s\) or .*(?s:.*'digit'.*eps7)"):
        plan_sweep(read_recipe(file), table)
    plan = plan_sweep(read_recipe(file), table, skip_missing=True)
    assert (plan.rows, len(plan.tasks), len(plan.missing)) == (5, 3, 2)


def test_data_are_looked_for_without_a_source(runs: Path, tmp_path: Path) -> None:
    file = recipe_file(
        tmp_path, runs, sources=[f"{runs}/eps7"], datasets=["digits", "digit"]
    )
    table = ResultsTable(tmp_path / "r", once=True)
    with pytest.raises(DataError, match=r"2 source\(s\) or .*(?s:.*eps7.*'digit')"):
        plan_sweep(read_recipe(file), table)


@pytest.mark.parametrize(
    "missing", [{"sources": ["eps7"]}, {"datasets": ["digit"]}], ids=str
)
def test_a_sweep_of_nothing_is_refused(
    missing: dict[str, Any],
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["sweep", str(recipe_file(tmp_path, runs, **missing)), "--skip-missing"]
    assert command.main([*words, "--results", str(tmp_path / "r")]) == 1
    printed = capsys.readouterr()
    assert "without them no experiment of the recipe is left" in printed.err
    assert next(iter(missing.values()))[0] in printed.err
    assert printed.out == ""
    assert not (tmp_path / "r").exists()


def test_one_number_twice_is_refused(runs: Path, tmp_path: Path) -> None:
    twice = [f"{runs}/eps0", {"source": f"{runs}/eps0", "name": "other"}]
    file = recipe_file(tmp_path, runs, sources=twice)
    with pytest.raises(ConfigError, match="defines the same number as"):
        plan_sweep(read_recipe(file), ResultsTable(tmp_path / "r"))


def test_a_dry_run_lists_the_tasks(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "sweep",
        str(recipe_file(tmp_path, runs)),
        "--results",
        str(tmp_path / "r"),
    ]
    assert command.main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line, size = lines[-1].split(", about ")
    assert line == f"{ROWS} rows, 0 done, 6 task(s) left"
    assert size.endswith(" MB to be written")
    assert 0.1 < float(size.split()[0]) < 1  # 500 test images, ten logits each
    assert len(lines) == 7
    assert lines[0].startswith("eps0 digits fixed_feature num_train=60")
    assert lines[0].endswith("seeds=0,1,2")
    assert not (tmp_path / "r").exists()


# ---- running ----


class _Counting(SerialExecutor):
    """A serial engine that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Task] = []

    def start(self, task: Task) -> None:
        self.seen.append(task)
        super().start(task)


def test_finished_rows_are_never_computed_again(
    runs: Path, tmp_path: Path, undisturbed: dict[str, tuple[int, ...]]
) -> None:
    results = str(tmp_path / "r")
    configs = read_recipe(recipe_file(tmp_path, runs), results=results)
    table = ResultsTable(results, once=True)
    table.prepare()
    plan = plan_sweep(configs, table)
    assert {i for task in plan.tasks for i in task.identities} == set(undisturbed)
    assert run_tasks(plan.tasks, _Counting(), table) == []
    assert values(Path(results)) == undisturbed
    # One row of three seeds is lost; only that is computed.
    lost = plan.tasks[0].identities[1]
    next(Path(results).glob(f"*{lost}*")).unlink()
    plan, engine = plan_sweep(configs, table), _Counting()
    assert (plan.rows, plan.done, len(plan.tasks)) == (ROWS, ROWS - 1, 1)
    assert run_tasks(plan.tasks, engine, table) == []
    assert [task.setting.seeds for task in engine.seen] == [(1,)]
    assert values(Path(results)) == undisturbed
    assert plan_sweep(configs, table).tasks == []


class _TwoSlots(SerialExecutor):
    """Two tasks are under way before the first of them is run."""

    slots = 2

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Task] = []
        self.pairs: list[list[str]] = []

    def start(self, task: Task) -> None:
        self.begun.append(task)

    def wait(self) -> list[Ended]:
        self.pairs.append([Path(task.setting.source).name for task in self.begun])
        return [run_task(self.begun.pop(0), Place())]


def test_tasks_of_the_same_features_do_not_run_beside_each_other(
    runs: Path, tmp_path: Path
) -> None:
    protocols = [{"mode": "fixed_feature", "num_train": [40, 50, 60]}]
    file = recipe_file(tmp_path, runs, protocols=protocols)
    table = ResultsTable(tmp_path / "r", once=True)
    table.prepare()
    plan = plan_sweep(read_recipe(file, results=str(table.path)), table)
    engine = _TwoSlots()
    assert run_tasks(plan.tasks, engine, table) == []
    assert len(table.rows()) == plan.rows == 6
    # As recipes order them, those of one source come one after the other.
    assert engine.pairs[0] == ["eps0", "eps0.25"]
    assert [len(set(pair)) for pair in engine.pairs] == [2, 2, 2, 2, 2, 1]


def test_errors_are_reported_and_the_rest_is_done(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocols = [
        {"mode": "full_network", "lr": [1e30, 0.01], "epochs": 2, "num_train": 40}
    ]
    file = recipe_file(tmp_path, runs, protocols=protocols, sources=[f"{runs}/eps0"])
    words = ["sweep", str(file), "--results", str(tmp_path / "r")]
    assert command.main(words) == 1
    complaint = capsys.readouterr().err
    assert "1 row(s) could not be computed" in complaint
    assert "lr 1e+30 diverged" in complaint
    assert "again" not in complaint  # the same would happen
    assert len(ResultsTable(tmp_path / "r").rows()) == 1


def test_rows_that_call_their_source_otherwise_are_said(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def plan(**source: Any) -> SweepPlan:
        entry = {"source": f"{runs}/eps0.25"} | source
        file = recipe_file(
            tmp_path, runs, sources=[entry], protocols=["fixed_feature"], num_train=40
        )
        return plan_sweep(read_recipe(file, results=str(table.path)), table)

    table = ResultsTable(tmp_path / "r", once=True)
    table.prepare()
    assert run_tasks(plan().tasks, SerialExecutor(), table) == []
    caplog.clear()
    assert (plan().tasks, caplog.messages) == ([], [])
    found = plan(name="mine", source_accuracy=61.2)
    assert found.tasks == []
    [said] = caplog.messages
    assert said.startswith(
        f"{found.done} finished row(s) say otherwise of mine: source eps0.25, not mine, "
        "source_accuracy None, not 61.2. They stay as they are"
    )


def test_rows_of_an_older_version_are_not_computed_again(
    runs: Path, tmp_path: Path
) -> None:
    file = recipe_file(
        tmp_path, runs, sources=[f"{runs}/eps0"], protocols=["fixed_feature"]
    )
    configs = read_recipe(file, results=str(tmp_path / "r"))
    table = ResultsTable(tmp_path / "r", once=True)
    table.prepare()
    [task] = plan_sweep(configs, table).tasks
    [identity] = task.identities
    old = {"identity": identity, "time": datetime.now(UTC), "value": 50.0}
    part = pa.Table.from_pylist([old]).replace_schema_metadata({"fastadv_schema": "3"})
    pq.write_table(part, table.path / f"row-{identity}.parquet")
    plan = plan_sweep(configs, table)
    assert (plan.tasks, plan.done, plan.rows) == ([], 1, 1)


def test_tables_of_other_versions_are_left_alone(runs: Path, tmp_path: Path) -> None:
    future = SCHEMA.with_metadata({"fastadv_schema": "99"})
    results = tmp_path / "r"
    results.mkdir()
    pq.write_table(pa.Table.from_pylist([{}], schema=future), results / "a.parquet")
    before = (results / "a.parquet").read_bytes()
    assert (
        command.main(
            ["sweep", str(recipe_file(tmp_path, runs)), "--results", str(results)]
        )
        == 1
    )
    assert [path.name for path in results.iterdir()] == ["a.parquet"]
    assert (results / "a.parquet").read_bytes() == before
