"""fastadv-models: list networks, describe checkpoints, and hand them on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from fastadv.cli import common
from fastadv.cli.publishing import ClaimCommand, PushCommand, claim, push
from fastadv.errors import ConfigError
from fastadv.flags import PrintJson
from fastadv.models.architecture_names import EXPORT_FORMATS, check_export
from fastadv.ranges import AT_LEAST_1, Checked

if TYPE_CHECKING:
    from fastadv.models.source import Source

PROG = "fastadv-models"


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """List architectures or published networks, and which files are on this machine.

    'salman2020:*' lists the checkpoints of Salman et al. 2020 with their ImageNet
    accuracies, 'robustbench:*' networks of RobustBench.
    """

    pattern: Positional[str] = "*"
    """Name, which may have wildcards: 'resnet*'; 'timm/resnet*' lists those of timm."""
    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class SourceFlags(Checked):
    """The network that is opened."""

    source: Positional[str]
    """The source; see above, or fastadv-models show --help."""
    arch: str | None = None
    """Architecture, if the source does not state it."""
    download: bool = False
    """Download a named source that is not on this machine."""

    def open(self) -> Source:
        """Open the source, from a file or by name."""
        from fastadv.models.source import open_source

        return open_source(self.source, arch=self.arch, download=self.download)


@dataclass(frozen=True, kw_only=True)
class ShowCommand(SourceFlags):
    """Show what is known of a source: architecture, classes, input, training, hashes.

    A source is a run directory, a checkpoint file, torchvision:resnet18/IMAGENET1K_V1,
    timm:NAME, hf:ORG/NAME (or hf:ORG/NAME/FILE, hf:ORG/NAME@REVISION), package:NAME,
    row:IDENTITY (or row:TABLE/IDENTITY, the network of a row of a results table),
    salman2020:resnet50_l2_eps3 or robustbench:Salman2020Do_R50 (fastadv-models list
    'salman2020:*' and 'robustbench:*' name them). What it does not state can be added:
    ,arch=NAME ,input=imagenet|half|unit|caffe ,norm=linf ,eps=4/255
    ,kind=standard|robust|texture|other ,name=NAME. Nothing is downloaded without
    --download, or ,download=true after the name.
    """

    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class ConvertCommand(SourceFlags):
    """Write a source as another program reads it, with a JSON card beside it."""

    source: Positional[str]
    """The source; see fastadv-models show --help."""
    out: Positional[Path]
    """File to write; for timm a folder."""
    to: Annotated[str, arg(metavar="{" + ",".join(EXPORT_FORMATS) + "}")]
    """Format to write."""
    resolution: Annotated[int | None, AT_LEAST_1] = None
    """Side of the images in pixels that timm and onnx state. Default: that of the
    source."""
    force: bool = False
    """Replace the file at OUT, and those that belong to it."""
    json: PrintJson = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_export(self.to, self.out)


def _list(command: ListCommand) -> int:
    from fastadv.models.listing import (
        architectures_text,
        list_architectures,
        list_published,
        published_text,
    )
    from fastadv.reporting.literature import accuracy_of_file

    if command.pattern.startswith(("salman2020:", "robustbench:")):
        rows = list_published(command.pattern)
        for name, row in rows.items():
            file = name.partition(":")[2] + ".ckpt"
            row["imagenet_accuracy"] = accuracy_of_file(file)
        return common.show(command, rows, published_text(rows))
    rows = list_architectures(command.pattern)
    return common.show(command, rows, architectures_text(rows))


def _show(command: ShowCommand) -> int:
    from fastadv.models.listing import describe_source, source_text

    about = describe_source(command.open())
    return common.show(command, about, source_text(about))


def _convert(command: ConvertCommand) -> int:
    from fastadv.models.export import export_source, files_beside

    for path in (command.out, *files_beside(command.out, command.to)):
        if path.exists() and not command.force:
            raise ConfigError(f"{path} exists; add `force` to replace it")
    written = export_source(
        command.open(), command.out, command.to, resolution=command.resolution
    )
    files = [str(path) for path in written]
    text = "\n".join([*files, EXPORT_FORMATS[command.to]])
    return common.show(command, {"files": files}, text)


_COMMANDS: common.Commands = {
    "list": (ListCommand, _list),
    "show": (ShowCommand, _show),
    "convert": (ConvertCommand, _convert),
    "push": (PushCommand, push),
    "claim": (ClaimCommand, claim),
}
main = functools.partial(common.run_commands, PROG, __doc__, _COMMANDS)

if __name__ == "__main__":
    raise SystemExit(main())
