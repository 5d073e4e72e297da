"""The plan of a sweep: images counted before they pass, and times that add up."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastadv.cli import transfer as command
from fastadv.models import NormalizedModel, create_model, save_model
from fastadv.models.view import AttackView
from fastadv.results.table import ResultsTable
from fastadv.transfer import features, tuned
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.cost import SweepCost, sweep_cost
from fastadv.transfer.protocol import TransferRun, transfer
from fastadv.transfer.sweep import plan_sweep
from fastadv.transfer.work import Subject, count_work

SUBJECT = Subject(
    arch="resnet8_cifar", side=16, train=1000, test=500, classes=10, source="s",
    dataset="d",
)  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "resnet8_cifar_l2_eps0.5.safetensors"
    save_model(create_model("resnet8_cifar", 10, seed=0), path)
    return str(path)


def config(source: str, tmp_path: Path, **choices: Any) -> TransferConfig:
    usual: dict[str, Any] = {
        "dataset": "digits", "resolution": 16, "feature_cache": str(tmp_path / "cache"),
        "results": str(tmp_path / "results"), "device": "cpu", "workers": 0,
    }  # fmt: skip
    return TransferConfig(source=source, **(usual | choices))


# ---- counting ----


def test_cached_features_are_counted_once(tmp_path: Path) -> None:
    embedded: set[Any] = set()
    one = count_work(config("s", tmp_path, seeds=(0, 1)), SUBJECT, embedded)
    assert one.embedded == 1500
    assert one.fits == ((900, 5), (900, 5), (1000, 1), (1000, 1))
    other = count_work(config("s", tmp_path, solver="sgd"), SUBJECT, embedded)
    assert (other.embedded, other.grids) == (0, ((900, 150, 2), (1000, 150, 1)))
    # Small subsets are embedded alone; reduced images are others.
    few = config("s", tmp_path, num_train=50, seeds=(0, 1))
    assert count_work(few, SUBJECT, embedded).embedded == 100
    small = config("s", tmp_path, downscale=8)
    assert count_work(small, SUBJECT, embedded).embedded == 1500


def test_published_protocols_are_counted_as_they_are(tmp_path: Path) -> None:
    salman = config("s", tmp_path, mode="full_network", protocol="salman2020")
    work = count_work(salman, SUBJECT, set())
    assert work.trained == 2 * 150 * 1000
    # Epochs 1, 6, ..., 146 and the last are judged on the test images, then the winner.
    assert work.judged == (2 * 31 + 1) * 500
    utrera = config("s", tmp_path, mode="last_k_blocks", k=1, protocol="utrera2021",
                    num_train=100, test_epochs=(11,))  # fmt: skip
    work = count_work(utrera, SUBJECT, set())
    assert work.trained == 10 * 100 * 100
    assert work.judged == 10 * 2 * 500


class _Counter:
    """Counts the images that pass networks and heads of real runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: Counter[str] = Counter()
        step, extract = tuned.train_step, features.extract

        def counted_step(
            model: nn.Module, images: torch.Tensor, *a: Any, **k: Any
        ) -> Any:
            self.found["trained"] += len(images)
            return step(model, images, *a, **k)

        def counted_extract(model: NormalizedModel, loader: Any, what: str) -> Any:
            self.found["embedded"] += len(loader.imageset)
            return extract(model, loader, what)

        monkeypatch.setattr(tuned, "train_step", counted_step)
        monkeypatch.setattr(features, "extract", counted_extract)
        call = AttackView.logits_of_model

        def counted_verdict(view: AttackView, images: torch.Tensor) -> Any:
            self.found["judged"] += len(images)
            return call(view, images)

        monkeypatch.setattr(AttackView, "logits_of_model", counted_verdict)


@pytest.mark.parametrize(
    "choices",
    [
        {"mode": "fixed_feature", "seeds": (0, 1)},
        {"mode": "fixed_feature", "num_train": 60, "seeds": (0, 1)},
        {"mode": "full_network", "epochs": 2, "num_train": 100, "test_epochs": (1,)},
        {"mode": "full_network", "epochs": 2, "num_train": 100, "refit": "all"},
    ],
)
def test_what_is_counted_is_what_passes(
    choices: dict[str, Any],
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = config(source, tmp_path, **choices)
    plan = plan_sweep([one], ResultsTable(one.results, once=True), survey=True)
    [subject] = plan.subjects.values()
    assert subject is not None
    work = count_work(one, subject, set())
    counted = _Counter(monkeypatch)
    transfer(one)
    for kind in ("trained", "embedded", "judged"):
        assert counted.found[kind] == pytest.approx(getattr(work, kind), rel=0.02), kind


# ---- the plan ----


def cost(configs: list[TransferConfig], workers: int = 1) -> SweepCost:
    table = ResultsTable(configs[0].results, once=True)
    return sweep_cost(plan_sweep(configs, table, survey=True), workers)


def test_what_is_missing_is_counted_and_listed(source: str, tmp_path: Path) -> None:
    sets = {"dataset": "aircraft", "resolution": 32}
    names = ("salman2020:resnet18_l2_eps0", "salman2020:resnet18_l2_eps3", "no/such.pt")
    configs = [config(name, tmp_path, download=True, **sets) for name in names]
    found = cost(configs)
    assert (found.tasks, found.absent, found.uncounted) == (3, 2, 1)
    assert found.passes == {("resnet18", 32, "forward"): 2 * (6667 + 3333)}
    text = found.text()
    assert "salman2020:resnet18_l2_eps3 is not in the Hugging Face cache" in text
    assert "aircraft is not in" in text
    assert "no test over seeds" in text  # of one seed
    assert found.feature_bytes == 2 * 10000 * 512 * 4
    assert found.result_bytes > 0


def test_workers_share_the_time_but_for_the_longest_task(
    source: str, tmp_path: Path
) -> None:
    tuning = {"mode": "full_network", "num_train": 64}
    configs = [config(source, tmp_path, epochs=e, **tuning) for e in (1, 2, 40)]
    found = cost(configs, workers=2)
    whole = sum(found.seconds.values())
    assert found.total == max(whole / 2, found.longest) == found.longest
    assert found.longest < whole
    with_seeds = [config(source, tmp_path, seeds=(0, 1, 2), epochs=1, **tuning)]
    assert cost(with_seeds).tasks == 3
    assert set(found.seconds) == {"opening", "training", "judging"}


def test_finished_rows_cost_nothing(source: str, tmp_path: Path) -> None:
    one = config(source, tmp_path, num_train=60, seeds=(0, 1))
    table = ResultsTable(one.results, once=True)
    assert cost([one]).rows == 2
    list(TransferRun(replace(one, seeds=(0,)), table).rows())
    assert cost([one]).rows == 1


def test_the_command(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"sources: ['{source}']\ndatasets: [digits]\nprotocols: [fixed_feature]\n"
        "resolution: 16\nnum_train: 60\ndevice: cpu\nworkers: 0\n"
        f"results: {tmp_path}/results\n"
    )
    assert command.main(["sweep", str(recipe), "--plan"]) == 0
    text = capsys.readouterr().out
    assert "1 row(s) in 1 task(s) are left." in text
    assert "resnet8_cifar  16 px" in text
    assert "There is no robust and standard source to compare." in text
    assert command.main(["sweep", str(recipe), "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total_seconds"] > 0
    assert not (tmp_path / "results").exists()
