"""Comparisons of a study and the published numbers beside them.

All numbers are synthetic (`synthetic_results`); they are checked against scipy.
"""

from __future__ import annotations

import pytest
from scipy import stats
from synthetic_results import row, typed

from fastadv.reporting.literature import (
    Record,
    accuracy_of_file,
    imagenet_accuracy,
    judged_accuracy,
    limited_accuracy,
    scratch_accuracy,
    shares_explained,
    transfer_accuracy,
)
from fastadv.reporting.threats import threat
from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.comparisons import compare
from fastadv.reporting.transfer.findings import wins_finding
from fastadv.reporting.transfer.sections import study_sections
from fastadv.reporting.transfer.study import Study

# ---- cells and comparisons ----


def test_comparisons_choose_on_validation_and_test_by_seed() -> None:
    rows = [
        row(source_eps=eps, source=str(eps), seed=seed, value=v + d, val_value=val)
        # eps 1 is best on test images, eps 3 on validation images.
        for eps, v, val in ((0.0, 50, 50), (1.0, 60, 51), (3.0, 55, 59))
        for seed, d in enumerate((0.0, 1.0, 3.0 if eps else 2.0))
    ]
    [found] = compare(make_cells(typed(rows)))
    assert found.robust.label == "l2 3"
    assert found.by == "val"
    theirs = stats.ttest_rel([55, 56, 58], [50, 51, 52])
    assert found.difference == pytest.approx(16 / 3)
    assert found.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert found.interval()[1:] == pytest.approx((interval.low, interval.high))
    [corrected] = Study(make_cells(typed(rows)), {}).tests.groups["best"]
    # The better of two radii is tested, so both count.
    assert corrected.primary
    assert corrected.adjusted == pytest.approx(2 * theirs.pvalue)
    assert corrected.significant == (2 * theirs.pvalue < 0.05)


def test_learning_rates_run_apart_count_once() -> None:
    """The one that was best on validation images stands for its seed."""
    rates = ((0.1, 70.0, 40.0), (0.01, 60.0, 55.0))
    rows = [
        row(
            value=value,
            val_value=val,
            identity=str(lr),
            hyperparameters=f'{{"lr": {lr}}}',
        )
        for lr, value, val in rates
    ]
    [cell] = make_cells(typed(rows))
    assert cell.values == {0: 60.0}
    # Of the same number computed twice, the newest counts.
    again = {"value": 61.0, "ci_low": 58.0, "ci_high": 63.0}
    [cell] = make_cells(typed([*rows, rows[1] | again]))
    assert cell.values == {0: 61.0}
    assert cell.interval() == (61.0, 58.0, 63.0)  # one seed: the row's own


def test_one_seed_is_never_called_significant() -> None:
    rows = [row(source_eps=eps, value=50 + 10 * eps) for eps in (0.0, 3.0)]
    found = compare(make_cells(typed(rows)))
    assert found[0].p is None
    assert wins_finding(found).endswith("This is not tested: a single seed.")
    sections = study_sections(Study(make_cells(typed(rows)), {}))
    assert "significan" not in " ".join(f for s in sections for f in s.findings).lower()


def test_seeds_that_agree_exactly_are_not_a_test() -> None:
    """On few test images they often do; their interval is that of the images."""
    rows = [
        row(source_eps=eps, seed=seed, value=value, ci_low=86.0, ci_high=93.0)
        for eps, value in ((0.0, 90.0), (1.0, 90.2))
        for seed in range(3)
    ]
    [found] = compare(make_cells(typed(rows)))
    assert (found.p, found.adjusted, found.significant) == (None, None, False)
    assert found.robust.interval() == pytest.approx((90.2, 86.0, 93.0))
    study = Study(make_cells(typed(rows)), {})
    [section] = study_sections(study)
    assert section.findings == [
        "Primary test (synthetic_set, fixed features, resnet18): l2 1 is 0.2 points "
        "higher (not tested: the seeds agree exactly) than standard training."
    ]
    [line] = section.tables[0].rows
    assert "not tested: the seeds agree exactly" in line
    assert "+0.20" in line


def test_other_settings_are_never_compared() -> None:
    for change in (
        {"dataset": "b"}, {"mode": "full_network"}, {"protocol": "salman2020"},
        {"select_on": "test"}, {"resolution": 64}, {"downscale": 32}, {"arch": "resnet50"},
        {"num_pool": 500}, {"hyperparameters": '{"solver": "sgd"}'}, {"seed": 5},
    ):  # fmt: skip
        rows = [row(), row(source_eps=1.0, value=60.0) | change]
        assert compare(make_cells(typed(rows))) == [], change
    assert len(compare(make_cells(typed([row(), row(source_eps=1.0)])))) == 1


# ---- published numbers ----


def test_published_numbers_are_those_of_the_papers() -> None:
    # The tables of four networks; six others; linf sources; stylized target and source.
    assert len(transfer_accuracy()) == 1416 + 84 + 40 + 10 + 48
    assert len(limited_accuracy()) == 620
    assert len(imagenet_accuracy()) == 67
    key = ("aircraft", "fixed_feature", None, "resnet18", ("l2", 0.5))
    assert transfer_accuracy()[key].value == 41.40
    other = ("cifar10", "full_network", None, "densenet161", (None, 0.0))
    assert transfer_accuracy()[other].value == 97.84
    linf = ("cifar10", "full_network", None, "resnet18", threat("linf", "0.5/255"))
    assert transfer_accuracy()[linf].value == 96.85
    texture = ("aircraft", "full_network", None, "resnet18", "texture")
    assert transfer_accuracy()[texture].value == 77.08
    few = ("cifar10", "resnet50", 3, 100, ("linf", round(4 / 255, 6)))
    assert limited_accuracy()[few] == Record(
        49.9, "utrera2021", "last epoch, mean over seeds"
    )
    # What was published of the best epoch alone is said to be that.
    nine = limited_accuracy()["cifar10", "resnet50", 9, 100, threat("linf", "8/255")]
    assert nine.selected.startswith("best logged epoch on test images")
    assert shares_explained() == {
        ("cifar10", "full_network", (None, 0.0)): 0.79,
        ("cifar10", "full_network", ("l2", 3.0)): 0.98,
    }
    assert scratch_accuracy()["svhn", "resnet50"].value == 95.15
    assert judged_accuracy("robustbench:Salman2020Do_R50")[1].value == 34.96
    assert accuracy_of_file("x/resnet18_l2_eps3.ckpt") == 53.12
    assert accuracy_of_file("x/resnet18_l2_eps3.safetensors") is None
    # Their headline: robust sources win 36 of 48 cells on fixed features.
    wins = 0
    archs = {"resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4"}
    found = {
        k: v.value
        for k, v in transfer_accuracy().items()
        if k[1] == "fixed_feature" and k[3] in archs and k[4][0] in ("l2", None)
    }
    cells = {(d, a) for d, _, side, a, _ in found if side is None}
    for dataset, arch in cells:
        of_cell = {
            k[4][1]: v
            for k, v in found.items()
            if (k[0], k[2], k[3]) == (dataset, None, arch)
        }
        wins += max(v for eps, v in of_cell.items() if eps) > of_cell[0.0]
    assert (wins, len(cells)) == (36, 48)


def test_only_all_images_are_compared_with_the_published_table() -> None:
    rows = [row(dataset="mine", source_eps=0.5)]
    [cell] = make_cells(typed(rows))
    assert cell.published({}) is None
    assert cell.published({"mine": "aircraft"}) == 41.40
    [part] = make_cells(typed([rows[0] | {"num_available": 2000}]))
    assert part.published({"mine": "aircraft"}) is None
    [old] = make_cells(
        typed([rows[0] | {"num_available": None}])
    )  # of schema version 1
    assert old.published({"mine": "aircraft"}) is None
