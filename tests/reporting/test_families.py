"""Which tests are primary, over what pairs are tested, and what is said across data sets."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic_results import row, typed

from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.comparisons import compare
from fastadv.reporting.transfer.findings import sets_findings
from fastadv.reporting.transfer.forecast import forecast_text
from fastadv.reporting.transfer.pairing import Pairing
from fastadv.reporting.transfer.sections import study_sections
from fastadv.reporting.transfer.study import Study
from fastadv.results.row import Row
from fastadv.results.table import ResultsTable
from fastadv.statistics import holm

SETS = ("a", "b", "c", "d", "e", "f", "g")


def grid(
    leads: dict[str, float], seeds: int = 4, runs: int = 1, **changes: Any
) -> list[dict[str, Any]]:
    """Two radii and standard training, the larger radius ahead by `leads`, by data set."""
    draw = np.random.default_rng(0)
    share = {0.0: 0.0, 0.5: 0.9, 1.0: 1.0}
    return [
        row(
            source=f"s{eps}-{run}",
            source_eps=eps,
            dataset=name,
            seed=seed,
            value=50 + leads[name] * share[eps] + draw.normal(0, 0.2),
            val_value=50 + leads[name] * share[eps],
        )
        | changes
        for name, eps, run, seed in itertools.product(
            leads, (0.0, 0.5, 1.0), range(runs), range(seeds)
        )
    ]


def stored(
    folder: Path, rows: list[Row], right: list[np.ndarray], labels: np.ndarray
) -> tuple[ResultsTable, list[Row]]:
    """A table of rows with these verdicts, and the rows that it returns."""
    table = ResultsTable(folder)
    kept = []
    for number, (each, verdicts) in enumerate(zip(rows, right, strict=True)):
        arrays = {
            "labels": labels,
            "fell_to": np.where(verdicts, 0, -1).astype(np.int8),
            "indices": np.arange(len(labels), dtype=np.int32),
            "image_set": np.array("the images"),
            "attacks": np.array([], dtype=np.str_),
        }
        identity = f"row{number}"
        value = 100 * verdicts.mean()
        name = table.save_arrays(identity, arrays)
        kept.append(
            replace(each, identity=identity, experiment=None, arrays=name, value=value)
        )
    table.append(kept)
    return table, table.rows()


# ---- families ----


def test_every_target_has_one_primary_test_and_all_else_is_corrected_apart() -> None:
    leads = dict(zip(SETS, (3.0, 3.0, 0.1, -4.0, 0.0, 0.3, 0.2), strict=True))
    rows = grid(leads) + grid(leads, mode="full_network")
    study = Study(make_cells(typed(rows)), {})
    primary = study.tests.primary
    assert [each.condition.target for each in primary] == list(SETS)
    assert {each.condition.mode for each in primary} == {"fixed_feature"}
    # The better of two radii on each of seven targets; the choice counts.
    raw = [each.p or 1.0 for each in primary]
    assert [e.adjusted for e in primary] == pytest.approx(holm([*raw, *[1.0] * 7])[:7])
    assert study.tests.counted == study.tests.exploratory == 14
    best = study.tests.groups["best"]
    others = [e for e in best if e.condition.mode == "full_network"]
    raw = [each.p or 1.0 for each in others]
    assert [e.adjusted for e in others] == pytest.approx(holm([*raw, *[1.0] * 7])[:7])
    assert [each.primary for each in best if each not in others] == [True] * 7
    text = study_sections(study)[0].findings[0]
    assert "of 7 target(s), after Holm's correction for 14 p-value(s)" in text
    assert "better on 2 (a, b)" in text
    assert "worse on 1 (d)" in text


def test_architectures_are_averaged_at_one_radius() -> None:
    """The radius is chosen by the mean of all architectures, not for each of them."""
    values = {  # value of the radii 0, 0.5 and 1
        "resnet18": (50.0, 51.0, 54.0),
        "resnet50": (60.0, 62.0, 61.0),
    }
    rows = [
        row(
            arch=arch,
            source_eps=eps,
            source=f"{arch} {eps}",
            seed=s,
            value=v,
            val_value=v,
        )
        | {"value": v + 0.1 * s * (1 + eps)}
        for arch, of_arch in values.items()
        for eps, v in zip((0.0, 0.5, 1.0), of_arch, strict=True)
        for s in range(3)
    ]
    study = Study(make_cells(typed(rows)), {})
    [primary] = study.tests.primary
    assert primary.arch == "mean of 2 architectures"
    assert primary.threat == ("l2", 1.0)
    differences = [(4 + 1) / 2 + 0.1 * s for s in range(3)]
    assert primary.difference == pytest.approx(np.mean(differences))
    assert primary.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    chosen = {e.arch: e.robust.first.radius for e in study.tests.groups["best"]}
    assert chosen == {"resnet18": 1.0, "resnet50": 0.5}
    assert not any(each.primary for each in study.tests.groups["best"])


# ---- source runs ----


def test_source_runs_are_a_factor_of_the_test() -> None:
    draw = np.random.default_rng(1)
    level = draw.normal(0, 1, (2, 3, 1)) + draw.normal(0, 0.1, (2, 3, 4))
    rows = [
        row(
            source=f"s{eps}-{run}",
            source_eps=float(eps),
            seed=seed,
            value=60 + level[eps, run, seed],
        )
        for eps, run, seed in itertools.product((0, 1), range(3), range(4))
    ]
    [found] = compare(make_cells(typed(rows)))
    assert found.estimate.over == ("source runs", "seeds")
    assert found.robust.label == "l2 1, 3 runs"
    # With so small a spread over seeds it is nearly Welch's test of the means of runs.
    means = level.mean(axis=2)
    theirs = stats.ttest_ind(means[1], means[0], equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue, rel=0.1)
    # One run each: the claim is about those two networks, and far surer.
    one = [r for r in rows if str(r["source"]).endswith("-0")]
    [single] = compare(make_cells(typed(one)))
    assert single.estimate.over == ("seeds",)
    text = Study(make_cells(typed(one)), {}).test_note
    assert "claims are about those very networks" in text


# ---- test images ----


def test_one_seed_is_tested_over_the_images_that_were_kept(tmp_path: Path) -> None:
    rows = typed([row(source_eps=eps, source=str(eps)) for eps in (0.0, 1.0)])
    rows = [replace(r, target=replace(r.target, num_test=200)) for r in rows]
    standard = np.arange(200) % 2 == 0
    robust = standard.copy()
    robust[1:19:2] = True
    robust[0] = False
    table, rows = stored(tmp_path, rows, [standard, robust], np.zeros(200, np.int32))
    [found] = compare(make_cells(rows), Pairing(table.arrays))
    assert found.estimate.over == ("test images",)
    assert found.p == pytest.approx(stats.binomtest(9, 10).pvalue)  # McNemar, exact
    assert found.difference == pytest.approx(100 * 8 / 200)
    [text] = forecast_text([found])
    assert (
        "Of 200 test images, 5 % are taken to be judged differently (measured)" in text
    )
    # Without the table nothing is known of single images.
    [blind] = compare(make_cells(rows))
    assert blind.untested == "not tested: a single seed"


def test_classes_count_alike_whatever_their_number_of_images(tmp_path: Path) -> None:
    """A class without test images does not count at all."""
    labels = np.array([0] * 30 + [2] * 10, np.int32)
    standard, robust = np.zeros(40, bool), np.zeros(40, bool)
    robust[:15] = robust[30:35] = standard[35:40] = True
    rows = typed(
        [row(source_eps=e, source=str(e), metric="mean_per_class") for e in (0.0, 1.0)]
    )
    table, rows = stored(tmp_path, rows, [standard, robust], labels)
    [found] = compare(make_cells(rows), Pairing(table.arrays))
    assert found.difference == pytest.approx((50 + 0) / 2)


def test_verdicts_of_other_images_are_not_paired(tmp_path: Path) -> None:
    rows = typed(
        [
            row(source_eps=eps, source=str(eps), seed=seed, value=50 + eps + seed * eps)
            for eps in (0.0, 1.0)
            for seed in range(3)
        ]
    )
    right = [np.arange(100) < 50 + i**2 for i in range(6)]
    table, kept = stored(tmp_path, rows, right, np.zeros(100, np.int32))
    [found] = compare(make_cells(kept), Pairing(table.arrays))
    assert found.estimate.over == ("seeds", "test images")
    other = dict(table.arrays(kept[0])) | {"image_set": np.array("others")}
    kept[0] = replace(kept[0], arrays=table.save_arrays("other", other))
    [found] = compare(make_cells(kept), Pairing(table.arrays))
    assert found.estimate.over == ("seeds",)
    assert "images of different data sets" in found.refused
    [section] = study_sections(Study(make_cells(kept), {}, Pairing(table.arrays)))[:1]
    assert "images of different data sets" in str(section.tables[0].rows[0][-1])


def test_two_seeds_have_no_interval_and_say_so() -> None:
    rows = grid({"a": 1.0}, seeds=2)
    study = Study(make_cells(typed(rows)), {})
    [primary] = study.tests.primary
    assert primary.untested == "not tested: two seeds give no interval"
    section = study_sections(study)[0]
    assert section.tables[0].rows[0][-1] == primary.untested
    difference = list(section.tables[0].columns).index("difference")
    assert "[" not in str(section.tables[0].rows[0][difference])


def test_one_source_alone_is_compared_with_nothing() -> None:
    rows = [row(source_eps=1.0, seed=seed) for seed in range(3)]
    study = Study(make_cells(typed(rows)), {})
    assert study.tests.primary == []
    assert not any(study.tests.groups.values())
    assert forecast_text(study.tests.primary) == []
    assert "Robust against standard" not in [s.title for s in study_sections(study)]


# ---- across data sets ----


def test_leads_across_data_sets_are_tested_with_the_data_set_as_unit() -> None:
    leads = dict(zip(SETS, (1.0, 2.0, 3.0, -0.5, 4.0, 1.5, 2.5), strict=True))
    best = compare(make_cells(typed(grid(leads))))
    found = [each.difference for each in best]
    [text] = sets_findings(best)
    assert "ahead on 6 of 7 and behind on 1;" in text
    assert f"Sign test p = {stats.binomtest(6, 7).pvalue:.2g}," in text
    assert f"signed-rank test p = {stats.wilcoxon(found).pvalue:.2g}." in text
    low, high = stats.t.interval(0.95, 6, np.mean(found), stats.sem(found))
    assert f"[{low:+.2f}, {high:+.2f}]" in text
    # More architectures are no more data sets.
    twice = grid(leads) + grid(leads, arch="resnet50")
    [again] = sets_findings(compare(make_cells(typed(twice))))
    assert again == text


def test_a_radius_chosen_on_the_test_images_is_not_tested_across_data_sets() -> None:
    leads = dict.fromkeys(SETS, 1.0)
    rows = grid(leads, select_on="test", val_value=None)
    [text] = sets_findings(compare(make_cells(typed(rows))))
    assert "chosen on the test images" in text
    assert "Sign test" not in text


def test_ties_and_few_data_sets_are_said() -> None:
    rows = [
        row(source_eps=eps, source=str(eps), dataset=name, value=50 + lead * eps)
        for name, lead in (("a", 0.0), ("b", 2.0), ("c", 1.0))
        for eps in (0.0, 1.0)
    ]
    [text] = sets_findings(compare(make_cells(typed(rows))))
    assert "ahead on 2 of 3 and behind on 0, 1 tied" in text
    assert "without ties" in text
    assert "So few data sets cannot reach p < 0.05" in text


# ---- what can be found ----


def test_plans_take_the_spread_that_a_table_shows() -> None:
    rows = typed(grid(dict.fromkeys(SETS, 1.0), seeds=6, runs=2))
    assert forecast_text([]) == []
    study = Study(make_cells(rows), {})
    [text] = forecast_text(study.tests.primary)
    assert "With 6 seeds and 2 source runs per radius, a lead of" in text
    found = re.findall(r"([\d.]+) ((?:over|of) [a-z ]+) \(measured\)", text)
    spreads = {what: float(sd) for sd, what in found}
    both = "of each pair of source run and seed"
    assert spreads.keys() == {"over seeds", "over source runs", both, "over data sets"}
    # Every pair of run and seed has noise with SD 0.2, two runs differ by that of both.
    assert spreads[both] == pytest.approx(0.2, rel=0.25)
    assert spreads["over seeds"] == pytest.approx(0.2 * 2**0.5, rel=0.25)
    assert "after correction for 7 data sets and 2 radii" in text
