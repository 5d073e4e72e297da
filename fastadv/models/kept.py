"""Networks that rows of a results table keep: `row:IDENTITY` opens them again.

The file of a network whose trunk did not change holds the head and names the source of
the trunk, which is opened again and must have the same weights as then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fastadv.errors import CheckpointError, ConfigError, DataError
from fastadv.files import file_sha256
from fastadv.models.choose_weights import same_tensor
from fastadv.models.normalized import NormalizedModel
from fastadv.results.kept import WEIGHTS

if TYPE_CHECKING:
    from fastadv.results.row import Row
    from fastadv.results.table import ResultsTable

DEFAULT_TABLE = "results"


def changed_tensors(
    model: NormalizedModel, before: NormalizedModel
) -> dict[str, Tensor]:
    """Return the tensors of a network that differ from those of another, by name.

    Args:
        model: The network.
        before: A network of the same architecture.
    """
    old = before.net.state_dict()
    return {
        name: tensor
        for name, tensor in model.net.state_dict().items()
        if name not in old or not same_tensor(tensor, old[name])
    }


def head_alone_trained(model: NormalizedModel, changed: Mapping[str, Tensor]) -> bool:
    """Return whether no parameter outside of the head is among the changed tensors.

    Statistics of BatchNorm are no parameters: they may follow the target while the trunk
    is frozen.
    """
    head = {id(parameter) for parameter in model.head.parameters()}
    return all(
        id(parameter) in head or name not in changed
        for name, parameter in model.net.named_parameters()
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """Which network something was computed from.

    Attributes:
        given: What the user named it by.
        digest: Its digest then.
        arch: Its architecture.
    """

    given: str
    digest: str
    arch: str

    def to_text(self) -> str:
        """Return the record as the text that the header of a file holds."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str, file: Path) -> Origin:
        """Return the record that the header of a file holds.

        Raises:
            CheckpointError: The text is no such record.
        """
        try:
            values = json.loads(text)
            return cls(*(str(values[key]) for key in ("given", "digest", "arch")))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{file} does not say which network its head belongs to ({error}); "
                "compute it again"
            ) from None


@dataclass(frozen=True, slots=True)
class RowNetwork:
    """The network that a row names.

    Attributes:
        name: What tables and figures call it.
        where: A description of the row for error messages.
        kept: The file that the row keeps it in, or the network that the row is about.
    """

    name: str
    where: str
    kept: Path | Origin


def find_row(name: str) -> RowNetwork:
    """Find the network of a row: the one it keeps, or the source that it is about.

    Args:
        name: The identity of the row or its first digits, after the folder of its table
            and a slash; without a folder the table is `results`.

    Raises:
        CheckpointError: There is no such table or file, or the file is damaged.
        ConfigError: No row, or more than one, has an identity that begins so.
    """
    folder, _, begin = name.rpartition("/")
    table, row = _row(Path(folder or DEFAULT_TABLE).expanduser(), begin)
    what = f"the row {str(row.identity)[:8]} of {table.path}"
    source = row.source
    if row.kind != "transfer":
        if source.given is None or source.digest is None:
            raise CheckpointError(f"{what} does not say which network it is about")
        origin = Origin(source.given, source.digest, source.arch or "")
        return RowNetwork(source.name, f"{what} is about", origin)
    again = "run fastadv-transfer with its choices again"
    if row.weights is None:
        why = row.not_kept or "an older version wrote it, or it was not to keep one"
        raise CheckpointError(f"{what} keeps no network ({why}); {again} and `save`")
    file = table.kept.path(WEIGHTS, row.weights)
    if not file.is_file():
        raise CheckpointError(
            f"the weights of {what} were deleted ({file} is gone); {again}"
        )
    if not file_sha256(file).startswith(file.stem):
        raise CheckpointError(
            f"{file}, the weights of {what}, is damaged: its content is not what its "
            f"name says. Delete it, and {again}"
        )
    label = f"{source.name} on {row.setting_label}, seed {row.seed}"
    return RowNetwork(label, what, file)


def _row(folder: Path, begin: str) -> tuple[ResultsTable, Row]:
    """Return the table at a folder and its row whose identity begins with a text."""
    from fastadv.results.table import ResultsTable

    try:
        table = ResultsTable.existing(folder)
    except DataError as error:
        raise CheckpointError(
            f"row:{begin}: {error}; write row:TABLE/IDENTITY, with the folder of the table"
        ) from None
    try:
        rows = table.find(begin)
    except ConfigError as error:
        raise ConfigError(
            f"row:{begin}: {error}; the network of another table is row:TABLE/IDENTITY"
        ) from None
    keeping = [row for row in rows if row.weights is not None]
    return table, (keeping or rows)[-1]
