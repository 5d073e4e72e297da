"""Adversarial examples of the sources of a results table, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastadv.errors import ConfigError, FastadvError

if TYPE_CHECKING:
    from fastadv.models import NormalizedModel
    from fastadv.reporting import Section

_MODELS, _IMAGES = 3, 6


def example_section(rows: Sequence[dict[str, Any]], data: str) -> Section:
    """Clean and adversarial images of up to three sources, attacked within one radius.

    Args:
        rows: of the results table; the files they name must still be there.
        data: the data set whose classes the sources tell apart.

    Raises:
        ConfigError: no source has as many outputs as the data set has classes.
        FastadvError: the data set cannot be opened.
    """
    from fastadv.attacks import PGD, ThreatModel
    from fastadv.data import make_loader, open_dataset, subset
    from fastadv.reporting import Section, adversarial_examples, loss_gradients
    from fastadv.transfer.source import open_source

    models: dict[str, NormalizedModel] = {}
    refused: list[str] = []
    side, threat = 0, ThreatModel("l2", 1.0)
    for row in {r["source_hash"]: r for r in rows}.values():
        if len(models) == _MODELS or not Path(row["source_path"]).exists():
            continue
        try:
            source = open_source(row["source_path"], row["source"], row["arch"])
            splits = open_dataset(data, resolution=source.resolution)
            model = source.load()
        except FastadvError as error:
            refused.append(str(error))
            continue
        if model.head.out_features != len(splits.test.classes):
            refused.append(
                f"{source.name} has {model.head.out_features} outputs, {data} has "
                f"{len(splits.test.classes)} classes"
            )
            continue
        models[source.name] = model.eval()
        side = source.resolution
        if source.eps:
            threat = ThreatModel(source.norm or "l2", source.eps)  # type: ignore[arg-type]
    if not models:
        why = "; ".join(refused[:3]) or "their files are gone"
        raise ConfigError(f"--examples {data}: no source can be shown: {why}")
    test = open_dataset(data, resolution=side).test
    shown = subset(test, max(_IMAGES, len(test.classes)), seed=0)
    loader = make_loader(shown, batch_size=_IMAGES, resolution=side, train=False)
    batch = next(iter(loader))
    attack = PGD(threat, num_steps=20, step_size=2.5 * threat.eps / 20)
    pictures = adversarial_examples(
        models, batch.images, batch.labels, test.classes, attack
    )
    gradients = loss_gradients(models, batch.images, batch.labels)
    return Section(
        "Adversarial examples",
        [
            f"Sources attacked with PGD-20 within {threat} on test images of "
            f"{test.name}. A picture of six images is an illustration, not a measurement."
        ],
        [
            (
                pictures,
                "Clean images, adversarial ones, and the difference, amplified.",
            ),
            (gradients, "Gradient of the loss with respect to the pixels."),
        ],
    )
