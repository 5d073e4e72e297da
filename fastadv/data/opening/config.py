"""Which data set a command opens as it is. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastadv.data.config import dataset_options
from fastadv.flags import Pairs, Positional
from fastadv.machine import usable_cores
from fastadv.ranges import AT_LEAST_0, Checked

if TYPE_CHECKING:
    from fastadv.data.sets.image_set import Damage, DatasetSplits
    from fastadv.data.sets.splitting import SplitSets


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Checked):
    """Which data set is opened as it is, and in how many threads its images are read."""

    data: Positional[str]
    """A name, a path, an address, a pattern of shards, hf:NAME, or torchvision:NAME."""
    root: Path | None = None
    """Folder that holds the folders of named data sets. Default: $FASTADV_DATA, else
    ./data."""
    dataset_option: Pairs = ()
    """Option KEY=VALUE of the data set, for example partition=2."""
    jobs: Annotated[int, AT_LEAST_0] = 0
    """Number of images read at once; 0 stands for one per core."""

    @property
    def threads(self) -> int:
        """Number of images read at once."""
        return self.jobs or usable_cores()

    def open(self, damage: Damage | None = None) -> DatasetSplits:
        """Open the data set; `damage` collects the files that cannot be used."""
        from fastadv.data import open_dataset

        return open_dataset(self.data, damage=damage, **self._options)

    def open_as_stored(self) -> SplitSets:
        """Open the splits that there are, without holding anything out."""
        from fastadv.data.opening.by_name import open_as_stored

        return open_as_stored(self.data, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        options = dataset_options(self.dataset_option)
        if self.root is not None:
            options["root"] = self.root
        return options
