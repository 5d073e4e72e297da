"""The comparison of Zhang et al. 2023, learning rates of head and trunk, attack steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from tuned_runs import moved, source_file, tuning_config

from fastadv.errors import ConfigError
from fastadv.models import create_model
from fastadv.results.settings import Statistics
from fastadv.results.table import ResultsTable
from fastadv.runs.tasks import Place
from fastadv.training.method_config import MethodName
from fastadv.training.optimizer_config import OptimizerName
from fastadv.training.optimizers import LAMB
from fastadv.transfer import TransferConfig, transfer, tuned as module
from fastadv.transfer.freezing import choose_trained
from fastadv.transfer.procedure import make_procedure
from fastadv.transfer.protocol import TransferRun
from fastadv.transfer.protocols import Procedure, Rates
from fastadv.transfer.recipe import read_recipe
from fastadv.transfer.sweep import plan_sweep, run_transfer
from fastadv.transfer.target import target_preparation

_ZHANG: dict[str, Any] = {
    "protocol": "zhang2023",
    "norm": "linf",
    "robust_eps": 1 / 255,
}


def _procedure(**changes: Any) -> Procedure:
    config = TransferConfig(
        **({"source": "s", "dataset": "pets", "mode": "full_network"} | changes)
    )
    return make_procedure(config, "pets", 1000, config.side(32))


def test_settings_are_those_of_their_code() -> None:
    found = _procedure(**_ZHANG)
    assert (found.epochs, found.batch_size) == (90, 128)
    assert (found.optimizer, found.lrs, found.weight_decay) == ("adam", (3e-4,), 0)
    assert (found.select_on, found.select_by, found.select_every) == (
        "test",
        "clean",
        1,
    )
    assert found.statistics == Statistics(mean=(0.5,) * 3, std=(0.5,) * 3)
    codes = [defect.code for defect in found.defects]
    assert codes == ["normalised_by_halves", "selected_on_test"]
    assert [d.name for d in found.departures] == ["augment"]
    partly = _procedure(**_ZHANG | {"mode": "last_k_blocks", "k": 1})
    assert "frozen_bn_in_train_mode" in [defect.code for defect in partly.defects]
    grid = _procedure(**_ZHANG, lrs_head=(1e-2,), lrs_trunk=(1e-4,), select_on="none")
    assert [d.name for d in grid.departures] == ["augment", "select_on", "select_every"]
    assert "selected_on_test" not in [defect.code for defect in grid.defects]
    other = _procedure(**_ZHANG, lrs=(0.1,), optimizer="sgd", robust_steps=20)
    changed = {(d.name, d.ours, d.published) for d in other.departures}
    assert changed >= {
        ("lrs", "0.1", "0.0003"),
        ("optimizer", "sgd", "adam"),
        ("robust_steps", "20", "10"),
    }


def test_test_images_are_resized_as_in_their_code(tmp_path: Path) -> None:
    config = tuning_config(source_file(tmp_path), resolution=224, **_ZHANG)
    run = TransferRun(config)
    experiment = run.experiment
    found = target_preparation(
        config, experiment.source, experiment.splits.test, 224, "crop_flip"
    ).how
    assert (found.resize, found.crop, found.squash) == (256, 224, True)
    plain = dataclasses.replace(config, protocol="salman2020")
    other = target_preparation(
        plain, experiment.source, experiment.splits.test, 224, "rrc"
    ).how
    assert not other.squash


def test_their_cosine_falls_after_every_update() -> None:
    found, updates = _procedure(**_ZHANG, epochs=4), 5
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=3e-4)
    schedule = CosineAnnealingLR(optimizer, 4 * updates, 1e-6)
    for step in range(4 * updates):
        [group] = optimizer.param_groups
        assert found.rate(3e-4, step / updates) == pytest.approx(group["lr"])
        optimizer.step()
        schedule.step()


def test_warm_up_and_what_follows() -> None:
    found = _procedure(epochs=12, warmup_epochs=2, schedule="cosine", lrs=(1.0,))
    rates = [found.rate(1.0, epoch) for epoch in (0, 1, 1.5, 2, 7, 12)]
    assert rates == pytest.approx([0, 0.5, 0.75, 1, 0.5, 0])
    steps = _procedure(epochs=5, warmup_epochs=2, lrs=(1.0,))
    assert [steps.rate(1.0, e) for e in (2, 2.9, 3, 4.99)] == [1.0, 1.0, 0.1, 0.1**2]
    # Without warm-up nothing of it is different within an epoch.
    plain = _procedure(epochs=6, lrs=(1.0,))
    assert [plain.rate(1.0, e) for e in (1, 1.999, 2, 3.5, 5.9)] == [
        1.0, 1.0, 0.1, 0.1, 0.1**2,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="`warmup_epochs=6` leaves none of the 6"):
        _procedure(epochs=6, warmup_epochs=6)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"protocol": "zhang2023"}, "`protocol=zhang2023` compares .* add `norm=linf`"),
        (
            {"protocol": "zhang2023", "robust_eps": 0.5},
            "under an attack within linf; add `norm=linf`",
        ),
        (
            {"mode": "fixed_feature", "lrs_head": (0.1,), "lrs_trunk": (0.1,)},
            "`lrs_head` belongs to networks that train; `mode=fixed_feature` fits the",
        ),
        (
            {**_ZHANG, "mode": "fixed_feature", "lrs_head": (1,), "lrs_trunk": (1,)},
            "`lrs_trunk`: only the head trains here",
        ),
        ({"lrs_head": (0.1,)}, "`lrs_head`: give `lrs_head` and `lrs_trunk` together"),
        (
            {"lrs_head": (0.1,), "lrs_trunk": (0.1,), "lrs": (0.1,)},
            "together, and no `lrs`",
        ),
        ({"mode": "fixed_feature", "optimizer": "adam"}, "`optimizer` belongs to"),
        (
            {"lrs_head": (0.1, 1), "lrs_trunk": (0.1,), "select_on": "none"},
            "2 values of `lrs_head`: 0.1 1; give one",
        ),
        ({"step_size": 0.1}, "`step_size` belongs to adversarial fine-tuning"),
        ({"random_start": True}, "`random_start` belongs to adversarial fine-tuning"),
        ({"num_restarts": 2}, "`num_restarts` belongs to adversarial fine-tuning"),
        (
            {"method": "pgd_at", "num_restarts": 2},
            "`method=pgd_at` begins at the image itself; add `random_start`",
        ),
        ({"method": "rs_fgsm", "num_restarts": 2}, "has a start of its own; leave"),
    ],
)
def test_choices_that_do_not_go_together(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        TransferConfig(
            **({"source": "s", "dataset": "d", "mode": "full_network"} | changes)
        )


def test_longer_attacks_take_shorter_steps() -> None:
    def attack(method: MethodName, steps: int | None, **more: Any) -> Any:
        config = TransferConfig(
            source="s", dataset="d", mode="full_network", method=method, norm="linf",
            eps="8/255", num_steps=steps, **more,
        )  # fmt: skip
        assert config.method_config is not None
        return config.method_config

    ten = attack("pgd_at", 10)
    assert ten.step_size == pytest.approx(2 / 255)
    assert ten.random_start
    for steps in (None, 3):  # as published: two thirds of the radius, from the image
        few = attack("pgd_at", steps)
        assert (few.step_size, few.random_start) == (None, False)
    own = attack("pgd_at", 10, step_size="1/255")
    assert (own.step_size, own.random_start) == (1 / 255, False)
    assert attack("trades", 20).step_size is None  # of the method, 2.5 eps / num_steps
    assert attack("pgd_at", 10, num_restarts=3).num_restarts == 3


# ---- two learning rates ----


def test_head_and_trunk_have_learning_rates_of_their_own(
    tmp_path: Path, tuned: list[Any]
) -> None:
    words: dict[str, Any] = {"lrs": None, "epochs": 2}
    config = tuning_config(
        source_file(tmp_path), lrs_head=(0.5, 1e-2), lrs_trunk=(1e-12,), **words
    )
    [row] = transfer(config)
    assert (row.setting.lrs, row.setting.lrs_head) == ((1e-12,), (0.5, 1e-2))
    assert row.setting.chosen_lr == 1e-12
    assert row.setting.chosen_lr_head in (0.5, 1e-2)
    assert (len(tuned), row.setting.select_on) == (2, "val")
    for before, model in tuned:
        after = model.state_dict()
        for name, value in after.items():
            if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                continue
            change = (value - before[name]).abs().max()
            assert change > 1e-3 if ".linear." in name else change < 1e-6
    [only] = transfer(dataclasses.replace(config, lrs_head=(0.02,), lrs_trunk=(0.02,)))
    [same] = transfer(tuning_config(source_file(tmp_path), lrs=(0.02,), epochs=2))
    assert only.per_class_correct == same.per_class_correct
    assert only.setting.select_on == "none"


def test_every_pair_is_a_candidate() -> None:
    found = _procedure(lrs_head=(1.0, 2.0), lrs_trunk=(0.1, 0.2, 0.3)).candidates()
    assert len(found) == 6
    assert found[:3] == [Rates(0.1, 1.0), Rates(0.1, 2.0), Rates(0.2, 1.0)]
    assert str(found[0]) == "0.1, head 1"


def test_a_recipe_maps_both_rates(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    rates = [1e-5, 1e-3, 1e-1]
    protocol = {"mode": "full_network", "lr_head": rates, "lr_trunk": rates}
    recipe = {"sources": ["s"], "datasets": ["d"], "protocols": [protocol]}
    file.write_text(yaml.safe_dump(recipe | _ZHANG | {"select_on": "none"}))
    configs = read_recipe(file)
    pairs = {(config.lrs_head, config.lrs_trunk) for config in configs}
    assert pairs == {((a,), (b,)) for a in rates for b in rates}
    assert {config.selects_on for config in configs} == {"none"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", Adam), ("adamw", AdamW), ("sgd", SGD), ("lamb", LAMB)],
)
def test_optimisers_are_those_of_training(
    name: OptimizerName,
    kind: type[Any],
    tmp_path: Path,
    tuned: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    real = module.make_optimizer

    def making(*arguments: Any, **options: Any) -> Any:
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(module, "make_optimizer", making)
    config = tuning_config(
        source_file(tmp_path),
        optimizer=name,
        lrs=None,
        lrs_head=(0.02,),
        lrs_trunk=(0.01,),
        weight_decay=0.3,
    )
    [row] = transfer(config)
    assert row.setting.optimizer == name
    [optimizer] = made
    assert type(optimizer) is kind
    groups = optimizer.param_groups
    # The rates of the only epoch; LAMB holds vectors apart and does not let them decay.
    apart = name == "lamb"
    assert [g["lr"] for g in groups] == [0.01] * (1 + apart) + [0.02] * (1 + apart)
    assert [g["weight_decay"] for g in groups] == [0.3, 0.0] * 2 if apart else [0.3] * 2
    assert "net.conv1.weight" in moved(tuned[0])


# ---- the comparison ----


def test_one_network_from_scratch_for_all_sources(tmp_path: Path) -> None:
    sources = [str(source_file(tmp_path, seed=seed)) for seed in (0, 1)]
    tiny = {
        "num_train": 40, "epochs": 1, "batch_size": 16, "resolution": 16, "device": "cpu",
        "workers": 0,
    }  # fmt: skip
    recipe: dict[str, Any] = {
        "sources": sources,
        "datasets": ["digits"],
        "protocols": ["full_network", "scratch"],
        "results": str(tmp_path / "r"),
        "robust_steps": 2,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe | _ZHANG | tiny))
    table = ResultsTable(tmp_path / "r", once=True)
    plan = plan_sweep(read_recipe(file), table)
    assert (plan.rows, len(plan.tasks)) == (3, 3)
    assert [task.setting.mode for task in plan.tasks].count("scratch") == 1
    for task in plan.tasks:
        run_transfer(task.setting, Place())
    rows = table.rows()
    assert len(rows) == 6  # clean and robust
    [scratch] = [r for r in rows if r.setting.mode == "scratch" and r.attack is None]
    assert (scratch.source.name, scratch.source.digest) == ("resnet8_cifar", None)
    attack = next(row.attack for row in rows if row.attack is not None)
    assert (attack.norm, attack.num_steps) == ("linf", 2)
    assert attack.step_size == pytest.approx(1.5 / 255 / 2)
    again = plan_sweep(read_recipe(file), table)
    assert (again.rows, again.done, again.tasks) == (3, 3, [])


def test_the_published_attack_takes_ten_steps(tmp_path: Path) -> None:
    run = TransferRun(tuning_config(source_file(tmp_path), resolution=16, **_ZHANG))
    attack = run.experiment.attack
    assert attack is not None
    assert (attack.num_steps, attack.threat.eps) == (10, 1 / 255)
    assert attack.step_size == pytest.approx(1.5 / 255 / 10)


def test_scratch_begins_with_rates_for_random_weights() -> None:
    def rates(**changes: Any) -> tuple[float, ...]:
        return _procedure(**changes).lrs

    assert rates(mode="scratch") == (0.1, 0.01)
    assert rates(mode="scratch", optimizer="adamw") == (1e-3, 1e-4)
    assert rates(mode="full_network") == (0.01, 0.001)
    assert rates(mode="scratch", lrs=(0.3,)) == (0.3,)
    assert rates(mode="scratch", protocol="salman2020") == (0.01, 0.001)


def test_methods_of_fine_tuning_in_one_recipe(tmp_path: Path) -> None:
    """Discrepancy mitigating, adversarial training, TRADES and plain fine-tuning."""
    file = tmp_path / "recipe.yaml"
    common: dict[str, Any] = {"mode": "full_network", "eps": "0.5/255"}
    protocols = [
        {"mode": "full_network", "method": "standard"},
        *(common | {"method": name} for name in ("pgd_at", "trades", "discrepancy")),
    ]
    recipe: dict[str, Any] = {
        "sources": [str(source_file(tmp_path))],
        "datasets": ["digits"],
        "protocols": protocols,
        "norm": "linf",
        "robust_eps": "0.5/255",
        "robust_steps": 2,
        "num_train": 40,
        "epochs": 1,
        "batch_size": 16,
        "lrs": [0.01],
        "device": "cpu",
        "workers": 0,
        "results": str(tmp_path / "r"),
    }
    file.write_text(yaml.safe_dump(recipe))
    plan = plan_sweep(read_recipe(file), ResultsTable(tmp_path / "r", once=True))
    for task in plan.tasks:
        run_transfer(task.setting, Place())
    rows = ResultsTable(tmp_path / "r").rows()
    names = [r.setting.method and r.setting.method.name for r in rows if not r.attack]
    assert names == [None, "pgd_at", "trades", "discrepancy"]
    assert len({row.setting.key() for row in rows}) == 4


def test_every_parameter_is_in_one_group() -> None:
    model = create_model("resnet8_cifar", 5, seed=0)
    trained = choose_trained(model, "last_k_blocks", 1)
    groups = module._groups(model, trained, Rates(0.1, 0.2))
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in trained.parameters)
    head = model.head
    assert isinstance(head, nn.Linear)
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in head.parameters()}
    assert groups[1]["lr"] == 0.2
