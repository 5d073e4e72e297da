"""fastadv-data: list, check, describe, pack and unpack data sets."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from fastadv.cli import common
from fastadv.data.opening.config import DatasetConfig
from fastadv.errors import EXIT_FAILED, EXIT_OK, DataError
from fastadv.flags import PrintJson
from fastadv.ranges import ABOVE_0, AT_LEAST_1, Checked

PROG = "fastadv-data"


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """List the data sets known by name."""

    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class StatsCommand(DatasetConfig):
    """Class counts, sizes, mean and std per channel in [0, 1], and what was noticed."""

    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class VerifyCommand(DatasetConfig):
    """Find every corrupt file, and every image that is in both splits; exit 1 if any."""

    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class PackCommand(DatasetConfig):
    """Write a data set as WebDataset shards with index, manifest and checksums.

    If it is killed, the same command continues where it stopped. Over a finished pack it
    replaces what is missing or damaged. The result is the same to the bit.
    """

    data: Positional[str]
    """A name, a path, an address, a pattern of shards, hf:NAME, or torchvision:NAME."""
    out: Positional[Path]
    """Folder to write to."""
    shard_mb: Annotated[int, AT_LEAST_1] = 256
    """Approximate size of a shard in MB."""
    seed: int = 0
    """Random seed of the order of the images in the shards."""
    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class UnpackCommand(Checked):
    """Unpack a zip or tar archive safely: no paths outside, no links, no devices."""

    archive: Positional[Path]
    """The archive."""
    out: Positional[Path]
    """Folder to unpack into; it must not exist, or be empty."""
    max_gb: Annotated[float, ABOVE_0] = 500.0
    """Refuse an archive that unpacks to more than this, in GB."""
    max_files: Annotated[int, AT_LEAST_1] = 20_000_000
    """Refuse an archive of more files than this."""
    json: PrintJson = False


def _list(command: ListCommand) -> int:
    from fastadv.data.opening.by_name import datasets_text, list_datasets

    return common.show(command, list_datasets(), datasets_text())


def _stats(command: StatsCommand) -> int:
    from fastadv.data.files.inspection import noticing, statistics, statistics_text

    with noticing() as notices:
        found = statistics(command.open_as_stored(), notices, jobs=command.threads)
    return common.show(command, found, statistics_text(found))


def _verify(command: VerifyCommand) -> int:
    from fastadv.data.files.inspection import open_and_verify

    findings = open_and_verify(command.data, command.open, command.threads)
    common.show(command, findings.as_dict(), findings.text())
    return EXIT_OK if findings.clean else EXIT_FAILED


def _pack(command: PackCommand) -> int:
    from fastadv.data.files.packing import pack

    def done(name: str) -> None:
        print(f"{PROG}: wrote {name}", file=sys.stderr, flush=True)

    try:
        manifest = pack(
            command.open(),
            command.out,
            shard_bytes=command.shard_mb << 20,
            seed=command.seed,
            jobs=command.threads,
            done=done,
        )
    except OSError as error:
        raise DataError(f"cannot write {command.out}: {error}") from error
    shards = manifest["shards"]
    text = (
        f"{command.out}: {len(shards)} shards, {sum(s['samples'] for s in shards)} images, "
        f"{sum(s['bytes'] for s in shards) / 1e6:.1f} MB"
    )
    return common.show(command, manifest, text)


def _unpack(command: UnpackCommand) -> int:
    from fastadv.data.files.archives import unpack

    most = int(command.max_gb * 1e9)
    files, size = unpack(
        command.archive, command.out, max_bytes=most, max_files=command.max_files
    )
    text = f"{command.out}: {files} files, {size / 1e6:.1f} MB"
    return common.show(command, {"files": files, "bytes": size}, text)


_COMMANDS: common.Commands = {
    "list": (ListCommand, _list),
    "pack": (PackCommand, _pack),
    "stats": (StatsCommand, _stats),
    "unpack": (UnpackCommand, _unpack),
    "verify": (VerifyCommand, _verify),
}
main = functools.partial(common.run_commands, PROG, __doc__, _COMMANDS)

if __name__ == "__main__":
    raise SystemExit(main())
