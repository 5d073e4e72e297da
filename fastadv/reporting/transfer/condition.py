"""What must be equal for two transfers to be compared, and its name.

Rows are grouped by the typed setting their writer stored; no text of a row is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastadv.groups import grouped
from fastadv.results.row import Row
from fastadv.results.settings import Statistics, TransferSetting, mode_label

# Fields of a setting that do not separate conditions: numbers of images are on an axis
# of their own, and what the experiment chose itself varies within a condition.
_NOT_COMPARED = {
    *("num_train", "num_val", "num_pool", "num_available", "published_epochs"),
    *("lrs", "lrs_head", "strengths", "depends_on_seed"),
    *("chosen_c", "chosen_lr", "chosen_lr_head", "chosen_epoch"),
}
# What `condition_labels` describes in its own way.
_LABELLED = ("dataset", "version", "mode", "k_blocks", "epochs", "recipe")


@dataclass(frozen=True, order=True)
class Condition:
    """What must be equal for two numbers to be compared.

    Empty strings and zeros stand for what does not apply.

    Attributes:
        dataset: Name of the target.
        version: Beginning of its fingerprint, where a table has several of one name.
        mode: What trained; empty for several, where they are on the x axis.
        k_blocks: Number of trained blocks, in mode `last_k_blocks`.
        downscale: Side that images were first reduced to, pixels.
        protocol: Where the settings came from.
        select_on: What hyper-parameters were chosen on.
        resolution: Side of the images, pixels.
        solver: Solver of a head on cached features.
        method: Training method, if it was adversarial.
        metric: What the accuracy is.
        epochs: Epochs of fine-tuning; 0 for none, for the number that the protocol
            publishes for so many images, and where they are on the x axis.
        recipe: Name and value of everything else in the setting, as text.
    """

    dataset: str
    version: str
    mode: str
    k_blocks: int
    downscale: int
    protocol: str
    select_on: str
    resolution: int
    solver: str
    method: str
    metric: str
    epochs: int
    recipe: tuple[tuple[str, str], ...]

    @property
    def target(self) -> str:
        """Name of the data set, with its version where there are several."""
        return f"{self.dataset} {self.version}".rstrip()

    @property
    def trains(self) -> str:
        """What trains, for people; empty for several modes."""
        return mode_label(self.mode, self.k_blocks)

    def published(self, names: Mapping[str, str]) -> str:
        """Return the published name of the data set, given those that differ from ours."""
        return names.get(self.dataset, self.dataset)

    def __str__(self) -> str:
        return f"{self.target}, {self.trains}" if self.trains else self.target


def make_condition(row: Row, setting: TransferSetting, version: str) -> Condition:
    """Make the condition of a row of kind "transfer", whose setting is `setting`."""
    own = {
        "mode": setting.mode,
        "k_blocks": setting.k_blocks or 0,
        "protocol": setting.protocol,
        "select_on": setting.select_on,
        "solver": setting.solver or "",
        "method": _text(setting.method),
        "epochs": setting.epochs or 0,
    }
    if setting.epochs == setting.published_epochs:
        own["epochs"] = 0  # a curve over the number of images is one condition
    recipe = {
        field.name: getattr(setting, field.name)
        for field in fields(setting)
        if field.name not in own and field.name not in _NOT_COMPARED
    }
    if setting.select_on == "none":
        recipe["lr"] = setting.chosen_lr
        recipe["lr_head"] = setting.chosen_lr_head
        recipe["c"] = setting.chosen_c
    if setting.select_on != "val":
        recipe["val_fraction"] = None
    return Condition(
        dataset=row.target.name,
        version=version,
        downscale=row.target.downscale or 0,
        resolution=row.target.resolution or 0,
        metric=row.metric,
        recipe=tuple(sorted((name, _text(value)) for name, value in recipe.items())),
        **own,  # type: ignore[arg-type]
    )


def _text(value: Any) -> str:
    """Return a value of a setting as text; empty for none."""
    if isinstance(value, Statistics):
        return f"mean {_text(value.mean)}, std {_text(value.std)}"
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def condition_labels(conditions: Iterable[Condition]) -> dict[Condition, str]:
    """Return a short name of each condition, extended where several share it.

    The extension names every choice in which they differ; hyper-parameters only among
    conditions of one protocol and solver, whose names stand for the usual values.
    """
    listed = list(dict.fromkeys(conditions))
    namesakes = grouped(listed, str)
    labels = {}
    for condition in listed:
        peers = namesakes[str(condition)]
        parts = [str(condition)]
        for name in (f.name for f in fields(Condition) if f.name not in _LABELLED):
            if len({getattr(peer, name) for peer in peers}) > 1:
                parts.append(_part(name, getattr(condition, name)))
        way = (condition.protocol, condition.solver)
        alike = [peer for peer in peers if (peer.protocol, peer.solver) == way]
        if len({peer.epochs for peer in alike}) > 1:
            parts.append(f"{condition.epochs or 'published'} epochs")
        parts += [
            _part(name, value)
            for name, value in condition.recipe
            if any((name, value) not in peer.recipe for peer in alike)
        ]
        labels[condition] = ", ".join(parts)
    return labels


def _part(name: str, value: object) -> str:
    if name == "resolution":
        return f"{value} px"
    if name != "downscale":
        return f"{name.replace('_', ' ')} {value or 'none'}"
    return f"reduced to {value} px" if value else "native"
