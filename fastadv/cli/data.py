"""fastadv-data: list, check, describe, pack and unpack data sets."""

from __future__ import annotations

import dataclasses
import json as json_module
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from fastadv.cli import common
from fastadv.data.dataset_options import dataset_options
from fastadv.errors import (
    EXIT_FAILED,
    EXIT_OK,
    ConfigError,
    DataError,
)
from fastadv.machine import usable_cores

if TYPE_CHECKING:
    from fastadv.data import DatasetSplits
    from fastadv.data.sets.image_set import Damage

PROG = "fastadv-data"
_SHOWN = 20  # findings of a kind printed; --json has all

Jobs = Annotated[int, arg(help="Images read at once; 0: one per core.")]
Json = Annotated[bool, arg(help="Print one JSON object.")]
Root = Annotated[
    Path | None,
    arg(help="Folder above that of a named data set; default $FASTADV_DATA or ./data."),
]
DatasetOption = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(help="KEY=VALUE of the data set, e.g. partition=2; may be repeated."),
]


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """List the data sets known by name."""

    json: Json = False


@dataclass(frozen=True, kw_only=True)
class StatsCommand:
    """Class counts, sizes, and mean and std per channel in [0, 1], for both splits."""

    data: Positional[str]
    """A name, a path, a pattern of shards, or hf:NAME."""
    root: Root = None
    dataset_option: DatasetOption = ()
    jobs: Jobs = 0
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class VerifyCommand(StatsCommand):
    """Find every corrupt file, and every image that is in both splits; exit 1 if any."""


@dataclass(frozen=True, kw_only=True)
class PackCommand:
    """Write a data set as WebDataset shards with index, manifest and checksums.

    Killed at any moment, the same command goes on where it was, and over a pack it mends
    what is missing or damaged; the result is the same to the bit.
    """

    data: Positional[str]
    """A name, a path, a pattern of shards, or hf:NAME."""
    out: Positional[Path]
    """Folder to write to."""
    shard_mb: int = 256
    """Size of a shard, about, in MB."""
    seed: int = 0
    """Order of the images in the shards."""
    root: Root = None
    dataset_option: DatasetOption = ()
    jobs: Jobs = 0
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class UnpackCommand:
    """Unpack a zip or tar archive safely: no paths outside, no links, no devices."""

    archive: Positional[Path]
    """The archive."""
    out: Positional[Path]
    """Folder to make."""
    max_gb: float = 500.0
    """Refuse an archive that unpacks to more, in GB."""
    max_files: int = 20_000_000
    """Refuse an archive of more files."""
    json: Json = False


def _open(
    command: StatsCommand | VerifyCommand | PackCommand, damage: Damage | None = None
) -> DatasetSplits:
    if command.jobs < 0:
        raise ConfigError(f"--jobs {command.jobs}: use 0 or more")

    from fastadv.data import open_dataset

    options = dataset_options(command.dataset_option)
    if command.root is not None:
        options["root"] = command.root
    return open_dataset(command.data, damage=damage, **options)


def _jobs(given: int) -> int:
    return given or usable_cores()


def _list(command: ListCommand) -> int:
    from fastadv.data.opening.by_name import BUILT_IN, dataset_names, option_names
    from fastadv.data.sets.catalog import CATALOG, default_root
    from fastadv.text_tables import text_table

    if command.json:
        rows = {name: _entry(name) for name in dataset_names()}
        print(json_module.dumps(rows))
        return EXIT_OK
    columns = [
        "name",
        "classes",
        "train",
        "test",
        "metric",
        "splits",
        "licence",
        "cite",
    ]
    cells: list[list[Any]] = [
        [name, e.classes, e.train, e.test, e.metric, e.splits, e.licence, e.citation]
        for name, e in sorted(CATALOG.items())
    ]
    print(text_table(columns, cells))
    print(f"made without files: {', '.join(sorted(BUILT_IN))}")
    print("options, as --dataset-option KEY=VALUE:")
    holders: dict[str, list[str]] = {}
    for name in (*dataset_names(), "hf:NAME", "a path"):
        for option in option_names(name):
            holders.setdefault(option, []).append(name)
    for option, names in holders.items():
        everywhere = set(CATALOG) <= set(names)
        print(f"  {option}: {'every set of files' if everywhere else ', '.join(names)}")
    print(f"looked for in: {default_root().absolute()} (FASTADV_DATA, or --root)")
    return EXIT_OK


def _entry(name: str) -> dict[str, Any]:
    from fastadv.data.opening.by_name import option_names
    from fastadv.data.sets.catalog import CATALOG

    entry = CATALOG.get(name)
    options = option_names(name)
    if entry is None:
        return {"made": True, "options": options}
    values = {
        field.name: getattr(entry, field.name)
        for field in dataclasses.fields(entry)
        if field.name != "layouts"
    }
    files = [list(layout.needs) for layout in entry.layouts]
    return values | {"files": files, "options": options}


def _stats(command: StatsCommand) -> int:
    from fastadv.data.files.inspection import statistics

    found = statistics(_open(command), jobs=_jobs(command.jobs))
    if command.json:
        print(json_module.dumps(found))
        return EXIT_OK
    print(f"{found['name']} (metric {found['metric']})")
    for split, values in found["splits"].items():
        counts = list(values["classes"].values())
        print(
            f"{split}: {values['images']} images, {len(counts)} classes of "
            f"{min(counts)} to {max(counts)}"
        )
        if values["bad_images"]:
            print(f"  {values['bad_images']} cannot be decoded: see {PROG} verify")
        for side in ("width", "height"):
            spread = values[side]
            print(
                f"  {side:6} {spread['min']} to {spread['max']} px, median "
                f"{spread['median']:g}"
            )
        for what in ("mean", "std"):
            print(f"  {what:6} " + " ".join(f"{v:.4f}" for v in values[what]))
    return EXIT_OK


def _verify(command: VerifyCommand) -> int:
    from fastadv.data.files.inspection import Findings, verify

    damage: Damage = []
    try:
        splits = _open(command, damage)
    except DataError as error:
        if not damage:
            raise
        # Too little is left to be opened; what is wrong with the rest is known.
        findings = Findings(corrupt=[*damage, (command.data, str(error))])
    else:
        findings = verify(splits, jobs=_jobs(command.jobs), damage=damage)
    if command.json:
        print(json_module.dumps(findings.as_dict()))
        return EXIT_OK if findings.clean else EXIT_FAILED
    _show("corrupt", [f"{name}: {reason}" for name, reason in findings.corrupt])
    _show(
        "in both splits",
        [f"{a} = {b} (equal {how})" for a, b, how in findings.duplicates],
    )
    for split, count in findings.images.items():
        repeated = findings.repeated[split]
        more = f", {repeated} of them repeated within the split" if repeated else ""
        print(f"{split}: {count} images{more}")
    print("clean" if findings.clean else "not clean")
    return EXIT_OK if findings.clean else EXIT_FAILED


def _show(what: str, lines: list[str]) -> None:
    if lines:
        print(f"{what}: {len(lines)}")
        for line in lines[:_SHOWN]:
            print(f"  {line}")
        if len(lines) > _SHOWN:
            print(f"  and {len(lines) - _SHOWN} more; --json lists all")


def _pack(command: PackCommand) -> int:
    if command.shard_mb < 1:
        raise ConfigError(f"--shard-mb {command.shard_mb}: use 1 or more")

    from fastadv.data.files.packing import pack

    splits = _open(command)

    def done(name: str) -> None:
        print(f"{PROG}: wrote {name}", file=sys.stderr, flush=True)

    try:
        manifest = pack(
            splits,
            command.out,
            shard_bytes=command.shard_mb << 20,
            seed=command.seed,
            jobs=_jobs(command.jobs),
            done=done,
        )
    except OSError as error:
        raise DataError(f"cannot write {command.out}: {error}") from error
    if command.json:
        print(json_module.dumps(manifest))
        return EXIT_OK
    shards = manifest["shards"]
    print(
        f"{command.out}: {len(shards)} shards, {sum(s['samples'] for s in shards)} images, "
        f"{sum(s['bytes'] for s in shards) / 1e6:.1f} MB"
    )
    return EXIT_OK


def _unpack(command: UnpackCommand) -> int:
    if command.max_gb <= 0 or command.max_files < 1:
        raise ConfigError("--max-gb and --max-files must be positive")

    from fastadv.data.files.archives import unpack

    files, size = unpack(
        command.archive,
        command.out,
        max_bytes=int(command.max_gb * 1e9),
        max_files=command.max_files,
    )
    if command.json:
        print(json_module.dumps({"files": files, "bytes": size}))
    else:
        print(f"{command.out}: {files} files, {size / 1e6:.1f} MB")
    return EXIT_OK


_COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "list": (ListCommand, _list),
    "pack": (PackCommand, _pack),
    "stats": (StatsCommand, _stats),
    "unpack": (UnpackCommand, _unpack),
    "verify": (VerifyCommand, _verify),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run_commands(PROG, __doc__ or "", _COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main())
