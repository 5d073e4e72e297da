"""Hugging Face data sets: local Parquet and Arrow files, or a name on the hub.

Arrow files are mapped into memory. Parquet has no cheap access to one row: it is copied
once into an Arrow file in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastadv.data.cache import file_key
from fastadv.data.files.patterns import fetch_hint
from fastadv.data.files.records import read_splits, resolve_labels
from fastadv.data.sets.image_set import (
    Damage,
    DatasetSplits,
    FileSet,
    ImageSet,
    option_hint,
)
from fastadv.data.sets.subsets import pair_splits
from fastadv.errors import ConfigError, DataError, unknown_name
from fastadv.files import atomic, fastadv_cache_dir

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGES = ("image", "img", "jpg", "png", "pixel_values")
_LABELS = ("label", "labels", "fine_label", "class", "cls", "target")
_ROWS = 256  # converted at once: bounds memory, and what one damaged file costs


class ColumnSet(FileSet):
    """One split whose encoded images are a column of a table.

    It takes the arguments of `FileSet`, the table, and the name of the image column, which
    holds bytes or a struct with `bytes`.
    """

    def __init__(
        self,
        name: str,
        split: str,
        classes: Sequence[str],
        labels: NDArray[np.int64],
        table: Any,
        column: str,
    ) -> None:
        members = [f"{split}/{i:08d}" for i in range(len(labels))]
        super().__init__(name, split, classes, members, labels)
        self.table, self.column = table, column


class ArrowSet(ColumnSet):
    """A split of Arrow files, whose list is its `table`; they are mapped when first read."""

    _images: pa.ChunkedArray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_images": None}

    def _column(self) -> pa.ChunkedArray:
        if self._images is None:
            import pyarrow as pa

            parts = [_bytes_of(_mapped(file)[self.column]) for file in self.table]
            self._images = pa.chunked_array([c for p in parts for c in p.chunks])
        return self._images

    def _encoded(self, index: int) -> bytes:
        value: bytes | None = self._column()[index].as_py()
        if value is None:
            raise ValueError("the row holds no image bytes")
        return value

    def sizes(self) -> list[int]:
        """Return the size of every encoded image in bytes; 0 for rows without."""
        import pyarrow.compute as pc

        lengths = pc.fill_null(pc.binary_length(self._column()), 0)
        return list(lengths.to_pylist())


def _mapped(file: Path) -> pa.Table:
    import pyarrow as pa

    try:
        source = pa.memory_map(str(file))
        whole = source.read(6) == b"ARROW1"  # of the file format, not the stream format
        source.seek(0)
        return (pa.ipc.open_file if whole else pa.ipc.open_stream)(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as an Arrow file: {error}") from error


def open_columns(
    name: str,
    splits: dict[str, list[Path]],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    damage: Damage | None = None,
) -> dict[str, ImageSet]:
    """Open local Parquet or Arrow files.

    Args:
        name: The data set.
        splits: The files of each split, the training split first.
        image_column: The column of encoded images; found by its name by default.
        label_column: The column of class ids or names; found by its name by default.
        damage: Files that cannot be read are added here, and left out.

    Raises:
        DataError: A file cannot be read, or has no such columns.
    """
    tables = read_splits(name, splits, _table, damage)
    first, _ = next(iter(next(iter(tables.values())).values()))
    columns = first.column_names
    image = _column_name("image", name, columns, image_column, _IMAGES)
    label = _column_name("label", name, columns, label_column, _LABELS)
    texts: dict[str, list[str]] = {}
    for split, parts in tables.items():
        texts[split] = []
        for file, (table, _) in parts.items():
            if {image, label} - set(table.column_names):
                raise DataError(
                    f"{file} has the columns {', '.join(table.column_names)}; the first "
                    f"file has {image} and {label} as well. Are they of one data set?"
                )
            texts[split] += [str(value) for value in table[label].to_pylist()]
    classes, ids = resolve_labels(texts, name, names=_class_names(first, label))
    return {
        split: ArrowSet(
            name,
            split,
            classes,
            ids[split],
            [arrow for _, arrow in parts.values()],
            image,
        )
        for split, parts in tables.items()
    }


def _table(file: Path) -> tuple[pa.Table, Path]:
    """Return the table of a file, and the Arrow file it is mapped from."""
    arrow = file if file.suffix == ".arrow" else _converted(file)
    return _mapped(arrow), arrow


def _converted(file: Path) -> Path:
    """Return the Arrow copy of a Parquet file, made when it is not there."""
    import pyarrow as pa
    from pyarrow import parquet

    target = fastadv_cache_dir() / "parquet" / f"{file_key(file)}.arrow"
    if target.exists():
        return target
    try:
        source = parquet.ParquetFile(file)
        with (
            atomic(target) as temporary,
            pa.ipc.new_file(str(temporary), source.schema_arrow) as writer,
        ):
            for batch in source.iter_batches(batch_size=_ROWS):
                writer.write_batch(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as a Parquet file: {error}") from error
    return target


def _column_name(
    what: str,
    name: str,
    columns: Iterable[str],
    asked: str | None,
    usual: Sequence[str],
) -> str:
    """Return the column that was named, else the first of the usual ones that is there."""
    if asked is not None and asked not in columns:
        raise ConfigError(unknown_name(f"{what} column of {name}", asked, columns))
    found = asked or next((u for u in usual if u in columns), None)
    if found is None:
        wanted = ", ".join(usual) or f"the type of {what}s"
        raise DataError(
            f"{name} has the columns {', '.join(columns)} and none of {wanted}; give "
            f"{option_hint(f'{what}_column', 'NAME')}"
        )
    return found


def _bytes_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(f"the image column holds {column.type}, not encoded images")
    return column


def _class_names(table: pa.Table, label: str) -> list[str] | None:
    """Return the names that the `datasets` package stored in the schema, if any."""
    stored = (table.schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(stored or "{}")["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if names else None


class HubSet(ColumnSet):
    """A split of a data set opened by the `datasets` package, which is its `table`."""

    def _encoded(self, index: int) -> bytes:
        value = self.table[index][self.column]
        if value.get("bytes"):
            return bytes(value["bytes"])
        try:
            return Path(value["path"]).read_bytes()
        except (OSError, TypeError) as error:
            raise ValueError(f"no image bytes ({error})") from error

    def sizes(self) -> list[int]:
        """Return 0 for every image: `fingerprint` has the package's own key instead."""
        return [0] * len(self)

    @property
    def fingerprint(self) -> str:
        """Key of the package's fingerprint and the labels, hex."""
        digest = hashlib.sha256(str(self.table._fingerprint).encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()[:32]


def open_hub(
    name: str,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    download: bool = False,
    holdout: float = 0.1,
    strict: bool = True,
) -> DatasetSplits:
    """Open a data set of the Hugging Face hub by name.

    Args:
        name: As on the hub, e.g. "cifar10".
        config: Its configuration, where it has several.
        image_column: The column of images; the first of that kind by default.
        label_column: The column of class ids; the first of that kind by default.
        download: Fetch it when it is not in the package's cache.
        holdout: Share held out for evaluation where it has one split only.
        strict: Refuse an evaluation split that lacks classes, instead of warning.

    Raises:
        ConfigError: The `datasets` package is missing, or a column.
        DataError: The data set is not there.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"hf:{name} needs the datasets package: pip install 'fastadv[hub]'. A folder "
            "of its Parquet files opens without"
        ) from error
    local = None if download else datasets.DownloadConfig(local_files_only=True)
    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or not download
    try:
        opened = datasets.load_dataset(name, config, download_config=local)
    except Exception as error:  # whatever the hub, the network and the cache raise
        hint = "" if download else f"; {fetch_hint(f'hf:{name}')}"
        raise DataError(f"cannot open hf:{name}: {error}{hint}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    where = f"hf:{name}"
    features = next(iter(opened.values())).features
    images = [c for c, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [c for c, k in features.items() if isinstance(k, datasets.ClassLabel)]
    image = _column_name("image", where, features, image_column, images)
    label = _column_name("label", where, features, label_column, labels)
    names = getattr(features[label], "names", None)
    order = sorted(opened, key=lambda split: split != "train")
    texts = {split: [str(v) for v in opened[split][label]] for split in order}
    classes, ids = resolve_labels(texts, where, names=names)
    sets: dict[str, ImageSet] = {}
    for split in order:
        table = opened[split].cast_column(image, datasets.Image(decode=False))
        sets[split] = HubSet(name, split, classes, ids[split], table, image)
    return DatasetSplits(name, *pair_splits(name, sets, holdout, strict=strict))
