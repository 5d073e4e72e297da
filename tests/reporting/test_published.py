"""Published numbers beside ours: which one, how it was selected, and when there is none."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from scipy.stats import spearmanr
from synthetic_results import row, typed

from fastadv.reporting.literature import (
    best_trials,
    headline_accuracy,
    read_published,
    transfer_accuracy,
    trials,
)
from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.sections import study_sections, transfer_sections
from fastadv.reporting.transfer.study import Study
from fastadv.results.row import Row


def source(arch: str, eps: float, **more: Any) -> dict[str, Any]:
    return row(
        source=f"{arch} {eps:g}",
        arch=arch,
        source_eps=eps,
        source_path=f"/nowhere/{arch}_l2_eps{eps:g}.ckpt",
        **more,
    )


def sections(rows: list[Row]) -> dict[str, Section]:
    return {s.title: s for s in study_sections(Study(make_cells(rows), {}))}


def column(section: Section, name: str, table: int = 0) -> list[object]:
    where = section.tables[table].columns.index(name)
    return [line[where] for line in section.tables[table].rows]


# ---- the files ----


def test_every_line_states_where_it_was_read() -> None:
    names = {
        "salman2020": (
            *("best_params", "checkpoints", "detection", "headline", "linf"),
            *("other_architectures", "r2", "reproduction_ponyli", "stylized", "trials"),
        ),
        "utrera2021": ("blocks", "constraint", "epochs", "influence", "scratch"),
    }
    count = 0
    for paper, tables in names.items():
        for table in tables:
            lines = read_published(f"{paper}_{table}")
            assert all(":" in line["source"] and line["value"] for line in lines), table
            count += len(lines)
    assert count == 1330 + 3163


def test_means_of_trials_lie_within_them_and_below_the_best_trial() -> None:
    for record in trials().values():
        assert record.low is not None
        assert record.high is not None
        assert record.low <= record.value <= record.high
    archs = ("resnet18", "resnet50", "wide_resnet50_2")
    assert len(best_trials()) == 96
    for place, (best, _) in best_trials().items():
        # The release states the maximum over sources and trials.
        highest = max(
            trials()[*place, kind].high or 0 for kind in ("standard", "robust")
        )
        if place[2] in archs:
            assert best.value == pytest.approx(highest, abs=0.011), place
    # The headline is the best of the four networks of the main table.
    found = headline_accuracy()["cifar10", "fixed_feature", "standard"].value
    archs = ("resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4")
    of_arch = [
        transfer_accuracy()["cifar10", "fixed_feature", None, a, (None, 0.0)].value
        for a in archs
    ]
    assert found == pytest.approx(max(of_arch), abs=0.3)


# ---- the report ----


def test_what_was_published_of_the_best_source_is_shown_with_its_selection() -> None:
    rows = [source("resnet18", eps, dataset="aircraft") for eps in (0.0, 3.0)]
    section = sections(typed(rows))["Robust against standard"]
    [standard, _] = column(section, "standard", 1)
    mean = trials()["aircraft", "fixed_feature", "resnet18", "standard"]
    assert standard == f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
    best, (norm, eps) = best_trials()["aircraft", "fixed_feature", "resnet18"]
    shown = f"{best.value:.2f} ({norm} {eps:g})"
    assert column(section, "best single trial", 1) == [shown, None]
    assert column(section, "arch", 1) == ["resnet18", "best of four"]
    assert "chosen on test images" in section.tables[1].caption
    # Nothing is published of other data, or of images reduced to 16 pixels.
    for other in ({"dataset": "mine"}, {"dataset": "aircraft", "downscale": 16}):
        rows = [source("resnet18", eps, **other) for eps in (0.0, 3.0)]
        assert len(sections(typed(rows))["Robust against standard"].tables) == 1


def test_all_numbers_say_how_the_published_one_was_selected() -> None:
    rows = [
        source("resnet50", 3.0, dataset="cifar10", mode="full_network"),
        source("resnet50", 3.0, dataset="cifar10", mode="scratch"),
        row(
            arch="resnet50", dataset="svhn", mode="last_k_blocks", k_blocks=9,
            source_eps=8 / 255, source_norm="linf", num_pool=100, num_available=9999,
            source_path="/w/imagenet_linf_8.pt",
        ),
    ]  # fmt: skip
    numbers = transfer_sections(typed(rows), {})[-1]
    assert column(numbers, "published is") == [
        "mean of three trials, learning rate and epoch chosen on test images",
        "last epoch of one run",
        "best logged epoch on test images, mean over seeds",
    ]
    assert column(numbers, "published")[1] == "95.25"
    assert column(numbers, "rerun by others") == ["97.76", None, None]
    assert "other source weights" not in str(column(numbers, "not as published")[1])


def test_source_accuracy_over_all_radii() -> None:
    radii = (0.0, 0.1, 1.0, 3.0)
    values = (60.0, 63.0, 66.0, 64.0)
    rows = [
        source("resnet18", eps, seed=seed, value=value + seed)
        for eps, value in zip(radii, values, strict=True)
        for seed in (0, 1)
    ]
    section = sections(typed(rows))["Source accuracy over all radii"]
    accuracies = [69.79, 68.77, 62.32, 53.12]
    rank = spearmanr(accuracies, values).statistic
    assert column(section, "rank correlation") == [f"{rank:+.2f}"]
    assert column(section, "most accurate source") == ["standard"]
    assert column(section, "best for transfer") == ["l2 1"]
    assert "best mean in 1 of the 1 series" in section.findings[0]
    drawn = section.figures[0][0].axes[0]
    points = sorted(
        (float(x), float(y))
        for line in drawn.lines
        for x, y in zip(*line.get_data(), strict=True)
    )
    means = [fmean((value, value + 1)) for value in values]
    assert points == sorted(zip(accuracies, means, strict=True))
    assert "Source accuracy over all radii" not in sections(typed(rows[:4]))


def test_published_shares_of_variance_stand_beside_ours() -> None:
    archs = ("densenet161", "vgg16_bn", "resnext50_32x4d")
    rows = [
        source(arch, 0.0, dataset="cifar10", mode="full_network", value=95 + i)
        for i, arch in enumerate(archs)
    ]
    for row_, name in zip(
        rows, ("densenet", "vgg16_bn", "resnext50_32x4d"), strict=True
    ):
        row_["source_path"] = f"/cache/{name}_l2_eps0.ckpt"
    section = sections(typed(rows))["Source accuracy against transfer"]
    assert column(section, "published R^2") == ["0.79"]
    fixed = [r | {"mode": "fixed_feature"} for r in rows]
    section = sections(typed(fixed))["Source accuracy against transfer"]
    assert "published R^2" not in section.tables[0].columns


def test_texture_trained_sources_stand_between() -> None:
    rows = typed(
        [
            source("resnet18", 0.0, dataset="aircraft", value=60.0),
            source("resnet18", 3.0, dataset="aircraft", value=65.0),
            source("resnet18", 0.0, dataset="aircraft", value=62.0)
            | {"source": "sin", "source_hash": "sin"},
        ]
    )
    assert "Texture-trained sources" not in sections(rows)
    rows[2] = replace(rows[2], source=replace(rows[2].source, kind="texture"))
    section = sections(rows)["Texture-trained sources"]
    assert column(section, "texture-trained")[0] == "62.00 [60.0, 64.0]"
    theirs = transfer_accuracy()[
        "aircraft", "fixed_feature", None, "resnet18", "texture"
    ]
    assert column(section, "published") == [f"{theirs.value:.2f}"]
    assert "in 1 of 1 comparison(s)" in section.findings[0]
