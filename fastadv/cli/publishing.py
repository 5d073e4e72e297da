"""fastadv-models push and claim: a network for the hub, and for RobustBench."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from fastadv.cli import common
from fastadv.errors import ConfigError
from fastadv.flags import PrintJson
from fastadv.ranges import Checked

if TYPE_CHECKING:
    from fastadv.models.source import Source
    from fastadv.results.row import Row


@dataclass(frozen=True, kw_only=True)
class _Published(Checked):
    """A network with the rows that a results table holds of it."""

    source: Positional[str]
    """The source; see fastadv-models show --help."""
    arch: str | None = None
    """Architecture, if the source does not state it."""
    download: bool = False
    """Download a named source that is not on this machine."""
    results: str = "results"
    """Results table that the numbers are taken from."""

    def open(self) -> tuple[Source, dict[str, Any], list[Row]]:
        """Return the source, everything that is known of it, and its rows."""
        from fastadv.models.listing import describe_source
        from fastadv.models.source import open_source
        from fastadv.reporting.model_card import rows_of
        from fastadv.results.table import ResultsTable

        source = open_source(self.source, arch=self.arch, download=self.download)
        rows: list[Row] = []
        if Path(self.results).is_dir():
            rows = rows_of(ResultsTable.existing(self.results).rows(), source.digest)
        return source, describe_source(source), rows


@dataclass(frozen=True, kw_only=True)
class PushCommand(_Published):
    """Push a source to the Hugging Face hub, with a card written from the results table.

    Anyone then opens it as hf:ORG/NAME. Log in by `hf auth login`, or set HF_TOKEN.
    """

    source: Positional[str]
    """The source; see fastadv-models show --help."""
    repo: Positional[str]
    """Repository of the hub, ORG/NAME; it is made if it does not exist."""
    private: bool = False
    """Make a new repository private."""
    dry_run: bool = False
    """Print the card, and push nothing."""
    json: PrintJson = False


@dataclass(frozen=True, kw_only=True)
class ClaimCommand(_Published):
    """Write the file of model_info that a submission to RobustBench holds.

    Its accuracies are those of the results table, under AutoAttack at the radius of the
    leaderboard. That of ImageNet is measured on a fixed list of 5,000 images, which
    fastadv-eval --image-list robustbench evaluates.
    """

    source: Positional[str]
    """The source; see fastadv-models show --help."""
    out: Positional[Path]
    """File to write, for example Author2026Title.json."""
    dataset: Literal["cifar10", "cifar100", "imagenet"]
    """Data set of the leaderboard."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the leaderboard."""
    title: str
    """Title of the paper."""
    authors: str
    """Authors of the paper, separated by commas."""
    venue: str = "Unpublished"
    """Where the paper was published."""
    link: Annotated[str, arg(metavar="URL")] = ""
    """Address of the paper."""
    additional_data: bool = False
    """Say that the network was trained with data besides the training set."""
    json: PrintJson = False


def push(command: PushCommand) -> int:
    """Push a source to the hub, and print where it is."""
    from fastadv.models.export import export_source
    from fastadv.models.hub import push_folder
    from fastadv.reporting.model_card import model_card

    source, about, rows = command.open()
    card = model_card(about, rows, command.repo)
    if command.dry_run:
        return common.show(command, {"card": card}, card)
    with tempfile.TemporaryDirectory() as folder:
        export_source(source, Path(folder) / "model.safetensors", "safetensors")
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        address = push_folder(
            Path(folder), command.repo, private=command.private, token=None
        )
    text = f"{address}\nopen it as hf:{command.repo}"
    return common.show(command, {"commit": address, "rows": len(rows)}, text)


def claim(command: ClaimCommand) -> int:
    """Write a claim, and print it."""
    from fastadv.files import write_atomic
    from fastadv.reporting.model_card import robustbench_claim

    if command.out.exists():
        raise ConfigError(f"{command.out} exists; choose another file")
    _, about, rows = command.open()
    found = robustbench_claim(
        rows,
        about,
        dataset=command.dataset,
        norm=command.norm,
        link=command.link,
        title=command.title,
        authors=command.authors,
        venue=command.venue,
        additional_data=command.additional_data,
    )
    text = json.dumps(found, indent=2)
    write_atomic(command.out, text.encode() + b"\n")
    return common.show(command, found, text)
