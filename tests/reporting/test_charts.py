"""Charts: what is drawn is what the rows say, read back from the axes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from fastadv.reporting import (
    accuracy_under_attack,
    source_colors,
    training_curves,
    transfer_bars,
)


def row(source: str, dataset: str, value: float, **more: Any) -> dict[str, Any]:
    return {
        "source": source,
        "source_eps": 0.0 if source == "standard" else 0.5,
        "arch": "resnet18",
        "dataset": dataset,
        "mode": "fixed_feature",
        "resolution": 32,
        "num_train": 100,
        "seed": 0,
        "protocol": "p",
        "metric": "top1",
        "value": value,
        "ci_low": value - 3,
        "ci_high": value + 2,
        **more,
    }


def bars(ax: Axes) -> dict[tuple[str, str], float]:
    """Height by (group label, colour), the group being the nearest tick."""
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    found = {}
    for patch in ax.patches:
        assert isinstance(patch, Rectangle)
        group = ticks[round(patch.get_x() + patch.get_width() / 2)]
        found[group, to_hex(patch.get_facecolor())] = patch.get_height()
    return found


def whiskers(ax: Axes) -> list[tuple[float, float]]:
    """The ends of every whisker, bottom first, in the order they were drawn."""
    return [
        (float(path.vertices[0, 1]), float(path.vertices[1, 1]))
        for lines in ax.collections
        if isinstance(lines, LineCollection)
        for path in lines.get_paths()
    ]


BLUE, ORANGE = source_colors(["standard", "l2 0.5"]).values()


def test_bars_are_the_rows_and_whiskers_their_intervals() -> None:
    figure = transfer_bars(
        [
            row("standard", "pets", 60.0),
            row("l2 0.5", "pets", 70.5),
            row("l2 0.5", "dtd", 40.0, mode="full_network"),
        ]
    )
    fixed, full = figure.axes
    assert (fixed.get_title("left"), full.get_title("left")) == (
        "fixed features",
        "full network",
    )
    assert bars(fixed) == {("pets", BLUE): 60.0, ("pets", ORANGE): 70.5}
    assert bars(full) == {("dtd", ORANGE): 40.0}
    assert whiskers(fixed) == [(57.0, 62.0), (67.5, 72.5)]
    assert fixed.get_ylim()[0] == 0


def test_seeds_are_averaged_and_the_whisker_is_their_range() -> None:
    rows = [row("standard", "pets", v, seed=i) for i, v in enumerate((50.0, 53, 62))]
    (ax,) = transfer_bars(rows).axes
    assert bars(ax) == {("pets", BLUE): pytest.approx(55.0)}
    assert whiskers(ax) == [(50.0, 62.0)]


def test_other_settings_are_never_averaged_and_are_named() -> None:
    (ax,) = transfer_bars(
        [
            row("standard", "pets", 50.0),
            row("standard", "pets", 80.0, num_train=9000),
            row("standard", "dtd", 30.0),
        ]
    ).axes
    assert bars(ax) == {
        ("pets\nnum train 100", BLUE): 50.0,
        ("pets\nnum train 9000", BLUE): 80.0,
        ("dtd", BLUE): 30.0,
    }


def test_architectures_of_one_source_stay_apart() -> None:
    figure = transfer_bars(
        [row("l2 0.5", "pets", 50.0), row("l2 0.5", "pets", 60.0, arch="vgg16_bn")]
    )
    assert sorted(bars(figure.axes[0]).values()) == [50.0, 60.0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["l2 0.5 (resnet18)", "l2 0.5 (vgg16_bn)"]


def test_a_missing_interval_has_no_whisker() -> None:
    rows = [row("standard", "pets", 50.0, ci_low=None, ci_high=None)]
    assert whiskers(transfer_bars(rows).axes[0]) == []


def test_many_data_sets_are_stacked_and_keep_their_bars() -> None:
    names = [f"set{i}" for i in range(12)]
    rows = [
        row(source, name, 5.0 * i, mode=mode)
        for i, name in enumerate(names)
        for source in ("standard", "l2 0.5")
        for mode in ("fixed_feature", "full_network")
    ]
    axes = transfer_bars(rows).axes
    assert len(axes) == 2
    for ax in axes:
        assert bars(ax)["set7", ORANGE] == 35.0
        assert len(ax.patches) == 24


def test_a_data_set_named_like_mathematics_is_drawn_as_it_is() -> None:
    figure = transfer_bars([row("standard", r"$\frac{$", 50.0)])
    figure.canvas.draw()
    assert figure.axes[0].get_xticklabels()[0].get_text() == r"$\frac{$"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no results to draw"),
        ([{"source": "a", "value": 1}], "row 0 has no dataset"),
    ],
)
def test_transfer_bars_says_what_is_missing(
    rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        transfer_bars(rows)


def test_accuracy_under_attack_in_percent_with_wilson_intervals() -> None:
    figure = accuracy_under_attack(
        {
            "standard": {"clean_acc": 0.9, "robust_acc": 0.0, "n": 100},
            "l2 0.5": {"clean_acc": 0.8, "robust_acc": 0.5},
        },
        attack="PGD-10",
    )
    (ax,) = figure.axes
    assert bars(ax) == {
        ("clean images", BLUE): 90.0,
        ("PGD-10", BLUE): 0.0,
        ("clean images", ORANGE): 80.0,
        ("PGD-10", ORANGE): 50.0,
    }
    # Published values of Wilson's interval for 90 and 0 successes of 100.
    clean, robust = whiskers(ax)
    assert clean == pytest.approx((82.56, 94.48), abs=0.01)
    assert robust == pytest.approx((0.0, 3.70), abs=0.01)


def test_intervals_that_are_given_are_drawn() -> None:
    found = {"clean_acc": 0.9, "clean_ci": (0.8, 0.95), "robust_acc": 0.5, "n": 100}
    (ax,) = accuracy_under_attack({"a": found}).axes
    clean, robust = whiskers(ax)
    assert clean == pytest.approx((80, 95))
    assert robust == pytest.approx((40.38, 59.62), abs=0.01)


@pytest.mark.parametrize(
    "bad", [{}, {"clean_acc": 71.0, "robust_acc": 0.2}, {"clean_acc": None}]
)
def test_accuracy_under_attack_refuses_percent(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"clean_acc of 'a' is .*fraction from 0 to 1"):
        accuracy_under_attack({"a": bad})


@pytest.mark.parametrize("first", [0, 1])
def test_training_curves_against_epochs_done(first: int) -> None:
    events = [
        {"event": "train", "epoch": first, "step": 5, "loss": 2.0},
        {"event": "train", "epoch": first, "step": 10, "loss": 1.5},
        {
            "event": "val",
            "epoch": first,
            "step": 10,
            "clean_acc": 0.5,
            "robust_acc": 0.25,
        },
        {"event": "train", "epoch": first + 1, "step": 20, "loss": 1.0},
        {"event": "val", "epoch": first + 1, "step": 20, "clean_acc": 0.75},
        {"event": "test", "clean_acc": 0.7},
    ]
    loss, accuracy = training_curves({"standard": events}).axes
    (line,) = loss.lines
    assert line.get_xydata().tolist() == [[0.5, 2.0], [1.0, 1.5], [2.0, 1.0]]
    assert to_hex(line.get_color()) == BLUE
    clean, robust = accuracy.lines
    assert clean.get_xydata().tolist() == [[1.0, 50.0], [2.0, 75.0]]
    assert robust.get_xydata().tolist() == [[1.0, 25.0]]
    assert robust.get_linestyle() == "--"


def test_steps_redone_after_a_crash_are_drawn_once() -> None:
    first = [
        {"event": "train", "epoch": 0, "step": s, "loss": float(s)} for s in (5, 10, 15)
    ]
    lost = {"event": "val", "epoch": 1, "step": 15, "clean_acc": 0.1}
    again = [
        {"event": "train", "epoch": 0, "step": s, "loss": 9.0} for s in (8, 12, 20)
    ]
    loss, accuracy = training_curves({"run": [*first, lost, *again]}).axes
    assert loss.lines[0].get_ydata().tolist() == [5.0, 9.0, 9.0, 9.0]
    assert len(accuracy.lines) == 0


def test_training_curves_without_events() -> None:
    with pytest.raises(ValueError, match=r"lines of log\.jsonl"):
        training_curves({"run": [{"event": "start"}]})


def test_colors_say_standard_or_robust_and_never_repeat() -> None:
    eps = {"a": 0.0, "b": 0.5, "c": 3.0}
    colors = source_colors("bac", eps)
    assert list(colors) == ["b", "a", "c"]
    assert (colors["a"], colors["b"]) == (BLUE, ORANGE)
    many = source_colors([f"l2 {i}" for i in range(12)] + ["standard"])
    assert len(set(many.values())) == 13


def test_tables_load_no_matplotlib_and_charts_no_torch() -> None:
    code = (
        "import sys, fastadv.reporting as r\n"
        "r.text_table; assert 'matplotlib' not in sys.modules\n"
        "r.transfer_bars; r.write_report; assert 'torch' not in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
