"""From a name or a path to a data set: `open_dataset`, the one door.

Names are looked up first; `./digits` is the folder, `digits` the data set. Nothing is
downloaded unless asked. A new data set is an entry of `catalog.CATALOG`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastadv.data import arrays
from fastadv.data.catalog import CATALOG, default_root, open_entry
from fastadv.data.images import BadImage
from fastadv.data.paths import looks_like_a_path, open_path
from fastadv.data.shapetex import RESOLUTIONS, ShapeTex
from fastadv.data.sources import DatasetSplits
from fastadv.errors import ConfigError, DataError, unknown_name

_PEEKED = 8  # images looked at to learn a data set's size
_HUB = "hf:"


def dataset_names() -> tuple[str, ...]:
    """Return the names `open_dataset` knows; any path works besides."""
    return tuple(sorted({*MADE, *CATALOG}))


def open_dataset(
    name_or_path: str | os.PathLike[str], *, resolution: int = 64, **options: Any
) -> DatasetSplits:
    """Open a data set by name, by path, or from the Hugging Face hub.

    Args:
        name_or_path: One of `dataset_names()`; `hf:NAME`; or a path: a folder or
            `.zip` with `train/<class>/<image>` and one of `val/`, `test/`, `valid/` or
            `validation/`; WebDataset shards, TFRecord, RecordIO, Parquet or Arrow files
            (a folder, a file, or a pattern like `train-{000000..000012}.tar`); `.npz`.
        resolution: Side in pixels at which procedural sets are drawn; stored
            images keep theirs until a loader resizes them.
        **options: Per data set. shapetex: `n_train`, `n_test`, `seed`,
            `correlation`, `test_correlation`, `cache`. Sets on disk: `root`, the
            folder above theirs (default `$FASTADV_DATA`, else ./data); caltech101 and
            caltech256: `split_seed`; dtd and sun397: `partition`. Paths: `metric`,
            `test`, `holdout`, `image_column`, `label_column`. hf: `config`,
            `image_column`, `label_column`, `download`.

    Returns:
        The training split, the evaluation split and the metric to report.

    Raises:
        DataError: There is no such data set, or its layout is wrong.
        ConfigError: An option the data set does not have, or a bad value.

    Example:
        >>> splits = open_dataset("digits")
        >>> len(splits.train), len(splits.test)
        (1297, 500)
    """
    name = os.fspath(name_or_path)
    if name in MADE:
        _check_options(name, options, _keywords(MADE[name]))
        return MADE[name](resolution, **options)
    if name in CATALOG:
        listers = [layout.lister or layout.read for layout in CATALOG[name].layouts]
        accepted = [o for lister in listers for o in _keywords(lister)]
        _check_options(name, options, ["root", *accepted])
        root = options.pop("root", None)
        return open_entry(
            name, default_root() if root is None else Path(root), **options
        )
    if name.startswith(_HUB):
        _check_options(name, options, _keywords(_open_hub))
        return _open_hub(name.removeprefix(_HUB), **options)
    if not looks_like_a_path(name) and not Path(name).expanduser().exists():
        raise DataError(
            f"{unknown_name('data set', name, dataset_names())}; nor is there a folder or "
            f"zip archive of that name in {Path.cwd()}"
        )
    _check_options(name, options, _keywords(open_path))
    return open_path(name, **options)


def native_resolution(name_or_path: str | os.PathLike[str]) -> int | None:
    """Side in pixels of a data set's images, at most 224; None for the drawn ones.

    The median of the shorter sides of a few images spread over the training split.
    """
    name = os.fspath(name_or_path)
    if name.startswith("shapetex"):
        return None
    if name == "digits":
        return 32  # stored at 8 px, which no architecture takes
    if name in CATALOG and CATALOG[name].resolution is not None:
        return CATALOG[name].resolution
    images = open_dataset(name).train
    sides = []
    for index in range(0, len(images), max(1, len(images) // _PEEKED)):
        with contextlib.suppress(BadImage):  # the loader will name it
            sides.append(min(images.load(index).shape[:2]))
    return min(224, sorted(sides)[len(sides) // 2]) if sides else 224


def _keywords(opener: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(opener).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _check_options(name: str, options: dict[str, Any], accepted: list[str]) -> None:
    for option in options:
        if option not in accepted:
            raise ConfigError(
                unknown_name(f"option of data set {name}", option, accepted)
                if accepted
                else f"data set {name} has no options, got {option!r}"
            )


def _open_hub(
    name: str,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    download: bool = False,
    holdout: float = 0.1,
) -> DatasetSplits:
    from fastadv.data.columns import open_hub
    from fastadv.data.paths import pair_splits

    sets = open_hub(
        name,
        config=config,
        image_column=image_column,
        label_column=label_column,
        download=download,
    )
    return DatasetSplits(name, *pair_splits(name, sets, holdout))


def _open_shapetex(label: str) -> Callable[..., DatasetSplits]:
    def opener(
        resolution: int,
        *,
        n_train: int = 4000,
        n_test: int = 1000,
        seed: int = 0,
        correlation: float = 0.0,
        test_correlation: float = 0.0,
        cache: bool = True,
    ) -> DatasetSplits:
        low, high = RESOLUTIONS  # the loader resizes to what lies outside
        common: dict[str, Any] = {
            "seed": seed,
            "resolution": min(max(resolution, low), high),
            "label": label,
            "cache": cache,
        }
        train = ShapeTex(n_train, split="train", correlation=correlation, **common)
        test = ShapeTex(n_test, split="test", correlation=test_correlation, **common)
        return DatasetSplits(train.name, train, test)

    return opener


def _open_digits(resolution: int) -> DatasetSplits:
    return DatasetSplits("digits", *arrays.open_digits())


# Sets that need no files.
MADE: dict[str, Callable[..., DatasetSplits]] = {
    "digits": _open_digits,
    "shapetex": _open_shapetex("shape"),
    "shapetex_texture": _open_shapetex("texture"),
}
