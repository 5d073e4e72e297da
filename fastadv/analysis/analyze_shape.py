"""The analysis of shape and texture: which cue a network's decisions follow."""

from __future__ import annotations

import json
import logging
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from fastadv.analysis.config import ShapeConfig
from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.cues import prepare_cues
from fastadv.analysis.decisions import finite_logits
from fastadv.analysis.images import options_for, seen_by
from fastadv.analysis.portions import count_batches, numbered_batches
from fastadv.analysis.shape import conflict_of, decide, shape_bias
from fastadv.data import Batch, make_loader
from fastadv.data.sets.folders import open_all
from fastadv.data.sets.image_set import FileSet
from fastadv.data.sets.subsets import Subset
from fastadv.errors import ConfigError, DataError
from fastadv.evaluation.class_map import output_names
from fastadv.evaluation.rows import source_record, target_record
from fastadv.models.source import Source, open_source
from fastadv.models.view import AttackView
from fastadv.results.analysis_settings import ShapeSetting
from fastadv.results.portions import Portions
from fastadv.statistics import wilson

log = logging.getLogger(__name__)

CATEGORIES = "categories16.json"  # Beside the images, unless another file is given.


def prepare(config: ShapeConfig, name: str) -> Analysis:
    """Prepare to count decisions for the shape and the texture of cue conflict images.

    shapetex and data sets with exchanged textures are left to `prepare_cues`. Of the
    images of a folder or an archive, those count whose shape and texture are of different
    categories that the network knows classes of.

    Args:
        config: The choices.
        name: The source, one of `config.source`.

    Returns:
        The analysis. Its rows are the share of shape decisions among those for either cue
        (`shape_share`), and the share of decisions for either cue (`cued_share`), in
        percent. Arrays beside them: `images`, names; `decisions`, categories that were
        decided.

    Raises:
        CheckpointError, DataError, ConfigError: The source or the images are unusable, or
            the source knows fewer than two of the categories.
    """
    if config.data.startswith("shapetex") or "texture" in config.options:
        return prepare_cues(config, name)
    source = open_source(name, download=config.download)
    path = Path(config.data).expanduser()
    every = open_all(path)
    categories = known_categories(source, _read_categories(config, path))
    chosen = _conflicts(every, categories)
    images = seen_by(source, Subset(every, chosen))
    options = options_for(source, every, config)

    def classify(first: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        view = AttackView(source.load().eval().to(options.device))
        loader = make_loader(images, **vars(options))
        for number, batch in numbered_batches(loader, first):
            rows = batch.indices.cpu().numpy()
            yield (
                number,
                {
                    "rows": rows,
                    "probabilities": _probabilities(view, batch, source.name),
                },
            )

    def compute(portions: Portions) -> Findings:
        total = count_batches(images, options)
        key = f"batches-of-{config.batch_size}"
        found = list(portions.each(key, total, classify))
        decisions = decide(
            np.concatenate([each["probabilities"] for each in found]), categories
        )
        rows = np.concatenate([each["rows"] for each in found])
        names = [_stem(every.members[chosen[row]]) for row in rows]
        bias = shape_bias(zip(names, decisions, strict=True))
        low, high = bias.interval()
        cued = bias.shape + bias.texture
        least, most = wilson(cued, len(names))
        if not cued:
            raise ConfigError(f"{name}: no decision is for the shape or the texture")
        numbers = [
            Measured("shape_share", 100 * bias.share, 100 * low, 100 * high, cued),
            Measured(
                "cued_share", 100 * bias.cued, 100 * least, 100 * most, n=len(names)
            ),
        ]
        arrays = {"images": np.array(names), "decisions": np.array(decisions)}
        return Findings(numbers, arrays)

    return Analysis(
        source=source_record(source),
        target=target_record(images, options.resolution),
        setting=ShapeSetting(
            num_images=len(images),
            categories=tuple(sorted(categories)),
            preparation=options.preparation,
        ),
        compute=compute,
        seed=config.seed,
    )


def _probabilities(view: AttackView, batch: Batch, name: str) -> NDArray[np.float32]:
    found = finite_logits(view, batch.images.float() / 255, name).softmax(1)
    return np.asarray(found.cpu().numpy())


def _stem(member: str) -> str:
    return PurePosixPath(member).stem


def _conflicts(images: FileSet, categories: Mapping[str, Sequence[int]]) -> list[int]:
    """Return the positions of images whose two cues are different known categories."""
    cues = {i: conflict_of(_stem(name)) for i, name in enumerate(images.members)}
    named = [i for i, each in cues.items() if each is not None]
    if not named:
        raise DataError(
            f"{images.name} has no cue conflict images, which are called for example "
            "airplane1-bicycle2.png: shape and texture, a number behind each"
        )
    found = [
        i
        for i in named
        if (each := cues[i]) and {each.shape, each.texture} <= categories.keys()
    ]
    if not found:
        raise ConfigError(
            f"no image of {images.name} has two of the categories that the network knows: "
            f"{', '.join(sorted(categories))}"
        )
    unknown = {cue for i in named if (each := cues[i]) for cue in vars(each).values()}
    if unknown := unknown - categories.keys():
        log.warning(
            "%d of %d images with a conflict are left out: the network knows no class of %s",
            len(named) - len(found),
            len(named),
            ", ".join(sorted(unknown)),
        )
    return found


def _read_categories(config: ShapeConfig, path: Path) -> dict[str, list[str]]:
    """Return the class names of each category."""
    where = f"{path}/{CATEGORIES}"
    try:
        if config.categories is not None:
            where = config.categories
            text = Path(where).expanduser().read_text()
        elif path.is_dir():
            text = (path / CATEGORIES).read_text()
        else:
            with zipfile.ZipFile(path) as archive:
                text = archive.read(CATEGORIES).decode()
        found: Mapping[str, list[object]] = json.loads(text)
        for name, classes in found.items():
            if not isinstance(classes, list):
                raise ValueError(
                    f"{name!r} has {classes!r} instead of a list of classes"
                )
        named = {name: [str(c) for c in classes] for name, classes in found.items()}
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"the categories of the images cannot be read from {where}: {error}; "
            "`categories` names a JSON file of class names by category, for example "
            '{"bear": ["n02132136", "n02133161"], "clock": ["n04548280"]}'
        ) from None
    of_class = Counter(c for classes in named.values() for c in set(classes))
    if shared := sorted(c for c, count in of_class.items() if count > 1):
        raise DataError(
            f"{where} lists {', '.join(shared[:5])} under more than one category; a class "
            "decides for one"
        )
    return named


def known_categories(
    source: Source, categories: Mapping[str, Sequence[str]]
) -> dict[str, list[int]]:
    """Return the classes of the network in each category that it has any of.

    Args:
        source: The network. Where the names of its classes are unknown and there are a
            thousand, they are those of ImageNet.
        categories: Names of classes (for example WordNet identifiers) by category; a
            class that is called like a category belongs to it, too.

    Raises:
        ConfigError: The names of the classes are unknown, or the network knows fewer than
            two categories.
    """
    if not (names := output_names(source)):
        raise ConfigError(
            f"{source.name} does not state the names of its {source.num_classes} classes, "
            "by which they belong to categories (those of ImageNet's classes come with "
            "timm: pip install 'fastadv[timm]')"
        )
    found = {
        category: [
            i for i, name in enumerate(names) if name == category or name in classes
        ]
        for category, classes in categories.items()
    }
    found = {category: classes for category, classes in found.items() if classes}
    if len(found) < 2:
        raise ConfigError(
            f"{source.name} knows classes of {len(found)} of the categories "
            f"{', '.join(sorted(categories))}; a conflict needs two"
        )
    return found
