"""What must be equal for two rows of the results table to be compared, and its name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

Row = Mapping[str, Any]
_MODE_NAMES = {
    "fixed_feature": "fixed features",
    "full_network": "full network",
    "scratch": "from scratch",
}
# Chosen on validation or test images, or said elsewhere in the row.
_CHOSEN = ("C", "lr", "lrs", "epoch")
_ELSEWHERE = ("epochs", "solver", "method")
# What `condition_labels` words by itself.
_WORDED = ("dataset", "version", "mode", "k_blocks", "epochs", "recipe")


@dataclass(frozen=True, order=True)
class Condition:
    """What must be equal for two numbers to be compared.

    Empty strings and zeros stand for what does not apply.
    """

    dataset: str
    version: str  # begins its fingerprint, where the table has several of one name
    mode: str  # empty: of several, see `family`
    k_blocks: int
    downscale: int  # 0: none
    protocol: str
    select_on: str
    resolution: int
    solver: str
    method: str
    metric: str
    epochs: int  # 0: none, or the published number, which may follow that of images
    recipe: tuple[tuple[str, str], ...]  # every other hyper-parameter not chosen

    @property
    def target(self) -> str:
        """The data set, told apart from others of its name."""
        return f"{self.dataset} {self.version}".rstrip()

    @property
    def trains(self) -> str:
        """What trains, in words; empty for several."""
        if self.mode == "last_k_blocks":
            known = {0: "head only", 1: "last block"}
            return known.get(self.k_blocks, f"last {self.k_blocks} blocks")
        return _MODE_NAMES.get(self.mode, self.mode)

    def __str__(self) -> str:
        return f"{self.target}, {self.trains}" if self.trains else self.target

    def published_side(self) -> int | None:
        """How published tables call the side images were reduced to."""
        return self.downscale or None


def make_condition(row: Row, n: int, version: str) -> Condition:
    """The setting of a row.

    Args:
        row: of the results table.
        n: images to train with, those for validation included.
        version: see `Condition`.
    """
    used = json.loads(row.get("hyperparameters") or "{}")
    select_on = str(row.get("select_on") or "")
    protocol = str(row.get("protocol") or "")
    apart = {name: _said(used.get(name)) for name in ("solver", "method")}
    left_out = {*_CHOSEN, *_ELSEWHERE}
    if select_on == "none":
        left_out.remove("lr")
    if select_on != "val":
        left_out.add("val_fraction")
    epochs = int(used.get("epochs") or 0)
    # Source: Utrera et al. 2021, appendix A. A curve over n has both.
    if protocol == "utrera2021" and epochs == (100 if n <= 1600 else 150):
        epochs = 0
    return Condition(
        dataset=str(row["dataset"]),
        version=version,
        mode=str(row["mode"]),
        k_blocks=int(row.get("k_blocks") or 0),
        downscale=int(row.get("downscale") or 0),
        protocol=protocol,
        select_on=select_on,
        resolution=int(row.get("resolution") or 0),
        **apart,
        metric=str(row.get("metric") or ""),
        epochs=epochs,
        recipe=tuple(
            sorted((k, _said(v)) for k, v in used.items() if k not in left_out)
        ),
    )


def _said(value: Any) -> str:
    """A hyper-parameter in words; empty for none."""
    if isinstance(value, Mapping):
        return ", ".join(
            _said(v) if k == "name" else f"{k} {_said(v)}" for k, v in value.items()
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def condition_labels(conditions: Iterable[Condition]) -> dict[Condition, str]:
    """A short name of each, with whatever else tells apart those of one short name.

    Hyper-parameters are said only among settings of one protocol and solver: those
    names stand for what goes with them.
    """
    listed = list(dict.fromkeys(conditions))
    labels = {}
    for setting in listed:
        peers = [s for s in listed if str(s) == str(setting)]
        words = [str(setting)]
        for name in (f.name for f in fields(Condition) if f.name not in _WORDED):
            if len({getattr(peer, name) for peer in peers}) > 1:
                words.append(_word(name, getattr(setting, name)))
        alike = [
            s
            for s in peers
            if (s.protocol, s.solver) == (setting.protocol, setting.solver)
        ]
        if len({peer.epochs for peer in alike}) > 1:
            words.append(f"{setting.epochs or 'published'} epochs")
        words += [
            _word(name, value)
            for name, value in setting.recipe
            if any((name, value) not in peer.recipe for peer in alike)
        ]
        labels[setting] = ", ".join(words)
    return labels


def _word(name: str, value: object) -> str:
    if name == "downscale":
        return f"reduced to {value} px" if value else "native"
    if name == "resolution":
        return f"{value} px"
    return f"{name.replace('_', ' ')} {value or 'none'}"
