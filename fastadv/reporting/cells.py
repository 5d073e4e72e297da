"""From rows of the results table to experiments over seeds.

A cell is one source in one setting with so many training images; its values are by seed.
Everything here is percent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fastadv.reporting.reference import (
    Threat,
    accuracy_of_file,
    limited_accuracy,
    threat,
    transfer_accuracy,
)
from fastadv.statistics import agree, mean_interval

Row = Mapping[str, Any]
_MODE_NAMES = {
    "fixed_feature": "fixed features",
    "full_network": "full network",
    "scratch": "from scratch",
}
# By how much trains.
_RANK = {"fixed_feature": 0, "last_k_blocks": 1, "full_network": 2, "scratch": 3}
_PUBLISHED_SIDE = 224  # pixels
# Chosen on validation or test images, or said elsewhere in the row.
_CHOSEN = ("C", "lr", "lrs", "epoch")
_ELSEWHERE = ("epochs", "solver", "method")


@dataclass(frozen=True, order=True)
class Setting:
    """What must be equal for two numbers to be compared.

    Empty strings and zeros stand for what does not apply.
    """

    dataset: str
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

    def __str__(self) -> str:
        mode = _MODE_NAMES.get(self.mode, self.mode)
        if self.mode == "last_k_blocks":
            mode = {0: "head only", 1: "last block"}.get(
                self.k_blocks, f"last {self.k_blocks} blocks"
            )
        return f"{self.dataset}, {mode}" if mode else self.dataset

    def published_side(self) -> int | None:
        """How published tables call the side images were reduced to."""
        return self.downscale or None


@dataclass(frozen=True, eq=False)
class Cell:
    """One source, in one setting, with `n` training images.

    Attributes:
        source: name of the source.
        arch: its architecture.
        threat: its norm and eps; None if unknown.
        n: images to train with, those for validation included.
        rows: by seed.
        attacked: of the same models under each attack, by seed, by attack as JSON.
        named: whether arch and threat do not say which source it is.
    """

    setting: Setting
    source: str
    arch: str
    threat: Threat | None
    n: int
    rows: Mapping[int, Row]
    attacked: Mapping[str, Mapping[int, Row]]
    named: bool

    @property
    def values(self) -> dict[int, float]:
        """Accuracy by seed."""
        return {seed: float(row["value"]) for seed, row in self.rows.items()}

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return self.interval()[0]

    def interval(self) -> tuple[float, float, float]:
        """Mean and 95 % interval; see `seeds_interval`."""
        return seeds_interval(list(self.rows.values()), "value", "ci")

    @property
    def validation(self) -> float | None:
        """Mean of what hyper-parameters were chosen on; None where nothing was."""
        found = [row.get("val_value") for row in self.rows.values()]
        known = [float(value) for value in found if value is not None]
        return math.fsum(known) / len(known) if len(known) == len(found) else None

    @property
    def robust(self) -> bool:
        """Whether the source was trained on adversarial images."""
        return self.threat is not None and self.threat[1] > 0

    @property
    def training(self) -> str:
        """The threat in words."""
        if self.threat is None:
            return self.source
        norm, eps = self.threat
        if not eps:
            return "standard"
        pixels = f"{eps * 255:.4g}/255" if norm == "linf" else f"{eps:g}"
        return f"{norm} {pixels}"

    @property
    def label(self) -> str:
        """The threat in words, and the name of the source where that is not enough."""
        named = self.named and self.threat is not None
        return f"{self.training} ({self.source})" if named else self.training

    @property
    def source_accuracy(self) -> float | None:
        """Accuracy of the source on its own test images, if it is known."""
        row = next(iter(self.rows.values()))
        given = row.get("source_accuracy")
        return (
            given if given is not None else accuracy_of_file(row["source_path"] or "")
        )

    @property
    def complete(self) -> bool:
        """Whether all training images there are were used."""
        return self.n == next(iter(self.rows.values())).get("num_available")

    @property
    def epochs(self) -> int:
        """Epochs of fine-tuning; 0 where there are none."""
        row = next(iter(self.rows.values()))
        return int(json.loads(row.get("hyperparameters") or "{}").get("epochs") or 0)

    def published(self, names: Mapping[str, str]) -> float | None:
        """The published number of the same data, mode, source and number of images.

        Args:
            names: published name of a data set by ours.
        """
        found = self._published(names)
        return None if found is None else found[0]

    def unlike_published(self, names: Mapping[str, str]) -> list[str]:
        """In what the experiment differs from that of the published number, in words."""
        found = self._published(names)
        if found is None:
            return []
        setting, row = self.setting, next(iter(self.rows.values()))
        words = []
        if setting.protocol != found[1]:
            words.append(f"protocol {setting.protocol or 'unknown'}")
        if setting.resolution != _PUBLISHED_SIDE:
            words.append(f"{setting.resolution} px")
        # What flags changed of a published protocol, as the row words it.
        words += [
            note
            for note in (row.get("notes") or "").split("; ")
            if " instead of " in note and not note.startswith("resolution ")
        ]
        if accuracy_of_file(row["source_path"] or "") is None:
            words.append("other source weights")
        return words

    def _published(self, names: Mapping[str, str]) -> tuple[float, str] | None:
        """The published number, and the protocol it was measured by."""
        if self.threat is None:
            return None
        setting, of = self.setting, threat(*self.threat)
        dataset = names.get(setting.dataset, setting.dataset)
        if self.complete:
            key = (dataset, setting.mode, setting.published_side(), self.arch)
            found = transfer_accuracy().get((*key, of))
            if found is not None:
                return found, "salman2020"
        if setting.mode != "last_k_blocks" or setting.downscale:
            return None
        n = None if self.complete else self.n
        limited = (dataset, self.arch, setting.k_blocks, n, of)
        found = limited_accuracy().get(limited)
        return None if found is None else (found, "utrera2021")


def seeds_interval(
    rows: Sequence[Row], value: str, ends: str
) -> tuple[float, float, float]:
    """Mean and 95 % interval over seeds, percent.

    Of a single seed, and of seeds that agree exactly, the interval is that of the test
    images: no spread over few seeds is no certainty.

    Args:
        rows: one per seed.
        value: column of the values.
        ends: their interval is in the columns `ends` + `_low` and `_high`.
    """
    values = [float(row[value]) for row in rows]
    mean, least, most = mean_interval(values)
    if agree(values):
        low, high = rows[0].get(f"{ends}_low"), rows[0].get(f"{ends}_high")
        if low is not None and high is not None:
            least, most = float(low), float(high)
    return mean, max(0.0, least), min(100.0, most)


def make_cells(rows: Iterable[Row]) -> list[Cell]:
    """Collect rows into cells, in order of setting, arch, threat and n.

    Of rows that define the same number the newest counts, and of learning rates that
    were run one by one the one that did best on what they were to be chosen on.
    """
    newest: dict[Any, Row] = {}
    for number, row in enumerate(rows):
        newest[row.get("identity") or number] = row
    source = _source_names(newest.values())
    found: dict[tuple[Setting, str, str, Threat | None, int], list[Row]] = {}
    for row in newest.values():
        eps = row.get("source_eps")
        of = None if eps is None else threat(row.get("source_norm"), eps)
        n = int(
            row.get("num_pool") or (row["num_train"] or 0) + (row.get("num_val") or 0)
        )
        key = (_setting(row, n), source(row), str(row["arch"]), of, n)
        found.setdefault(key, []).append(row)
    sources: dict[tuple[str, Threat | None], set[str]] = {}
    for _, name, arch, of, _ in found:
        sources.setdefault((arch, of), set()).add(name)
    cells = []
    for key, of_cell in found.items():
        best: dict[int, Row] = {}
        for row in of_cell:
            seed = int(row["seed"])
            if seed not in best or _chosen(row) >= _chosen(best[seed]):
                best[seed] = row
        attacked: dict[str, dict[int, Row]] = {}
        for row in of_cell:
            seed = int(row["seed"])
            same = row["hyperparameters"] == best[seed]["hyperparameters"]
            if same and row.get("robust_value") is not None:
                attacked.setdefault(str(row.get("attack") or ""), {})[seed] = row
        several = len(sources[key[2], key[3]]) > 1
        cells.append(Cell(*key, dict(sorted(best.items())), attacked, several))
    return sorted(cells, key=_order)


def _source_names(rows: Iterable[Row]) -> Callable[[Row], str]:
    """Names of sources: with the beginning of their hash where weights share a name."""
    hashes: dict[str, set[str]] = {}
    for row in rows:
        hashes.setdefault(str(row["source"]), set()).add(str(row.get("source_hash")))

    def name(row: Row) -> str:
        found = str(row["source"])
        several = len(hashes[found]) > 1
        return f"{found} {str(row.get('source_hash'))[:6]}" if several else found

    return name


def _order(cell: Cell) -> tuple[Any, ...]:
    norm, eps = cell.threat or ("", math.inf)
    setting = cell.setting
    place = (setting.dataset, _RANK.get(setting.mode, len(_RANK)), setting)
    return *place, cell.arch, norm or "", eps, cell.source, cell.n


def _chosen(row: Row) -> float:
    value = row.get("val_value")
    return -math.inf if value is None else float(value)


def _setting(row: Row, n: int) -> Setting:
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
    return Setting(
        dataset=str(row["dataset"]),
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


def with_most_images(
    cells: Sequence[Cell], family: Callable[[Cell], object] | None = None
) -> list[Cell]:
    """The cells with the most training images.

    Args:
        cells: to choose from.
        family: what shares one number: that of which there are most settings, and the
            largest of those; every setting by itself if it is None.
    """
    of = family or (lambda cell: cell.setting)
    found: dict[object, dict[int, set[Setting]]] = {}
    for cell in cells:
        found.setdefault(of(cell), {}).setdefault(cell.n, set()).add(cell.setting)
    most = {
        key: max(sizes, key=lambda n: (len(sizes[n]), n))
        for key, sizes in found.items()
    }
    return [cell for cell in cells if cell.n == most[of(cell)]]


def setting_labels(settings: Iterable[Setting]) -> dict[Setting, str]:
    """A short name of each, with whatever else tells apart those of one short name.

    Hyper-parameters are said only among settings of one protocol and solver: those
    names stand for what goes with them.
    """
    listed = list(dict.fromkeys(settings))
    labels = {}
    for setting in listed:
        peers = [s for s in listed if str(s) == str(setting)]
        words = [str(setting)]
        for name in [f.name for f in fields(Setting)][3:-2]:
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
