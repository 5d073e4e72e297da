"""Charts: what is drawn is what the rows say, read back from the axes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from synthetic_results import row, typed

from fastadv.reporting import (
    grouped_bars,
    source_colors,
    training_curves,
)
from fastadv.reporting.figures.bars import Bar
from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.sections import study_sections
from fastadv.reporting.transfer.study import Study
from fastadv.reporting.transfer.study_sources import robust_and_standard


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


def pair(dataset: str, standard: float, robust: float, **more: Any) -> list[Any]:
    """Rows of a standard and a robust source; intervals are -3 and +2 points."""
    return [
        row(
            source=name,
            source_eps=eps,
            dataset=dataset,
            value=value,
            ci_low=value - 3,
            ci_high=value + 2,
            **more,
        )
        for name, eps, value in (("standard", 0.0, standard), ("l2 0.5", 0.5, robust))
    ]


def drawn(rows: list[Any]) -> Figure:
    """The bars of the section that compares robust with standard sources."""
    section = robust_and_standard(Study(make_cells(typed(rows)), {}))
    assert section is not None
    return section.figures[0][0]


def test_bars_are_the_rows_and_whiskers_their_intervals() -> None:
    full = pair("dtd", 30.0, 40.0, mode="full_network")
    (ax,) = drawn([*pair("pets", 60.0, 70.5), *full]).axes
    assert bars(ax) == {
        ("pets\nfixed features\nn = 1000", BLUE): 60.0,
        ("pets\nfixed features\nn = 1000", ORANGE): 70.5,
        ("dtd\nfull network\nn = 1000", BLUE): 30.0,
        ("dtd\nfull network\nn = 1000", ORANGE): 40.0,
    }
    ends = [(27.0, 32.0), (57.0, 62.0), (37.0, 42.0), (67.5, 72.5)]
    assert sorted(whiskers(ax)) == sorted(ends)
    assert ax.get_ylim()[0] == 0


def test_seeds_are_averaged_and_the_whisker_is_the_interval_of_their_mean() -> None:
    rows = [r for i, v in enumerate((50.0, 53, 62)) for r in pair("pets", v, v, seed=i)]
    [cell, _] = make_cells(typed(rows))
    (ax,) = drawn(rows).axes
    assert bars(ax)["pets\nfixed features\nn = 1000", BLUE] == pytest.approx(55.0)
    assert whiskers(ax)[0] == pytest.approx(cell.interval()[1:])
    assert cell.interval()[1] < 50.0


def test_other_settings_are_never_averaged_and_are_named() -> None:
    rows = [
        *pair("pets", 50.0, 51.0),
        *pair("pets", 80.0, 81.0, resolution=64, num_pool=9000),
        *pair("dtd", 30.0, 31.0),
    ]
    (ax,) = drawn(rows).axes
    blue = {group: h for (group, color), h in bars(ax).items() if color == BLUE}
    assert blue == {
        "pets\nfixed features\n224 px\nn = 1000": 50.0,
        "pets\nfixed features\n64 px\nn = 9000": 80.0,
        "dtd\nfixed features\nn = 1000": 30.0,
    }


def test_architectures_of_one_source_stay_apart() -> None:
    rows = [*pair("pets", 50.0, 55.0), *pair("pets", 60.0, 65.0, arch="vgg16_bn")]
    groups = bars(drawn(rows).axes[0])
    assert sorted(groups.values()) == [50.0, 55.0, 60.0, 65.0]
    assert {group.rpartition("\n")[2] for group, _ in groups} == {
        "resnet18",
        "vgg16_bn",
    }


def test_a_missing_interval_has_no_whisker() -> None:
    (ax,) = grouped_bars({"pets": {"a": Bar(50.0)}}, {"a": BLUE}).axes
    assert whiskers(ax) == []


def test_many_data_sets_are_stacked_and_keep_their_bars() -> None:
    rows = [r for i in range(12) for r in pair(f"set{i:02}", 5.0 * i, 5.0 * i + 1)]
    first, second = drawn(rows).axes
    assert bars(first)["set07\nfixed features\nn = 1000", ORANGE] == 36.0
    assert (len(first.patches), len(second.patches)) == (16, 8)


def test_a_data_set_named_like_mathematics_is_drawn_as_it_is() -> None:
    figure = drawn(pair(r"$\frac{$", 50.0, 51.0))
    figure.canvas.draw()
    text = figure.axes[0].get_xticklabels()[0].get_text()
    assert text.splitlines()[0] == r"$\frac{$"


def test_a_value_stands_in_its_bar_and_not_at_the_tip_of_the_whisker() -> None:
    wide, low = Bar(62.5, 0.0, 100.0), Bar(2.0, 1.0, 9.0)
    (ax,) = grouped_bars({"g": {"a": wide, "b": low}}, {"a": BLUE, "b": ORANGE}).axes
    written = {text.get_text(): text.xy[1] for text in ax.texts}  # type: ignore[attr-defined]
    assert written == {"62.5": 0, "2.0": 9.0}


def test_published_values_are_hollow_diamonds_on_their_bars() -> None:
    groups = {"g": {"a": Bar(50.0, published=55.0), "b": Bar(60.0)}}
    figure = grouped_bars(groups, {"a": BLUE, "b": ORANGE})
    [diamond] = figure.axes[0].lines
    assert diamond.get_xydata().tolist() == [[-0.2, 55.0]]
    assert diamond.get_markerfacecolor() == "none"
    assert list(figure.axes[0].texts) == []  # the values would stand below the diamonds


def test_no_bars_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="no groups of bars"):
        grouped_bars({}, {"a": BLUE})


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
        "r.grouped_bars; r.write_report; assert 'torch' not in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_only_so_many_panels_are_drawn_and_the_caption_says_so() -> None:
    rows = [r for i in range(20) for r in pair(f"set{i:02}", 50.0, 51.0)]
    rows += [r | {"num_pool": 100, "identity": None} for r in rows]
    [section] = [
        s
        for s in study_sections(Study(make_cells(typed(rows)), {}))
        if s.title == "Few training images"
    ]
    [(figure, caption)] = section.figures
    assert len(figure.axes) == 12
    assert caption.endswith(
        "The first 12 of 20 are drawn; all numbers are in the tables."
    )
    assert len(section.tables[0].rows) == 40
