"""Curves over the course of a training, from its log. Needs no torch.

Accuracies in logs are fractions of 1; the axis shows percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastadv.reporting.figures.palette import (
    MUTED,
    horizontal_grid,
    house_style,
    new_figure,
    source_colors,
)

Event = Mapping[str, Any]


def training_curves(runs: Mapping[str, Sequence[Event]]) -> Figure:
    """Draw training loss, and clean and robust validation accuracy, against epochs.

    Args:
        runs: Events of `log.jsonl` by the name of the run. `train` events give `loss`,
            `val` events give `clean_acc` and `robust_acc` as fractions of 1.

    Raises:
        ValueError: No run has a `train` or `val` event.
    """
    kinds = {event.get("event") for log in runs.values() for event in log}
    if not kinds & {"train", "val"}:
        raise ValueError(
            "no run has a train or val event to draw; give the parsed lines of "
            "log.jsonl, by the name of the run"
        )
    palette = source_colors(runs)
    with house_style():
        figure = new_figure(8.4, 3.1)
        loss, accuracy = figure.subplots(1, 2)
        lines = (
            (loss, "train", "loss", 1, "-"),
            (accuracy, "val", "clean_acc", 100, "-"),
            (accuracy, "val", "robust_acc", 100, "--"),
        )
        for name, log in runs.items():
            kept = _without_redone(log)
            timed = list(zip(_epochs(kept), kept, strict=True))
            for ax, kind, key, factor, style in lines:
                points = [
                    (epochs, factor * event[key])
                    for epochs, event in timed
                    if event.get("event") == kind and event.get(key) is not None
                ]
                marker = "o" if len(points) <= 12 else ""
                look: Any = {"marker": marker, "markersize": 3, "linewidth": 1.5}
                if points:
                    ax.plot(
                        *zip(*points, strict=True), style, color=palette[name], **look
                    )
        loss.set_title("training loss (on adversarial images for robust runs)")
        accuracy.set_title("validation accuracy (%)")
        accuracy.set_ylim(0, 100)
        for ax in (loss, accuracy):
            horizontal_grid(ax)
            ax.set_xlabel("epoch")
            ax.set_xlim(left=0)
        loss.set_ylim(bottom=0)
        handles = [Line2D([], [], color=palette[name], label=name) for name in runs]
        handles.append(Line2D([], [], color=MUTED, label="clean"))
        handles.append(Line2D([], [], color=MUTED, ls="--", label="under attack"))
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure


def _without_redone(log: Iterable[Event]) -> list[Event]:
    """Return the train and val events, without those that a resumed run did again."""
    kept: list[Event] = []
    for event in log:
        if event.get("event") == "train":
            while kept and _step(kept[-1]) >= _step(event) > 0:
                kept.pop()
        if event.get("event") in ("train", "val"):
            kept.append(event)
    return kept


def _step(event: Event) -> int:
    return int(event.get("step") or 0)


def _epochs(events: Sequence[Event]) -> list[float]:
    """Return the epochs done at each event, by its step where steps are logged."""
    train = [e["epoch"] for e in events if e.get("event") == "train" and "epoch" in e]
    last_step = max(map(_step, events), default=0)
    if not train or not last_step:
        return [float(e.get("epoch", 0)) for e in events]
    count = max(train) + (1 if min(train) == 0 else 0)  # counted from 0, or from 1
    return [_step(e) * count / last_step for e in events]
