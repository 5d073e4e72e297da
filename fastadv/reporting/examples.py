"""The section on adversarial examples of the sources of a results table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fastadv import reporting
from fastadv.attacks import PGD
from fastadv.data import Batch, make_loader, open_judged_splits, subset
from fastadv.errors import CheckpointError, ConfigError, FastadvError
from fastadv.models import NormalizedModel
from fastadv.models.source import Source, open_source
from fastadv.results.row import Row
from fastadv.threat import ThreatModel

_MODELS, _IMAGES, _STEPS = 3, 6, 20


def example_section(rows: Sequence[Row], data: str) -> reporting.Section:
    """Draw clean and adversarial images of up to three sources, and loss gradients.

    Each source is shown at its own resolution and attacked within the radius of its
    training. A source without a radius is attacked within that of the first that has one.

    Args:
        rows: Rows of the results table; the files that they name must still be there.
        data: Data set whose classes the sources tell apart.

    Raises:
        ConfigError: No source has as many outputs as the data set has classes.
        FastadvError: The data set cannot be opened.
    """
    sources = _sources(rows, data)
    own = {name: _threat(source) for name, (source, _) in sources.items()}
    usual = next(filter(None, own.values()), ThreatModel("l2", 1.0))
    of_side: dict[int, dict[str, NormalizedModel]] = {}
    of_attack: dict[tuple[int, ThreatModel], dict[str, NormalizedModel]] = {}
    for name, (source, model) in sources.items():
        side, threat = source.resolution, own[name] or usual
        of_side.setdefault(side, {})[name] = model
        of_attack.setdefault((side, threat), {})[name] = model
    images = {side: _images(data, side) for side in of_side}
    figures: list[tuple[Figure, str]] = []
    for (side, threat), models in of_attack.items():
        batch, classes = images[side]
        attack = PGD.judge(threat, _STEPS, random_start=False, keep="last")
        figure = reporting.adversarial_examples(
            models, batch.images, batch.labels, classes, attack
        )
        caption = f"Clean images, adversarial ones within {threat}, and the difference"
        figures.append((figure, f"{caption}, amplified."))
    for side, models in of_side.items():
        batch, _ = images[side]
        figure = reporting.loss_gradients(models, batch.images, batch.labels)
        figures.append((figure, "Gradient of the loss with respect to the pixels."))
    return reporting.Section(
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
    """Open the sources of the rows that tell the classes of `data` apart, by name."""
    found: dict[str, tuple[Source, NormalizedModel]] = {}
    refused: list[str] = []
    for row in {r.source.digest: r for r in rows}.values():
        path = row.source.path
        if len(found) == _MODELS or not path or not Path(path).exists():
            continue
        try:
            source = _reopened(row)
            classes = open_judged_splits(
                data, resolution=source.resolution
            ).test.classes
            model = source.load()
            if source.num_classes != len(classes):
                raise ConfigError(
                    f"{source.name} has {source.num_classes} outputs, {data} has "
                    f"{len(classes)} classes"
                )
        except FastadvError as error:
            refused.append(str(error))
            continue
        taken = source.name in found
        name = f"{source.name} {source.digest[:8]}" if taken else source.name
        found[name] = source, model.eval()
    if not found:
        why = "; ".join(refused[:3]) or "their files are gone"
        raise ConfigError(f"`examples={data}`: no source can be shown: {why}")
    return found


def _reopened(row: Row) -> Source:
    """Open the source of a row; one that has changed since is a CheckpointError."""
    # Rows of older versions name the file alone, without the options it was opened with.
    stored = row.source
    given = stored.given or stored.path or ""
    source = open_source(given, stored.name, stored.arch)
    if source.digest != stored.digest:
        raise CheckpointError(
            f"{given} is no longer the source of {stored.name}: the weights changed, or "
            "its row does not say the input convention it was opened with"
        )
    return source


def _threat(source: Source) -> ThreatModel | None:
    """Return the threat model that a source was trained in, if it was."""
    return ThreatModel(source.norm or "l2", source.eps) if source.eps else None  # type: ignore[arg-type]


def _images(data: str, side: int) -> tuple[Batch, tuple[str, ...]]:
    """Return a few test images of `side` pixels, and the names of all classes."""
    test = open_judged_splits(data, resolution=side).test
    chosen = subset(test, max(_IMAGES, len(test.classes)), seed=0)
    loader = make_loader(chosen, batch_size=_IMAGES, resolution=side, train=False)
    return next(iter(loader)), test.classes
