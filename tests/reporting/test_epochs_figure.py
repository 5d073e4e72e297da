"""The section on the epochs of one training, beside the published figure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic_results import row, typed

from fastadv.reporting.literature import epochs_accuracy
from fastadv.reporting.transfer.cells import make_cells
from fastadv.reporting.transfer.study import Study
from fastadv.reporting.transfer.study_epochs import _by_epoch, within_training
from fastadv.results.row import EpochRecord, Row


def _rows(with_history: bool = True) -> list[Row]:
    """Two sources and two seeds, better by a point with each measured epoch."""
    rows = typed(
        row(
            source=f"eps {eps:g}",
            arch="resnet50",
            source_eps=eps,
            dataset="cifar10",
            mode="last_k_blocks",
            k_blocks=3,
            num_train=3200,
            num_val=0,
            num_pool=3200,
            num_available=50000,
            seed=seed,
            protocol="utrera2021",
            select_on="none",
            value=60 + 10 * eps + seed,
        )
        for eps in (0.0, 3.0)
        for seed in (0, 1)
    )
    found = []
    for each in rows:
        setting = replace(
            each.setting, epochs=150, published_epochs=150, chosen_epoch=150
        )
        history = tuple(
            EpochRecord(epoch=epoch, value=each.value - 5 + number)
            for number, epoch in enumerate((11, 21, 41, 81))
        )
        changes = {"setting": setting, "history": history if with_history else ()}
        found.append(replace(each, setting_key="", n=10000, **changes))
    return found


def test_one_training_is_drawn_over_its_epochs() -> None:
    section = within_training(Study(make_cells(_rows()), {}))
    assert section is not None
    [table] = section.tables
    [(figure, _)] = section.figures
    [axes] = [axes for axes in figure.axes if axes.get_visible()]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["11", "21", "41", "81", "150"]
    assert "epoch 150" in str(table)
    assert "90.5" in str(table)  # the mean of both seeds at the end
    assert "85.5" in str(table)  # and after 11 epochs


def test_nothing_is_drawn_without_a_history() -> None:
    assert within_training(Study(make_cells(_rows(with_history=False)), {})) is None


def test_the_published_figure_is_beside_ours() -> None:
    found = epochs_accuracy()
    # Six data sets, two sources, five epochs.
    assert len(found) == 60
    place = ("cifar100", "resnet50", 3, 3200, 150)
    assert found[*place, 11, ("l2", 3.0)] == pytest.approx(51.88)
    assert found[*place, 150, (None, 0.0)] == pytest.approx(51.46)
    cell = make_cells(_rows())[-1]
    section = within_training(Study([cell], {}))
    assert section is not None
    drawn = {at.epoch: at.published({}) for at in _by_epoch(cell)}
    assert drawn == {
        epoch: found["cifar10", *place[1:], epoch, ("l2", 3.0)] for epoch in drawn
    }
    assert set(drawn) == {11, 21, 41, 81, 150}
