"""Adversarial examples of the sources of a results table, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastadv.errors import CheckpointError, ConfigError, FastadvError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastadv.data import Batch
    from fastadv.models import NormalizedModel
    from fastadv.models.source import Source
    from fastadv.reporting import Section
    from fastadv.results.row import Row
    from fastadv.threat import ThreatModel

_MODELS, _IMAGES, _STEPS = 3, 6, 20


def example_section(rows: Sequence[Row], data: str) -> Section:
    """Clean and adversarial images of up to three sources, and their loss gradients.

    Each at its own resolution, attacked within the radius of its training; those that
    have none, within that of the first that has.

    Args:
        rows: of the results table; the files they name must still be there.
        data: the data set whose classes the sources tell apart.

    Raises:
        ConfigError: no source has as many outputs as the data set has classes.
        FastadvError: the data set cannot be opened.
    """
    from fastadv.attacks import PGD
    from fastadv.reporting import Section, adversarial_examples, loss_gradients

    shown = _sources(rows, data)
    threats = _threats([source for source, _ in shown.values()])
    sides: dict[int, dict[str, NormalizedModel]] = {}
    attacked: dict[tuple[int, ThreatModel], dict[str, NormalizedModel]] = {}
    for (name, (source, model)), threat in zip(shown.items(), threats, strict=True):
        sides.setdefault(source.resolution, {})[name] = model
        attacked.setdefault((source.resolution, threat), {})[name] = model
    images = {side: _images(data, side) for side in sides}
    figures: list[tuple[Figure, str]] = []
    for (side, threat), models in attacked.items():
        batch, classes = images[side]
        attack = PGD.judge(threat, _STEPS, random_start=False, keep="last")
        figures.append(
            (
                adversarial_examples(
                    models, batch.images, batch.labels, classes, attack
                ),
                f"Clean images, adversarial ones within {threat}, and the difference, "
                "amplified.",
            )
        )
    for side, models in sides.items():
        batch, _ = images[side]
        figures.append(
            (
                loss_gradients(models, batch.images, batch.labels),
                "Gradient of the loss with respect to the pixels.",
            )
        )
    return Section(
        "Adversarial examples",
        [
            f"Sources attacked with PGD-{_STEPS} on test images of {data}, each within "
            "the radius of its training, or where it has none within that of the first "
            "that has. A picture of six images is an illustration, not a measurement."
        ],
        figures,
    )


def _sources(
    rows: Sequence[Row], data: str
) -> dict[str, tuple[Source, NormalizedModel]]:
    """Sources of the rows that tell the classes of `data` apart, by what to call them."""
    from fastadv.data import open_dataset

    found: dict[str, tuple[Source, NormalizedModel]] = {}
    refused: list[str] = []
    for row in {r.source.digest: r for r in rows}.values():
        path = row.source.path
        if len(found) == _MODELS or not path or not Path(path).exists():
            continue
        try:
            source = _reopened(row)
            classes = open_dataset(data, resolution=source.resolution).test.classes
            model = source.load()
        except FastadvError as error:
            refused.append(str(error))
            continue
        if model.head.out_features != len(classes):
            refused.append(
                f"{source.name} has {model.head.out_features} outputs, {data} has "
                f"{len(classes)} classes"
            )
            continue
        taken = source.name in found
        name = f"{source.name} {source.digest[:8]}" if taken else source.name
        found[name] = source, model.eval()
    if not found:
        why = "; ".join(refused[:3]) or "their files are gone"
        raise ConfigError(f"--examples {data}: no source can be shown: {why}")
    return found


def _reopened(row: Row) -> Source:
    """The source of a row, which must be the one its numbers are of.

    Raises:
        CheckpointError: it is another by now, or cannot be read.
    """
    from fastadv.models.source import open_source

    # Rows of older versions name the file alone, without what was said about it.
    stored = row.source
    given = stored.given or stored.path or ""
    source = open_source(given, stored.name, stored.arch)
    if source.digest != stored.digest:
        raise CheckpointError(
            f"{given} is no longer the source of {stored.name}: the weights changed, or "
            "its row does not say the input convention it was opened with"
        )
    return source


def _threats(sources: Sequence[Source]) -> list[ThreatModel]:
    """Within what each is attacked."""
    from fastadv.threat import ThreatModel

    own = [
        ThreatModel(source.norm or "l2", source.eps) if source.eps else None  # type: ignore[arg-type]
        for source in sources
    ]
    usual = next((threat for threat in own if threat), ThreatModel("l2", 1.0))
    return [threat or usual for threat in own]


def _images(data: str, side: int) -> tuple[Batch, tuple[str, ...]]:
    """A few test images of `side` pixels, and the names of all classes."""
    from fastadv.data import make_loader, open_dataset, subset

    test = open_dataset(data, resolution=side).test
    chosen = subset(test, max(_IMAGES, len(test.classes)), seed=0)
    loader = make_loader(chosen, batch_size=_IMAGES, resolution=side, train=False)
    return next(iter(loader)), test.classes
