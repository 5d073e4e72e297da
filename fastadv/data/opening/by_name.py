"""`open_dataset` opens a data set by its name, or hands a path to `by_path`; lists names.

Names are looked up first; `./digits` is the folder, `digits` the data set.
"""

from __future__ import annotations

import contextlib
import inspect
import numbers
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastadv.data.files.parquet import open_hub
from fastadv.data.files.patterns import looks_like_a_path
from fastadv.data.handed_in import SCHEME, handed_in
from fastadv.data.metric import check_metric
from fastadv.data.opening.by_path import open_path
from fastadv.data.sets import arrays
from fastadv.data.sets.catalog import CATALOG, default_root, open_entry
from fastadv.data.sets.exchanged import exchange_textures
from fastadv.data.sets.image_set import Damage, DatasetSplits, sampled_sizes
from fastadv.data.sets.objects import open_objects, open_torchvision
from fastadv.data.sets.shapetex import RESOLUTIONS, ShapeTex
from fastadv.data.sets.splitting import SplitSets
from fastadv.errors import ConfigError, DataError, unknown_name
from fastadv.text_tables import text_table

# Types of options that text is turned into, and what is taken for them.
_VALUES: dict[type[Any], tuple[type[Any], str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
}
_TRUTH = {"true": True, "false": False}
_SAMPLE = 8  # images looked at to learn a data set's size
_HUB, _TORCHVISION = "hf:", "torchvision:"
_OBJECT = "<object>"  # what stands for the name of an object that was handed in
_COLUMNS = ("classes", "train", "test", "metric", "splits", "licence", "citation")


def dataset_names() -> tuple[str, ...]:
    """Return the names that `open_dataset` knows; it also takes any path."""
    return tuple(sorted({*BUILT_IN, *CATALOG}))


def open_dataset(
    given: str | os.PathLike[str] | Any,
    *,
    resolution: int = 64,
    damage: Damage | None = None,
    **options: Any,
) -> DatasetSplits:
    """Open a data set by name, by path, from a hub, or handed in as an object.

    Args:
        given: One of `dataset_names()`; `hf:NAME`; `torchvision:NAME`; a path or an
            address; or a map-style data set of (PIL image, uint8 tensor, or float tensor
            in [0, 1]; label), or a dictionary of such by split. A path is a folder or
            `.zip` of images with `train/<class>/<image>` and `val/` or `test/` in any
            usual spelling, with lists of labels beside flat folders, or with folders of
            classes alone, of which a part is held out; WebDataset shards, TFRecord,
            RecordIO, Parquet or Arrow files (a folder, a file, or a pattern like
            `train-{000000..000012}.tar`); or arrays (.npz, .npy, .mat, CIFAR, idx).
        resolution: Side in pixels at which procedural sets are drawn; stored
            images keep theirs until a loader resizes them.
        damage: List to which missing and unusable files of a path are added, as (file,
            reason), and left out. With None, they raise an error.
        **options: Per data set; numbers and booleans may be text, as of a command
            line. shapetex: `n_train`, `n_test`, `seed`, `correlation`,
            `test_correlation`, `cache`. Sets on disk: `root`, the
            folder above theirs (default `$FASTADV_DATA`, else ./data); caltech101 and
            caltech256: `split_seed`; dtd and sun397: `partition`. Paths: see `open_path`.
            hf: see `open_hub`. All: `texture` and `texture_seed`, see
            `exchange_textures`; and `metric`, the accuracy to report: `top1`,
            `mean_per_class`, or one of your own, a function (logits [N, K], labels [N])
            -> number in [0, 1] or its `module:name`.

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
    sets, name, view = _opened(given, resolution, damage, options)
    return exchange_textures(sets.pair(damage), **_checked(name, view))


def open_judged_splits(
    given: str | os.PathLike[str] | Any,
    *,
    resolution: int = 64,
    **options: Any,
) -> DatasetSplits:
    """Open the data set that a network is judged on, as `test` of what is returned.

    It takes the arguments of `open_dataset`. Of data with one split that is no training
    split, `test` is all of it, and so is `train`; otherwise it is the evaluation split.

    Raises:
        DataError, ConfigError: As of `open_dataset`.
    """
    sets, name, view = _opened(given, resolution, None, options)
    return exchange_textures(sets.judged(), **_checked(name, view))


def open_as_stored(
    given: str | os.PathLike[str] | Any, *, resolution: int = 64, **options: Any
) -> SplitSets:
    """Open the splits that a data set has, without holding anything out or checking classes.

    It takes the arguments of `open_dataset`. With the option `holdout` or a texture, the
    splits are those that `open_dataset` makes.

    Raises:
        DataError, ConfigError: As of `open_dataset`.
    """
    makes = "holdout" in options
    sets, name, view = _opened(given, resolution, None, options)
    if view or makes:
        pair = exchange_textures(sets.pair(), **_checked(name, view))
        return _both(pair)
    return sets


def _opened(
    given: Any, resolution: int, damage: Damage | None, options: dict[str, Any]
) -> tuple[SplitSets, str, dict[str, Any]]:
    """Return the splits, the name of the data set, and options of its texture."""
    name = os.fspath(given) if isinstance(given, str | os.PathLike) else _OBJECT
    if name.startswith(SCHEME):
        given, name = handed_in(name), _OBJECT
    metric = options.get("metric")
    if metric is not None:
        metric = options["metric"] = check_metric(metric)
        if open_path not in _openers(name):
            del options["metric"]  # it is the same of all sets but paths
    view = {
        key: options.pop(key) for key in _options(exchange_textures) if key in options
    }
    if name == _OBJECT:
        sets = open_objects(given, **_checked(name, options))
    else:
        sets = _open(name, resolution, damage, options)
    return sets if metric is None else replace(sets, metric=metric), name, view


def _open(
    name: str, resolution: int, damage: Damage | None, options: dict[str, Any]
) -> SplitSets:
    """Open a data set as it is stored or drawn."""
    if name in BUILT_IN:
        return _both(BUILT_IN[name](resolution, **_checked(name, options)))
    if name in CATALOG:
        options = _checked(name, options)
        root = options.pop("root", None)
        return _both(
            open_entry(name, default_root() if root is None else Path(root), **options)
        )
    if name.startswith(_HUB):
        return open_hub(name.removeprefix(_HUB), **_checked(name, options))
    if name.startswith(_TORCHVISION):
        own = _checked(name, options)
        return open_torchvision(name.removeprefix(_TORCHVISION), **own)
    if not looks_like_a_path(name) and not Path(name).expanduser().exists():
        raise DataError(
            f"{unknown_name('data set', name, dataset_names())}; nor is there a folder or "
            f"zip archive of that name in {Path.cwd()}"
        )
    return open_path(name, damage, **_checked(name, options))


def _both(splits: DatasetSplits) -> SplitSets:
    """Return the splits of a set that is always there as a pair, to be paired again."""
    sets = {"train": splits.train, "test": splits.test}
    return SplitSets(splits.name, sets, splits.metric, checked=False)


def native_resolution(
    name_or_path: str | os.PathLike[str] | Any, opened: DatasetSplits | None = None
) -> int | None:
    """Return the side of a data set's images in pixels, at most 224; None for drawn ones.

    It is the median of the shorter sides of a few images spread over the training split.

    Args:
        name_or_path: A name or a path that `open_dataset` takes.
        opened: The data set, if it is open already.
    """
    known = isinstance(name_or_path, str | os.PathLike)
    name = os.fspath(name_or_path) if known else _OBJECT
    if name.startswith("shapetex"):
        return None
    if name == "digits":
        return 32  # stored at 8 px, which no architecture takes
    if name in CATALOG and CATALOG[name].resolution is not None:
        return CATALOG[name].resolution
    images = (opened or open_dataset(name_or_path)).train
    sides = sorted(map(min, sampled_sizes(images, _SAMPLE)))
    return min(224, sides[len(sides) // 2]) if sides else 224


def _rooted(*, root: str | None = None) -> None:
    """Declare, by its signature, the option that every set of the catalogue has."""


def _measured(*, metric: str | None = None) -> None:
    """Declare, by its signature, the option that every data set has."""


def option_names(name: str) -> list[str]:
    """Return the options of a data set: a known name, `hf:...` or a path."""
    return list(_kinds(name))


def _kinds(name: str) -> dict[str, Any]:
    """Return the options of a data set, which are keywords of its openers, and types."""
    found: dict[str, Any] = {}
    shared: list[Callable[..., Any]] = [_measured, exchange_textures]
    for each in (*_openers(name), *shared):
        found |= _options(each)
    return found


def _openers(name: str) -> list[Callable[..., Any]]:
    """Return the functions whose keywords are the options of a data set."""
    openers: list[Callable[..., Any]] = [open_path]
    if name == _OBJECT:
        openers = [open_objects]
    for scheme, opener in ((_HUB, open_hub), (_TORCHVISION, open_torchvision)):
        if name.startswith(scheme):
            openers = [opener]
    if name in BUILT_IN:
        openers = [BUILT_IN[name]]
    elif name in CATALOG:
        layout = CATALOG[name].layout
        openers = [_rooted, layout.lister or layout.read] if layout else [_rooted]
    return openers


def _options(opener: Callable[..., Any]) -> dict[str, Any]:
    """Return the keywords of a function, and their types."""
    return {
        p.name: get_type_hints(opener)[p.name]
        for p in inspect.signature(opener).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _checked(name: str, options: dict[str, Any]) -> dict[str, Any]:
    kinds = _kinds(name)
    for option in options:
        if option not in kinds:
            raise ConfigError(unknown_name(f"option of data set {name}", option, kinds))
    return {key: _typed(name, key, v, kinds[key]) for key, v in options.items()}


def _typed(name: str, option: str, value: Any, hint: Any) -> Any:
    kinds = get_args(hint) or (hint,)  # of `int | None`: both
    kind = next((k for k in _VALUES if k in kinds), None)
    if kind is None or (value is None and type(None) in kinds):
        return value
    general, accepted = _VALUES[kind]
    if isinstance(value, str):
        with contextlib.suppress(ValueError, KeyError):
            value = _TRUTH[value.lower()] if kind is bool else kind(value)
    if not isinstance(value, general):
        raise ConfigError(
            f"option {option}={value!r} of data set {name}: expected {accepted}"
        )
    return value


def _open_shapetex(label: str, bold: bool = False) -> Callable[..., DatasetSplits]:
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
            "bold": bold,
            "cache": cache,
        }
        train = ShapeTex(n_train, split="train", correlation=correlation, **common)
        test = ShapeTex(n_test, split="test", correlation=test_correlation, **common)
        return DatasetSplits(train.name, train, test)

    return opener


# Sets that need no files.
BUILT_IN: dict[str, Callable[..., DatasetSplits]] = {
    "digits": lambda resolution: DatasetSplits("digits", *arrays.open_digits()),
    "shapetex": _open_shapetex("shape"),
    "shapetex_bold": _open_shapetex("shape", bold=True),
    "shapetex_texture": _open_shapetex("texture"),
}


def list_datasets() -> dict[str, dict[str, Any]]:
    """Return what is known of each named data set, by its name."""
    known: dict[str, dict[str, Any]] = {}
    for name in dataset_names():
        facts: dict[str, Any] = {"made": True}
        if name in CATALOG:
            layout = CATALOG[name].layout
            files = [list(layout.needs)] if layout else []
            facts = CATALOG[name].facts() | {"files": files}
        known[name] = facts | {"options": option_names(name)}
    return known


def datasets_text() -> str:
    """Return the table of named data sets, their options and the folder of their files."""
    cells = [
        [name, *(entry.facts()[column] for column in _COLUMNS)]
        for name, entry in sorted(CATALOG.items())
    ]
    holders: dict[str, list[str]] = {}
    for name in (*dataset_names(), "hf:NAME", "torchvision:NAME", "a path"):
        for option in option_names(name):
            holders.setdefault(option, []).append(name)
    lines = [
        text_table(["name", *_COLUMNS[:-1], "cite"], cells),
        f"made without files: {', '.join(sorted(BUILT_IN))}",
        "options, as --dataset-option KEY=VALUE:",
    ]
    for option, names in holders.items():
        every_file = set(CATALOG) <= set(names)
        owners = "every set of files" if every_file else ", ".join(names)
        if len(names) == len(dataset_names()) + 3:
            owners = "every data set"
        lines.append(f"  {option}: {owners}")
    folder = default_root().absolute()
    return "\n".join([*lines, f"looked for in: {folder} (FASTADV_DATA, or --root)"])
