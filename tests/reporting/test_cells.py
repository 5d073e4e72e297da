"""What counts as one experiment, one source, one number; all rows are synthetic."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from synthetic_results import row, typed

from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.cells import Cell, make_cells
from fastadv.reporting.transfer.comparisons import compare
from fastadv.reporting.transfer.condition import condition_labels
from fastadv.reporting.transfer.curves import Axis, draw_curves, even_axis
from fastadv.reporting.transfer.findings import comparison_columns
from fastadv.reporting.transfer.sections import study_sections
from fastadv.reporting.transfer.study import Study, name_within
from fastadv.statistics import wilson


def tuned(seed: int = 0, **used: Any) -> dict[str, Any]:
    """A fine-tuned row with these hyper-parameters; `lr` is one that was chosen."""
    chosen = {"epochs": 20, "frozen_bn": "eval", "lr": 0.1} | used
    return row(
        mode="last_k_blocks",
        k_blocks=1,
        seed=seed,
        hyperparameters=json.dumps(chosen),
        identity=json.dumps([seed, chosen]),
    )


def sections(rows: list[dict[str, Any]]) -> dict[str, Section]:
    return {s.title: s for s in study_sections(Study(make_cells(typed(rows)), {}))}


# ---- settings ----


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("epochs", (11, 150), ["11 epochs", "150 epochs"]),
        ("frozen_bn", ("eval", "train"), ["frozen bn eval", "frozen bn train"]),
        ("augment", ("auto", "none"), ["augment auto", "augment none"]),
        ("weight_decay", (0, 5e-4), ["weight decay 0", "weight decay 0.0005"]),
        ("batch_size", (64, 128), ["batch size 128", "batch size 64"]),
    ],
)
def test_other_hyperparameters_are_other_experiments(
    name: str, values: tuple[Any, Any], words: list[str]
) -> None:
    rows = [tuned(**{name: value}) for value in values]
    labels = condition_labels(
        cell.condition for cell in make_cells(typed(rows))
    ).values()
    assert sorted(labels) == [f"synthetic_set, last block, {word}" for word in words]
    # Nothing is said of what is the same in all.
    [label] = condition_labels(
        c.condition for c in make_cells(typed(rows[:1]))
    ).values()
    assert label == "synthetic_set, last block"


def test_a_learning_rate_nobody_chose_is_part_of_the_experiment() -> None:
    rows = [tuned(lr=lr) for lr in (0.1, 0.01)]
    assert len(make_cells(typed(rows))) == 1
    apart = make_cells(
        typed([r | {"select_on": "none", "val_value": None} for r in rows])
    )
    labels = condition_labels(cell.condition for cell in apart).values()
    assert [label.rpartition(", ")[2] for label in labels] == ["lr 0.01", "lr 0.1"]


def test_equal_learning_rates_are_told_apart_by_themselves() -> None:
    """Whichever worker was done first: the first of the grid, which is the largest."""
    rows = [
        tuned(lr=lr) | {"value": value}
        for lr, value in ((9e-05, 60.0), (0.1, 70.0), (0.001, 50.0))
    ]
    for order in (rows, rows[::-1], rows[1:] + rows[:1]):
        [cell] = make_cells(typed(order))
        assert cell.values == {0: 70.0}
    # The same experiment once more, of a table that names no experiments.
    again = [r | {"identity": None} for r in (*rows, rows[1] | {"value": 71.0})]
    assert make_cells(typed(again))[0].values == {0: 71.0}


def test_published_epochs_follow_the_number_of_images() -> None:
    """A curve over n is one line although small n train for fewer epochs."""
    rows = [
        tuned(epochs=epochs) | {"protocol": "utrera2021", "num_pool": n}
        for n, epochs in ((400, 100), (3200, 150), (3200, 11))
    ]
    cells = make_cells(typed(rows))
    by_epochs = {(cell.n, cell.epochs): cell.condition for cell in cells}
    assert by_epochs[400, 100] == by_epochs[3200, 150] != by_epochs[3200, 11]


def test_a_curve_over_epochs_has_a_point_for_each() -> None:
    lengths = (11, 21, 41, 81, 150)
    rows = [
        tuned(seed, epochs=e) | {"protocol": "utrera2021", "num_pool": 3200, "value": e}
        for e in lengths
        for seed in range(2)
    ]
    section = sections(rows)["Length of fine-tuning"]
    [ax] = section.figures[0][0].axes
    [line] = [each for each in ax.lines if len(each.get_xdata()) > 1]
    assert list(line.get_ydata()) == list(lengths)
    assert [t.get_text() for t in ax.get_xticklabels()] == [str(e) for e in lengths]
    assert section.findings == [
        "From the fewest to the most epochs, accuracy rises in 1 and falls in "
        "0 of 1 line, by +139.0 points on average. This is not tested."
    ]


def test_blocks_are_called_what_they_are() -> None:
    rows = [tuned() | {"k_blocks": k, "identity": str(k)} for k in (0, 1, 3)]
    labels = condition_labels(
        cell.condition for cell in make_cells(typed(rows))
    ).values()
    words = [label.removeprefix("synthetic_set, ") for label in labels]
    assert words == ["head only", "last block", "last 3 blocks"]


# ---- sources ----


def test_two_sources_of_one_radius_are_two_lines_and_two_names() -> None:
    rows = [
        row(source=source, source_eps=eps, seed=seed, value=value + seed)
        for source, eps, value in (
            ("plain", 0.0, 60.0),
            ("half", 0.5, 61.0),
            ("pgd", 1.0, 65.0),
            ("trades", 1.0, 35.0),
        )
        for seed in range(2)
    ]
    cells = make_cells(typed(rows))
    labels = ["standard", "l2 0.5", "l2 1 (pgd)", "l2 1 (trades)"]
    assert [cell.label for cell in cells] == labels
    study = Study(cells, {})
    axis: Axis[Cell] = even_axis("eps", lambda c: c.radius, (0.0, 0.5, 1.0), str)
    name = name_within(cells, lambda c: c.arch)
    curves = draw_curves(study, cells, axis, study.title, name, least=3)
    assert curves is not None
    [panel] = curves.panels
    drawn = {n: [p.y for p in points.values()] for n, points in panel.series.items()}
    assert drawn == {
        "resnet18": [60.5, 61.5],
        "resnet18 (pgd)": [65.5],
        "resnet18 (trades)": [35.5],
    }
    found = sections(rows)
    assert found["Accuracy against eps"].tables[0].columns[-4:] == labels
    assert [line[2] for line in study.table(cells).rows] == labels


def test_standard_sources_are_averaged_as_runs_of_one_training() -> None:
    rows = [
        row(source=source, source_eps=eps, seed=seed, num_pool=n, value=value + n / 100)
        for source, eps, value in (("a", 0.0, 50.0), ("b", 0.0, 40.0), ("r", 1.0, 45.0))
        for n in (100, 400)
        for seed in range(2)
    ]
    table = sections(rows)["Gain with few training images"].tables[0]
    column = list(table.columns).index
    for line in table.rows:
        assert line[column("source")] == "l2 1 - standard, 2 runs"
        assert line[column("difference")] == "+0.00"  # of 45 and the mean of 50 and 40


def test_other_weights_of_one_name_are_another_source() -> None:
    rows = [row(source_hash=digest, value=50.0) for digest in ("aaaaaaaa", "bbbbbbbb")]
    names = ["standard (synthetic aaaaaa)", "standard (synthetic bbbbbb)"]
    assert [cell.label for cell in make_cells(typed(rows))] == names


def test_other_images_of_one_name_are_another_data_set() -> None:
    rows = [
        row(
            dataset="aircraft",
            dataset_fingerprint=digest,
            source=f"s{eps}",
            source_eps=eps,
            downscale=side,
            value=value + 10 * eps,
        )
        for digest, side, value in (
            ("aaaaaaaa", None, 50.0),
            ("bbbbbbbb", None, 70.0),
            ("cccccccc", 32, 40.0),  # reduced images have another fingerprint anyway
        )
        for eps in (0.0, 0.5)
    ]
    cells = make_cells(typed(rows))
    assert [(str(c.condition), c.mean) for c in cells] == [
        ("aircraft, fixed features", 40.0),
        ("aircraft, fixed features", 45.0),
        ("aircraft aaaaaa, fixed features", 50.0),
        ("aircraft aaaaaa, fixed features", 55.0),
        ("aircraft bbbbbb, fixed features", 70.0),
        ("aircraft bbbbbb, fixed features", 75.0),
    ]
    assert sorted(pair.difference for pair in compare(cells)) == [5.0, 5.0, 5.0]
    # Published numbers go by the plain name.
    assert all(c.published({}) == 41.40 for c in cells if c.robust and c.mean > 50)
    [plain, _] = make_cells(typed(rows[:2]))
    assert str(plain.condition) == "aircraft, fixed features"


# ---- published counterparts ----


def test_what_differs_from_the_published_experiment_is_said() -> None:
    ours = row(dataset="aircraft", source_eps=3.0, resolution=64)
    [cell] = make_cells(typed([ours]))
    assert cell.published({}) is not None
    unlike = ["protocol fastadv", "64 px", "other source weights"]
    assert cell.unlike_published({}) == unlike
    assert Study([cell], {}).table([cell]).rows[0][-1] == ", ".join(unlike)
    theirs = ours | {
        "protocol": "salman2020",
        "select_on": "test",
        "resolution": 224,
        "source_path": "/nowhere/resnet18_l2_eps3.ckpt",
        "notes": "epoch and learning rate chosen on the test set",
    }
    [cell] = make_cells(typed([theirs]))
    assert cell.unlike_published({}) == []
    changed = (
        theirs["notes"] + "; epochs 15 instead of 150; select_on val instead of test"
    )
    [cell] = make_cells(typed([theirs | {"notes": changed}]))
    assert cell.unlike_published({}) == [
        "epochs 15 instead of 150",
        "select_on val instead of test",
    ]


def test_both_sources_of_a_difference_are_held_against_the_published() -> None:
    published = {"dataset": "aircraft", "protocol": "salman2020", "resolution": 224}
    rows = [
        row(source_eps=eps, source_path=path, **published)
        for eps, path in (
            (3.0, "/nowhere/resnet18_l2_eps3.ckpt"),
            (0.0, "/cache/resnet18-f37072fd.pth"),
        )
    ]
    cells = make_cells(typed(rows))
    study, [pair] = Study(cells, {}), compare(cells)
    alone = "not tested: a single seed"
    remarks = "not as published: other source weights"
    assert comparison_columns(study, pair)["remarks"] == f"{alone}; {remarks}"
    rows[1]["source_path"] = "/nowhere/resnet18_l2_eps0.ckpt"
    cells = make_cells(typed(rows))
    study, [pair] = Study(cells, {}), compare(cells)
    assert comparison_columns(study, pair)["remarks"] == alone


@pytest.mark.parametrize(
    ("path", "eps", "norm", "theirs"),
    [
        ("/w/imagenet_linf_4.pt", 4 / 255, "linf", True),
        ("/w/resnet50_linf_eps4.0.ckpt", 4 / 255, "linf", False),
        ("/hub/resnet50-0676ba61.pth", 0.0, None, True),
    ],
)
def test_each_paper_transferred_weights_of_its_own(
    path: str, eps: float, norm: str | None, theirs: bool
) -> None:
    [cell] = make_cells(typed([
        row(
            dataset="cifar10",
            arch="resnet50",
            mode="last_k_blocks",
            k_blocks=3,
            num_pool=400,
            num_available=50_000,
            protocol="utrera2021",
            resolution=224,
            source_path=path,
            source_eps=eps,
            source_norm=norm,
        )
    ]))  # fmt: skip
    assert cell.published({}) is not None
    assert cell.unlike_published({}) == ([] if theirs else ["other source weights"])


# ---- numbers of images ----


def test_numbers_of_images_stand_beside_what_has_them() -> None:
    rows = [
        row(source_eps=eps, mode=mode, num_pool=n, seed=seed, value=50 + eps + seed)
        for mode, sizes in (
            ("fixed_feature", (100, 1297)),
            ("full_network", (100, 400)),
        )
        for n in sizes
        for eps in (0.0, 0.5, 1.0)
        for seed in range(2)
    ]
    found = sections(rows)
    main = found["Robust against standard"]
    ticks = [t.get_text() for t in main.figures[0][0].axes[0].get_xticklabels()]
    assert ticks == [
        "synthetic_set\nfixed features\nn = 1297",
        "synthetic_set\nfull network\nn = 400",
    ]
    place = list(main.tables[0].columns).index("n")
    assert [line[place] for line in main.tables[0].rows] == [1297, 400]
    titles = [
        ax.get_title(loc="left")
        for ax in found["Accuracy against eps"].figures[0][0].axes
    ]
    assert titles == [
        "synthetic_set, fixed features, n = 1297",
        "synthetic_set, full network, n = 400",
    ]
    # A panel has the ticks of its own points only.
    few = found["Few training images"]
    own = [[t.get_text() for t in a.get_xticklabels()] for a in few.figures[0][0].axes]
    assert own == [["100", "1297"], ["100", "400"]]
    assert few.findings == [
        "From the fewest to the most images, accuracy rises in 0 and falls in "
        "0 of 6 lines, by +0.0 points on average. This is not tested."
    ]


# ---- classes and attacks ----


def test_seeds_do_not_multiply_the_test_images_of_a_class() -> None:
    """44 and 36 of 50: intervals overlap, however often the same images are asked."""
    rows = [
        row(
            source_eps=eps,
            seed=seed,
            per_class_correct=[right],
            per_class_total=[50],
            class_names=["only"],
        )
        for eps, right in ((0.0, 36), (1.0, 44))
        for seed in range(10)
    ]
    assert wilson(36, 50)[1] > wilson(44, 50)[0]
    assert wilson(360, 500)[1] < wilson(440, 500)[0]
    section = sections(rows)["By class"]
    assert "in 0 the 95 % intervals of both do not overlap" in section.findings[0]
    assert section.tables[0].rows == [["only", "50", "72.0", "88.0", "+16.0"]]


def test_every_attack_on_a_model_is_reported() -> None:
    rows = [
        row(
            source_eps=source,
            seed=seed,
            identity=f"{source} {seed} {eps}",
            robust_value=40 - 20 * eps + 10 * source + seed,
            robust_ci_low=1.0,
            robust_ci_high=99.0,
            attack=json.dumps(
                {"name": "pgd", "norm": "l2", "eps": eps, "num_steps": 20}
            ),
        )
        for source in (0.0, 1.0)
        for seed in range(2)
        for eps in (0.5, 1.0)
    ]
    assert [len(c.rows) for c in make_cells(typed(rows))] == [2, 2]
    section = sections(rows)["Robust accuracy after transfer"]
    said = {
        (line[2], line[-1], str(line[-3]).split()[0]) for line in section.tables[0].rows
    }
    assert said == {
        ("standard", "pgd, l2 0.5, 20 steps", "30.50"),
        ("standard", "pgd, l2 1, 20 steps", "20.50"),
        ("l2 1", "pgd, l2 0.5, 20 steps", "40.50"),
        ("l2 1", "pgd, l2 1, 20 steps", "30.50"),
    }
    assert section.findings == [
        "Under attack, accuracy falls by 29.0 % of it (14.5 points) with robust sources "
        "and by 49.0 % of it (24.5 points) with standard sources, on average over the "
        "same 2 setting(s). This is not tested."
    ]
    axes = section.figures[0][0].axes
    points = [sorted(float(line.get_ydata()[0]) for line in ax.lines) for ax in axes]
    assert points == [[30.5, 40.5], [20.5, 30.5]]


def test_a_fall_under_attack_is_that_of_the_seeds_attacked() -> None:
    rows = [
        row(source_eps=1.0, seed=seed, value=value)
        for seed, value in enumerate((50.0, 70.0, 90.0))
    ]
    attack = json.dumps({"norm": "l2", "eps": 1.0, "num_steps": 20})
    rows[0] |= {"robust_value": 40.0, "robust_ci_low": 30.0, "robust_ci_high": 50.0}
    rows[0] |= {"attack": attack}
    section = sections(rows)["Robust accuracy after transfer"]
    assert section.findings == []  # there is no standard source to compare with
    [line] = section.tables[0].rows
    assert str(line[5]).startswith("50.00 [")
    assert line[7] == "20.0"  # percent of 50
    [point] = section.figures[0][0].axes[0].lines
    assert list(point.get_xdata()) == [50.0]


def test_no_standard_source_is_chosen_among_several() -> None:
    """The best of two baselines would be a baseline that nobody trained."""
    rows = [
        row(source=s, source_eps=eps, value=value, val_value=value)
        for s, eps, value in (("a", 0.0, 50.0), ("b", 0.0, 55.0), ("r", 1.0, 56.0))
    ]
    [found] = compare(make_cells(typed(rows)))
    assert [cell.source for cell in found.standard.cells] == ["a", "b"]
    assert (found.difference, found.by, found.among) == (3.5, "", 1)


def test_a_texture_trained_source_is_no_standard_one() -> None:
    sources = (("a", 0.0, 50.0), ("stylized", 0.0, 55.0), ("r", 1.0, 56.0))
    rows = typed(
        [row(source=s, source_eps=eps, value=value) for s, eps, value in sources]
    )
    texture = replace(rows[1].source, kind="texture")
    rows[1] = replace(rows[1], source=texture)
    cells = make_cells(rows)
    assert {c.source: (c.kind, c.label) for c in cells} == {
        "a": ("standard", "standard"),
        "stylized": ("texture", "texture-trained"),
        "r": ("robust", "l2 1"),
    }
    [found] = compare(cells)
    assert [cell.source for cell in found.standard.cells] == ["a"]
    assert (found.difference, found.by) == (6.0, "")


def test_a_texture_trained_source_has_a_published_number_of_its_own() -> None:
    [plain] = typed([row(dataset="aircraft", source_eps=0.0, resolution=224)])
    texture = replace(plain, source=replace(plain.source, kind="texture"))
    [cell], [other] = make_cells([plain]), make_cells([texture])
    assert cell.published({}) == 38.69
    assert other.published({}) == 34.68
    [unknown] = make_cells([replace(plain, source=replace(plain.source, kind="other"))])
    assert unknown.published({}) is None
